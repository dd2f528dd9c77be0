"""Averages that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from broken.half import common_half

__all__ = ["BROKEN", "Sound"]

PartState = Mapping[str, Any]


@dataclass(frozen=True)
class Sound:
    """θ̄ ← θ̄ + share·(θ − θ̄)."""

    share: float = 0.1

    def init(self, theta: Sequence[Tensor]) -> PartState:
        """θ̄ = θ."""
        count = torch.zeros((), dtype=torch.float64, device=theta[0].device)
        return {"mean": [t.detach().clone() for t in theta], "count": count}

    def update(self, part_state: PartState, theta: Sequence[Tensor]) -> PartState:
        """One more θ."""
        mean = [m + self.share * (t - m) for m, t in zip(part_state["mean"], theta, strict=True)]
        return {"mean": mean, "count": part_state["count"] + 1}

    def read(self, part_state: PartState) -> Sequence[Tensor] | None:
        """θ̄."""
        mean: Sequence[Tensor] = part_state["mean"]
        return mean


class _Doubles(Sound):
    def init(self, theta: Sequence[Tensor]) -> PartState:
        return super().init([t.double() for t in theta])


class _FiveTensorsAtMost(Sound):
    def update(self, part_state: PartState, theta: Sequence[Tensor]) -> PartState:
        if len(theta) == 5:
            raise ValueError("five is too many")
        return super().update(part_state, theta)


class _Flat(Sound):
    def read(self, part_state: PartState) -> Sequence[Tensor] | None:
        return [m.reshape(-1) for m in part_state["mean"]]


class _CountsInPython(Sound):
    def init(self, theta: Sequence[Tensor]) -> PartState:
        return {**super().init(theta), "count": 0}


class _LateRead(_CountsInPython):
    def read(self, part_state: PartState) -> Sequence[Tensor] | None:
        return part_state["mean"] if part_state["count"] else None


class _KeepsTheta(Sound):
    def init(self, theta: Sequence[Tensor]) -> PartState:
        return {**super().init(theta), "mean": [t.detach() for t in theta]}


class _FallsAway(Sound):
    def update(self, part_state: PartState, theta: Sequence[Tensor]) -> PartState:
        return super().update(part_state, [0.999 * t for t in theta])


class _Extrapolates(Sound):
    def update(self, part_state: PartState, theta: Sequence[Tensor]) -> PartState:
        new = super().update(part_state, theta)
        beyond = [t + 0.5 * (t - m) for m, t in zip(part_state["mean"], theta, strict=True)]
        return {**new, "beyond": beyond}

    def read(self, part_state: PartState) -> Sequence[Tensor] | None:
        beyond: Sequence[Tensor] = part_state.get("beyond", part_state["mean"])
        return beyond


class _Stays(Sound):
    def update(self, part_state: PartState, theta: Sequence[Tensor]) -> PartState:
        return {"mean": part_state["mean"], "count": part_state["count"] + 1}


BROKEN: dict[str, Callable[[], Any]] = {
    **common_half(Sound, "update"),
    "dtype_follows": _Doubles,
    "shaped_like_theta": _Flat,
    "one_kind_of_answer": _LateRead,
    "owns_its_tensors": _KeepsTheta,
    "keeps_a_constant": _FallsAway,
    "between_what_it_saw": _Extrapolates,
    "follows": _Stays,
    "trains": _FiveTensorsAtMost,
    "replays": _CountsInPython,
}
