"""Collectives that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from broken.half import after, but, common_half

__all__ = ["BROKEN", "Sound"]


@dataclass(frozen=True)
class Sound:
    """One process."""

    rank: ClassVar[int] = 0
    size: ClassVar[int] = 1

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """They are the mean already."""
        for tensor in tensors:
            self.changed(tensor)

    def changed(self, tensor: Tensor) -> Tensor:
        """Where most of the broken ones differ: in place."""
        return tensor

    def owner(self, keys: Sequence[Any], costs: Sequence[float]) -> Sequence[int]:
        """Everything is ours."""
        return [0] * len(keys)

    def broadcast_(self, tensors: Sequence[Tensor], owner: int) -> None:
        """Nobody to send to."""


def _averaging(change: Callable[[Tensor], Any]) -> type:
    """A tensor's mean of one process is another one."""
    return but(Sound, changed=after(lambda tensor, _: change(tensor)))


def _zeroed(_: Any, tensors: Sequence[Tensor], owner: int) -> None:
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
    **common_half(Sound, "changed", lambda tensor, factor: tensor.mul_(factor)),
    "inputs_not_written": but(
        Sound, owner=after(lambda found, keys, costs: (costs.sort(), found)[1])
    ),
    "dtype_follows": _averaging(lambda t: setattr(t, "data", t.double())),
    "rank_in_range": but(Sound, rank=1),
    "mean_of_one": _averaging(lambda t: t.div_(2)),
    "mean_in_place": _averaging(lambda t: setattr(t, "data", t.clone())),
    "broadcast_in_place": but(Sound, broadcast_=after(lambda _, tensors, owner: tensors)),
    "owner_valid": but(Sound, owner=after(lambda found, *_: [1] * len(found))),
    "owner_keeps": but(Sound, broadcast_=after(_zeroed)),
    "two_processes": Summing,
}
