"""What a problem's numbers are, in words: for tables and pictures alike."""

from __future__ import annotations

from kfac_lab.core.likelihood import Categorical, CrossEntropy
from kfac_lab.run import Run

__all__ = ["error_unit", "has_test"]


def has_test(run: Run) -> bool:
    """Whether the problem has held-out cases."""
    return run.problem.test is not None


def error_unit(run: Run) -> str:
    """What an error of this problem is."""
    if isinstance(run.problem.likelihood, (Categorical, CrossEntropy)):
        return "% wrong"
    return "squared error per case, summed over outputs"
