"""A laboratory for K-FAC (Martens & Grosse 2015): every part swappable while it trains."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kfac_lab.core import traits
from kfac_lab.core.likelihood import (
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    Joint,
    Poisson,
)
from kfac_lab.core.problem import Problem, Split
from kfac_lab.core.state import DampingStrength, Due, StepRecord, Strength
from kfac_lab.core.vector import Vec
from kfac_lab.errors import (
    CheckpointError,
    CoverageError,
    DataError,
    KfacLabError,
    NumericalError,
    PluginError,
    RecipeError,
)
from kfac_lab.hooks import Recipe, hookimpl, lab

if TYPE_CHECKING:
    from kfac_lab import plots, testing
    from kfac_lab.optim import KFAC, Preconditioner
    from kfac_lab.panel import Panel, watch
    from kfac_lab.run import Run

__all__ = [
    "KFAC",
    "Bernoulli",
    "Categorical",
    "CheckpointError",
    "CoverageError",
    "DampingStrength",
    "DataError",
    "Due",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Joint",
    "KfacLabError",
    "NumericalError",
    "Panel",
    "PluginError",
    "Poisson",
    "Preconditioner",
    "Problem",
    "Recipe",
    "RecipeError",
    "Run",
    "Split",
    "StepRecord",
    "Strength",
    "Vec",
    "hookimpl",
    "lab",
    "plots",
    "testing",
    "traits",
    "watch",
]

__version__ = "0.1.0"
_LAZY = {
    "Run": "run",
    "KFAC": "optim",
    "Preconditioner": "optim",
    "Panel": "panel",
    "watch": "panel",
}


def __getattr__(name: str) -> Any:
    if name in ("plots", "testing"):
        return importlib.import_module(f"kfac_lab.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(f"kfac_lab.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'kfac_lab' has no attribute {name!r}")
