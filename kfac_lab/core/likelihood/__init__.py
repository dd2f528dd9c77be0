"""Predictive distributions: loss, model samples, and the Fisher of the outputs (section 2.1)."""

from __future__ import annotations

from kfac_lab.core.likelihood.bernoulli import Bernoulli
from kfac_lab.core.likelihood.categorical import Categorical
from kfac_lab.core.likelihood.gaussian import Gaussian
from kfac_lab.core.likelihood.heteroscedastic import HeteroscedasticGaussian
from kfac_lab.core.likelihood.joint import Joint
from kfac_lab.core.likelihood.outputs import Outputs, Selector
from kfac_lab.core.likelihood.poisson import Poisson
from kfac_lab.core.likelihood.protocol import (
    Counted,
    Examined,
    Flaw,
    Joining,
    Labelled,
    Likelihood,
    Weighted,
    is_labelled,
    is_weighted,
)
from kfac_lab.core.likelihood.resolve import METHODS, claimants, of_torch, resolve
from kfac_lab.core.likelihood.torch_classes import CrossEntropy
from kfac_lab.core.likelihood.torch_loss import TorchLoss
from kfac_lab.core.likelihood.weighing import Criterion, Given, examined

__all__ = [
    "METHODS",
    "Bernoulli",
    "Categorical",
    "Counted",
    "Criterion",
    "CrossEntropy",
    "Examined",
    "Flaw",
    "Gaussian",
    "Given",
    "HeteroscedasticGaussian",
    "Joining",
    "Joint",
    "Labelled",
    "Likelihood",
    "Outputs",
    "Poisson",
    "Selector",
    "TorchLoss",
    "Weighted",
    "claimants",
    "examined",
    "is_labelled",
    "is_weighted",
    "of_torch",
    "resolve",
]
