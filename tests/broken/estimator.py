"""Estimators that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from broken.common import Remembers, restless
from broken.half import after, but, common_half, refused
from broken.wrapping import unforwarding

__all__ = ["BROKEN", "Sound"]


@dataclass(frozen=True)
class Sound:
    """One sample per case."""

    fraction: float = 0.5

    def decay(self, k: int) -> float:
        """A running mean of at most ten steps."""
        return min(1 - 1 / k, 0.9)

    def cotangents(
        self, likelihood: Any, outputs: Tensor, targets: Tensor, draw: Callable[[str], Tensor]
    ) -> Iterator[Tensor]:
        """One."""
        yield self.changed(likelihood.sampled_gradient(outputs, draw("targets")), outputs)

    def changed(self, cotangent: Tensor, outputs: Tensor) -> Tensor:
        """Where the broken ones differ."""
        return cotangent


def _changing(change: Callable[[Tensor, Tensor], Tensor]) -> type:
    """Another cotangent: of the sound one and the outputs."""
    return but(Sound, changed=lambda self, answer, *given: change(*given))


@dataclass(frozen=True)
class _Forgets(Remembers, Sound):
    def decay(self, k: int) -> float:
        known = k - 1 in self.kept
        self.kept.append(k)
        return super().decay(k) * (1.0 if known else 0.5)


class _OwnGenerator(Sound):
    def cotangents(
        self, likelihood: Any, outputs: Tensor, targets: Tensor, draw: Callable[[str], Tensor]
    ) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(7)
        uniforms = torch.rand(outputs.shape, generator=generator, dtype=torch.float64)
        yield likelihood.sampled_gradient(outputs, uniforms.to(outputs.device, outputs.dtype))


def _restless() -> Any:
    more = restless(lambda g: g * 1.0)
    return _changing(lambda g, outputs: more(g))()


BROKEN: dict[str, Callable[[], Any]] = {
    **common_half(Sound, "changed", lambda cotangent, factor: cotangent * factor),
    "inputs_not_written": _changing(lambda g, outputs: (g, outputs.mul_(1.0001))[0]),
    "dtype_follows": _changing(lambda g, outputs: g.float()),
    "forwards_traits": unforwarding("estimator", "sampled"),
    "trains": but(Sound, decay=refused(lambda k: k == 4)),
    "resumes": _Forgets,
    "fraction_in_range": lambda: Sound(fraction=1.5),
    "decay_in_range": but(Sound, decay=after(lambda weight, k: 1.0 if k >= 10_000 else weight)),
    "starts_afresh": but(Sound, decay=after(lambda weight, k: 0.9)),
    "one_shape": _changing(lambda g, outputs: g.flatten(1)),
    "second_moment": _changing(lambda g, outputs: 1.2 * g),
    "draws_through_draw": _OwnGenerator,
    "replays": _restless,
}
