"""The collective ``distributed``: means, owners and broadcasts over torch.distributed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from kfac_lab.core.parameters import parameter
from kfac_lab.core.traits import CollectiveTraits

__all__ = ["Distributed", "let_go"]

#: Whether the destructor of a process group joins gloo's threads with the interpreter's lock held,
#: as it did before torch 2.8 (pytorch/pytorch#154976).
JOINS_WITH_LOCK = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8)


@dataclass(frozen=True)
class Distributed:
    """The processes of torch.distributed's default group; without one, a single process.

    Every process has to make the same calls in the same order. Where one of them has gone, the
    others' calls raise torch's error; where it is there and does not call, they raise after the
    timeout that ``init_process_group`` was given.
    """

    traits: ClassVar[CollectiveTraits] = CollectiveTraits(processes=True)

    bucket: int = parameter(64, section="", low=1, help="MiB of tensors that travel as one message")

    @property
    def size(self) -> int:
        """How many processes there are."""
        there = dist.is_available() and dist.is_initialized()
        return dist.get_world_size() if there else 1

    @property
    def rank(self) -> int:
        """Which of them this one is, from 0."""
        return dist.get_rank() if self.size > 1 else 0

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor, of any shape, by its mean, in place; bit-identical on all."""
        size = self.size
        if size == 1:
            return
        for group in self._buckets(tensors):
            flat = _flat(group)
            dist.all_reduce(flat)
            let_go(flat)
            flat /= size
            _spread(flat, group)

    def owner(self, keys: Sequence[Any], costs: Sequence[float]) -> Sequence[int]:
        """Greedy balance: the dearest first, each to the process with the least so far.

        Ties go to the lower rank, so that every process finds the same.
        """
        loads = [0.0] * self.size
        owners = [0] * len(keys)
        for i in sorted(range(len(keys)), key=lambda i: (-costs[i], i)):
            owners[i] = loads.index(min(loads))
            loads[owners[i]] += costs[i]
        return owners

    def broadcast_(self, tensors: Sequence[Tensor], owner: int) -> None:
        """Overwrites the tensors, of any shapes, with those of process ``owner``, in place."""
        if self.size == 1:
            return
        for group in self._buckets(tensors):
            flat = _flat(group)
            dist.broadcast(flat, owner)
            let_go(flat)
            if self.rank != owner:
                _spread(flat, group)

    def _buckets(self, tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Tensors of one dtype and device, up to ``bucket`` MiB together or a single larger one."""
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
        for of_kind in kinds.values():
            group: list[Tensor] = []
            count = 0
            for tensor in of_kind:
                size = tensor.numel() * tensor.element_size()
                if group and count + size > self.bucket * 2**20:
                    yield group
                    group, count = [], 0
                group.append(tensor)
                count += size
            yield group


def let_go(message: Tensor) -> None:
    """Waits until no thread of gloo holds a message that has been sent; for torch before 2.8.

    A thread that is the last to hold a tensor which Python has forgotten needs the interpreter's
    lock to free it. There the destructor of a process group waits for that thread with the lock
    held, so ``destroy_process_group`` soon after the last message would never return. Threads let
    go within microseconds; what is held for a second is held by somebody else.
    """
    if JOINS_WITH_LOCK and message.device.type == "cpu":
        end = time.monotonic() + 1.0
        while message._use_count() > 1 and time.monotonic() < end:  # type: ignore[attr-defined]
            time.sleep(1e-5)


def _flat(group: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in group])


def _spread(flat: Tensor, group: Sequence[Tensor]) -> None:
    at = 0
    for tensor in group:
        tensor.copy_(flat[at : at + tensor.numel()].view(tensor.shape))
        at += tensor.numel()
