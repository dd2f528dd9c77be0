"""Averages that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from broken.half import after, but, common_half, refused

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


_CountsInPython = but(Sound, init=after(lambda found, theta: {**found, "count": 0}))


class _Extrapolates(Sound):
    def update(self, part_state: PartState, theta: Sequence[Tensor]) -> PartState:
        new = super().update(part_state, theta)
        beyond = [t + 0.5 * (t - m) for m, t in zip(part_state["mean"], theta, strict=True)]
        return {**new, "beyond": beyond}

    def read(self, part_state: PartState) -> Sequence[Tensor] | None:
        beyond: Sequence[Tensor] = part_state.get("beyond", part_state["mean"])
        return beyond


BROKEN: dict[str, Callable[[], Any]] = {
    **common_half(Sound, "update"),
    "dtype_follows": but(Sound, init=lambda self, a, theta: a([t.double() for t in theta])),
    "shaped_like_theta": but(Sound, read=after(lambda mean, _: [m.reshape(-1) for m in mean])),
    "one_kind_of_answer": but(
        _CountsInPython, read=after(lambda mean, state: mean if state["count"] else None)
    ),
    "owns_its_tensors": but(
        Sound, init=after(lambda found, theta: {**found, "mean": [t.detach() for t in theta]})
    ),
    "keeps_a_constant": but(
        Sound, update=lambda self, a, state, theta: a(state, [0.999 * t for t in theta])
    ),
    "between_what_it_saw": _Extrapolates,
    "follows": but(Sound, update=after(lambda new, state, theta: {**new, "mean": state["mean"]})),
    "trains": but(Sound, update=refused(lambda state, theta: len(theta) == 5)),
    "replays": _CountsInPython,
}
