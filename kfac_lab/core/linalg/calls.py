"""One factorisation that was asked for: its levels, its outcome, its failure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["LADDER", "Call", "Failure", "Outcome", "Rung", "Scalar"]

Scalar = float | Tensor
"""A Python number, or a 0-dim tensor that stays on its device."""


@dataclass(frozen=True)
class Rung:
    """One level of the ladder: what is added to the diagonal, and in which precision."""

    jitter: float = 0.0  # relative to the mean of the diagonal
    double: bool = False


LADDER = (Rung(), Rung(1e-6), Rung(1e-4), Rung(1e-2), Rung(1e-2, double=True))
"""What is tried, in this order, on a matrix that will not be inverted."""


@dataclass(frozen=True)
class Outcome:
    """One try of one call: its results, its status [0-dim] and the jitter [0-dim] if any."""

    outputs: tuple[Tensor, ...]
    status: Tensor
    jitter: Tensor | None = None


@dataclass(frozen=True)
class Call:
    """One factorisation that was asked for: who asked, for what, and what came of it.

    `subject` is the matrix as given, or, where only its eigenvalues were at hand, these [d]; None
    where there is no one matrix to blame. `shift` is what the caller added to its diagonal.
    """

    label: tuple[str, ...]
    occurrence: int  # the how-manieth call under this label
    operation: str
    level: int
    levels: int
    status: Tensor
    jitter: Tensor | None
    subject: Tensor | None
    shift: Scalar

    @property
    def name(self) -> str:
        """The label in words."""
        return ", ".join(self.label) or "a matrix without a label"


@dataclass(frozen=True)
class Failure:
    """A call that failed; `finite` is False where its input was not finite to begin with."""

    call: Call
    finite: bool

    @property
    def treatable(self) -> bool:
        """Whether another level is left that could help; NaN is past help."""
        return self.finite and self.call.level + 1 < self.call.levels
