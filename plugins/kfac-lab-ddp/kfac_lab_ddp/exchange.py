"""Results that one process has computed, sent to all: trees of tensors, numbers and dataclasses.

The shape of what is sent travels first, as small objects from every process to every other; then
the tensors of each process in turn. A tensor that everybody has already is not sent but named.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kfac_lab import KfacLabError
from kfac_lab.core.state import from_tree, to_tree
from kfac_lab_ddp.collective import Distributed, let_go

__all__ = ["Told", "exchanged"]


@dataclass(frozen=True)
class _Known:
    """In the place of a tensor: one that every process has, by its place in what is known."""

    index: int


@dataclass(frozen=True)
class _Sent:
    """In the place of a tensor: one that follows."""

    index: int


@dataclass
class Told:
    """What a process says of its share before the tensors follow.

    ``error`` is the sentence of an exception that ended its work; ``remarks`` are its own to make
    and reach every process as they are.
    """

    error: str = ""
    remarks: list[Any] = field(default_factory=list)
    trees: dict[int, Any] = field(default_factory=dict)
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = field(default_factory=list)


def exchanged(
    collective: Distributed,
    owners: Sequence[int],
    mine: Mapping[int, Any],
    known: Sequence[Any],
    told: Told,
    device: torch.device,
) -> tuple[list[Any], list[Any]]:
    """Every item's result on every process, and all remarks in the order of the ranks.

    Args:
        owners: which process has the result of each item.
        mine: item → result, of those that are this process's.
        known: per item, a value that is the same on every process.
        told: this process's error and remarks.
        device: where received tensors go.

    Raises:
        KfacLabError: a process said that its work failed; all of them raise it.
    """
    sent: list[Tensor] = []
    if not told.error:
        for i, result in mine.items():
            places = {id(t): n for n, t in enumerate(_tensors(to_tree(known[i])))}
            told.trees[i] = _named(to_tree(result), places, sent)
    told.shapes = [(tuple(t.shape), t.dtype) for t in sent]
    everybody = _gathered(collective, told, device)
    for rank, other in enumerate(everybody):
        if other.error:
            raise KfacLabError(f"process {rank} could not build its share: {other.error}")
    results: list[Any] = [None] * len(owners)
    for rank, other in enumerate(everybody):
        if rank == collective.rank:
            # The sender too goes on with the plain layout that the others receive: a product of the
            # same numbers in another layout may be rounded otherwise.
            received = [tensor.contiguous() for tensor in sent]
        else:
            received = [torch.empty(s, dtype=dtype, device=device) for s, dtype in other.shapes]
        collective.broadcast_(received, rank)
        for i, tree in other.trees.items():
            results[i] = from_tree(_restored(tree, _tensors(to_tree(known[i])), received))
    return results, [remark for other in everybody for remark in other.remarks]


def _gathered(collective: Distributed, told: Told, device: torch.device) -> list[Told]:
    """What every process tells, by rank: pickled, as bytes that are sent one after the other.

    Not by ``all_gather_object``, whose own messages nobody could wait for (``let_go``).
    """
    mine = pickle.dumps(told)
    lengths = torch.zeros(collective.size, dtype=torch.int64, device=device)
    lengths[collective.rank] = len(mine)
    dist.all_reduce(lengths)
    let_go(lengths)
    everybody = []
    for rank, length in enumerate(lengths.tolist()):
        held = bytearray(mine if rank == collective.rank else length)
        text = torch.frombuffer(held, dtype=torch.uint8).to(device)
        collective.broadcast_([text], rank)
        everybody.append(pickle.loads(text.cpu().numpy().tobytes()))
    return everybody


def _tensors(tree: Any) -> list[Tensor]:
    """All tensors of a tree, in the one order that every process finds."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _named(tree: Any, places: Mapping[int, int], sent: list[Tensor]) -> Any:
    if isinstance(tree, Tensor):
        if id(tree) in places:
            return _Known(places[id(tree)])
        for index, tensor in enumerate(sent):
            if tensor is tree:
                return _Sent(index)
        sent.append(tree)
        return _Sent(len(sent) - 1)
    if isinstance(tree, dict):
        return {key: _named(value, places, sent) for key, value in tree.items()}
    return [_named(value, places, sent) for value in tree] if isinstance(tree, list) else tree


def _restored(tree: Any, known: Sequence[Tensor], received: Sequence[Tensor]) -> Any:
    if isinstance(tree, _Known):
        return known[tree.index]
    if isinstance(tree, _Sent):
        return received[tree.index]
    if isinstance(tree, dict):
        return {key: _restored(value, known, received) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_restored(value, known, received) for value in tree]
    return tree
