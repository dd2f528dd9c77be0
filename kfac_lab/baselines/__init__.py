"""The methods K-FAC is measured against: Nesterov SGD, Adam, Muon and SOAP (section 13).

Each is a component (``nag``, ``adam``, ``muon``, ``soap``) whose ``attach`` gives a Stepper with
the interface of ``engine.Engine``, so that the curves overlay. They use the recipe's ``batch`` and
``average`` and nothing else of it. The updates are PyTorch's own optimisers, the fused kernels
where the device has them (SOAP, which PyTorch lacks, is ours): a step costs what it costs in a
plain loop.

Draws, passes and the average come before the commit; the commit is the optimiser's update in place,
during which SIGINT waits. So whatever is raised in a step leaves the run as it was before the step.

A method whose rate or momentum changes towards the end of the run needs to know the end: give
``total_steps``, or ``total_seconds`` of training time. With the latter the rates depend on how fast
the machine is, so such a run repeats itself only as exactly as its seconds do.
"""

from __future__ import annotations

from kfac_lab.baselines.adam import Adam
from kfac_lab.baselines.base import Baseline
from kfac_lab.baselines.muon import Muon
from kfac_lab.baselines.nag import Nag, nesterov_mu
from kfac_lab.baselines.soap import Soap, SoapOptimizer
from kfac_lab.baselines.tuning import tuned

__all__ = ["Adam", "Baseline", "Muon", "Nag", "Soap", "SoapOptimizer", "nesterov_mu", "tuned"]
