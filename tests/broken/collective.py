"""Collectives that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from broken.common import Misread, counted, first_of

__all__ = ["BROKEN", "Sound"]


@dataclass(frozen=True)
class Sound:
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


def _averaging(each: Callable[[Any, Tensor], Any]) -> Callable[[], Any]:
    def mean_(self: Any, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            each(self, tensor)

    return lambda: type("BrokenCollective", (Sound,), {"mean_": mean_})()


class _Raises(Sound):
    def owner(self, keys: Sequence[Any], costs: Sequence[float]) -> Sequence[int]:
        if not keys:
            raise ValueError("nothing to own")
        return super().owner(keys, costs)


def _counting() -> Any:
    more = counted()
    return _averaging(lambda self, t: t.mul_(more()))()


def _sharing() -> Any:
    first = first_of()
    return _averaging(lambda self, t: t.mul_(1 if first(self) else 2))()


class _SortsCosts(Sound):
    def owner(self, keys: Sequence[Any], costs: Any) -> Sequence[int]:
        costs.sort()
        return super().owner(keys, costs)


def _widens(self: Any, tensor: Tensor) -> None:
    tensor.data = tensor.data.double()


def _elsewhere(self: Any, tensor: Tensor) -> None:
    tensor.data = tensor.data.clone()


@dataclass(frozen=True)
class _Misread(Misread, Sound):
    pass


class _Nobody(Sound):
    rank: ClassVar[int] = 1


class _Returns(Sound):
    def broadcast_(self, tensors: Sequence[Tensor], owner: int) -> Any:
        return tensors


class _Beyond(Sound):
    def owner(self, keys: Sequence[Any], costs: Sequence[float]) -> Sequence[int]:
        return [1] * len(keys)


class _Forgets(Sound):
    def broadcast_(self, tensors: Sequence[Tensor], owner: int) -> None:
        for tensor in tensors:
            tensor.zero_()


@dataclass(frozen=True)
class Summing:
    """Two processes' sum in place of their mean."""

    processes: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """How many processes there are."""
        distributed = torch.distributed
        return distributed.get_world_size() if distributed.is_initialized() else 1

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return torch.distributed.get_rank() if self.size > 1 else 0

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """The sum."""
        for tensor in tensors if self.size > 1 else ():
            torch.distributed.all_reduce(tensor)

    def owner(self, keys: Sequence[Any], costs: Sequence[float]) -> Sequence[int]:
        """In turn."""
        return [n % self.size for n in range(len(keys))]

    def broadcast_(self, tensors: Sequence[Tensor], owner: int) -> None:
        """From the owner to all."""
        for tensor in tensors if self.size > 1 else ():
            torch.distributed.broadcast(tensor, owner)


BROKEN: dict[str, Callable[[], Any]] = {
    "runs": _Raises,
    "finite": _averaging(lambda self, t: t.fill_(float("nan")) if t.shape == (2,) else None),
    "deterministic": _counting,
    "instances_share_nothing": _sharing,
    "inputs_not_written": _SortsCosts,
    "global_state_kept": _averaging(lambda self, t: torch.rand(1)),
    "dtype_follows": _averaging(_widens),
    "no_host_read": _averaging(lambda self, t: float(t.sum())),
    "device_follows": _averaging(lambda self, t: t.mul_(torch.ones(1, dtype=t.dtype)[0])),
    "round_trip": _Misread,
    "rank_in_range": _Nobody,
    "mean_of_one": _averaging(lambda self, t: t.div_(2)),
    "mean_in_place": _averaging(_elsewhere),
    "broadcast_in_place": _Returns,
    "owner_valid": _Beyond,
    "owner_keeps": _Forgets,
    "two_processes": Summing,
}
