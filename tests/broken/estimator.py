"""Estimators that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from broken.common import Misread, Remembers, counted, first_of, irregular
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


def _changing(change: Callable[[Any, Tensor, Tensor], Tensor]) -> Callable[[], Any]:
    return lambda: type("BrokenEstimator", (Sound,), {"changed": change})()


class _Raises(Sound):
    def changed(self, cotangent: Tensor, outputs: Tensor) -> Tensor:
        if outputs.dim() > 2:
            raise ValueError("positions are too much")
        return cotangent


class _OneCase(Sound):
    def changed(self, cotangent: Tensor, outputs: Tensor) -> Tensor:
        return cotangent * float("nan") if len(outputs) == 1 else cotangent


def _counting() -> Any:
    more = counted()
    return _changing(lambda self, cotangent, outputs: cotangent * more())()


def _sharing() -> Any:
    first = first_of()
    return _changing(lambda self, g, outputs: g if first(self) else -g)()


def _writes(self: Any, cotangent: Tensor, outputs: Tensor) -> Tensor:
    outputs.mul_(1.0001)
    return cotangent


def _draws_globally(self: Any, cotangent: Tensor, outputs: Tensor) -> Tensor:
    torch.rand(1)
    return cotangent


def _reads(self: Any, cotangent: Tensor, outputs: Tensor) -> Tensor:
    return cotangent if float(outputs.sum()) < 1e9 else -cotangent


@dataclass(frozen=True)
class _Misread(Misread, Sound):
    pass


class _FailsInARun(Sound):
    def decay(self, k: int) -> float:
        if k == 4:
            raise ValueError("not the fourth")
        return super().decay(k)


@dataclass(frozen=True)
class _Forgets(Remembers, Sound):
    def decay(self, k: int) -> float:
        known = k - 1 in self.kept
        self.kept.append(k)
        return super().decay(k) * (1.0 if known else 0.5)


class _NeverForgets(Sound):
    def decay(self, k: int) -> float:
        return 1.0 if k >= 10_000 else super().decay(k)


class _KeepsTheZeros(Sound):
    def decay(self, k: int) -> float:
        return 0.9


class _OwnGenerator(Sound):
    def cotangents(
        self, likelihood: Any, outputs: Tensor, targets: Tensor, draw: Callable[[str], Tensor]
    ) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(7)
        uniforms = torch.rand(outputs.shape, generator=generator, dtype=torch.float64)
        yield likelihood.sampled_gradient(outputs, uniforms.to(outputs.device, outputs.dtype))


def _restless() -> Any:
    more = irregular()
    return _changing(lambda self, g, outputs: g * 1.0 if more() else g)()


BROKEN: dict[str, Callable[[], Any]] = {
    "runs": _Raises,
    "finite": _OneCase,
    "deterministic": _counting,
    "instances_share_nothing": _sharing,
    "inputs_not_written": _changing(_writes),
    "global_state_kept": _changing(_draws_globally),
    "dtype_follows": _changing(lambda self, g, outputs: g.float()),
    "no_host_read": _changing(_reads),
    "device_follows": _changing(lambda self, g, outputs: g * torch.ones(1, dtype=g.dtype)),
    "forwards_traits": unforwarding("estimator", "sampled"),
    "round_trip": _Misread,
    "trains": _FailsInARun,
    "resumes": _Forgets,
    "fraction_in_range": lambda: Sound(fraction=1.5),
    "decay_in_range": _NeverForgets,
    "starts_afresh": _KeepsTheZeros,
    "one_shape": _changing(lambda self, g, outputs: g.flatten(1)),
    "second_moment": _changing(lambda self, g, outputs: 1.2 * g),
    "draws_through_draw": _OwnGenerator,
    "replays": _restless,
}
