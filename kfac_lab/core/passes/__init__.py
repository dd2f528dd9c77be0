"""The passes of a step over its batch: gradient, statistics, tangents and the trial objective.

Everything here asks a *back end* for one chunk of cases at a time and gets a *trace* of it:
outputs, rows in, rows out, gradient, tangents (``trace.py``). Two back ends give the same numbers:
the sequential plan (``sequential.py``), where one forward pass serves all of these, and autograd
(``general.py``), which takes any model. What is done with a trace is written once: ``passes.py``.
"""

from kfac_lab.core.passes.certificate import Unseen
from kfac_lab.core.passes.evaluated import Evaluated, Observed, relative_spread
from kfac_lab.core.passes.passes import Passes, subset
from kfac_lab.core.passes.sums import Objective, square_norm
from kfac_lab.core.passes.watched import LayerRows, WatchedPasses

__all__ = [
    "Evaluated",
    "LayerRows",
    "Objective",
    "Observed",
    "Passes",
    "Unseen",
    "WatchedPasses",
    "relative_spread",
    "square_norm",
    "subset",
]
