"""Iterate averaging (section 10.5) and the collective of one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kfac_lab.core.parameters import parameter

__all__ = ["NoAverage", "Polyak", "Solo"]

Memo = Mapping[str, Any]


@dataclass(frozen=True)
class Polyak:
    """θ̄ ← ξθ̄ + (1−ξ)θ from step ``start`` on; before that θ̄ = θ.

    The paper averages from the first iteration with ξ = 0.99; the authors' release starts at 200
    with ξ_k = min(1 − 1/(k−199), 0.99): that is ``ramp=True, start=200``.
    """

    xi: float = parameter(0.99, symbol="ξ", section="10.5", low=0.0, high=0.99999)
    start: int = parameter(1, section="10.5", low=1, help="first averaged step")
    ramp: bool = parameter(True, section="10.5", help="ξ_k = min(1 − 1/(k−start+1), ξ)")

    def init(self, theta: Sequence[Tensor]) -> Memo:
        """θ̄ = θ."""
        return {"count": 0, "mean": tuple(t.detach().clone() for t in theta)}

    def update(self, memo: Memo, theta: Sequence[Tensor]) -> Memo:
        """One more θ."""
        count = memo["count"] + 1
        seen = count - self.start + 1
        xi = 0.0 if seen < 1 else min(1 - 1 / seen, self.xi) if self.ramp else self.xi
        mean = torch._foreach_lerp(list(memo["mean"]), list(theta), 1 - xi)
        return {"count": count, "mean": tuple(mean)}

    def read(self, memo: Memo) -> Sequence[Tensor] | None:
        """θ̄."""
        return memo["mean"]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class NoAverage:
    """No averaging."""

    def init(self, theta: Sequence[Tensor]) -> Memo:
        """Nothing to remember."""
        return {}

    def update(self, memo: Memo, theta: Sequence[Tensor]) -> Memo:
        """Nothing to do."""
        return {}

    def read(self, memo: Memo) -> Sequence[Tensor] | None:
        """None."""
        return None


@dataclass(frozen=True)
class Solo:
    """One process."""

    rank: ClassVar[int] = 0
    size: ClassVar[int] = 1

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """They are the mean already."""

    def owner(self, keys: Sequence[Any], costs: Sequence[float]) -> Sequence[int]:
        """Everything is ours."""
        return [0] * len(keys)

    def broadcast_(self, tensors: Sequence[Tensor], owner: int) -> None:
        """Nobody to send to."""
