"""Launches and streams of the emulated accelerator, as strict as CUDA's.

A launch has its places: what a function did is done again on the same memory, without its Python,
and what may not be done while a graph is captured is refused. What a side stream has made cannot be
touched before the steps have waited for it, nor can what it still reads be written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["Launches", "Side", "called", "place_of", "refused_while_captured"]

Launch = tuple[Any, list[Any], dict[str, Any], list[Tensor | None]]
#: what is being captured, if anything is
_capturing: list[list[Launch]] = []
#: the side stream whose work is being asked for, if one's is
_streams: list[Side] = []


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _frozen(value: Any, there: set[int]) -> Any:
    """Arguments of a launch: a number of the host is the one that it was."""
    if isinstance(value, Tensor):
        return value if id(value) in there else value.clone()
    if isinstance(value, (list, tuple)):
        return [_frozen(v, there) for v in value]
    return value


def place_of(tensor: Tensor) -> int:
    """What tells the memory of a tensor from other memory."""
    return tensor.untyped_storage()._cdata


def refused_while_captured(what: str) -> None:
    """Raises where a graph is being captured."""
    if _capturing:
        raise RuntimeError(f"{what}: operation not permitted when stream is capturing")


def called(func: Any, hosts: list[Any], named: dict[str, Any], there: list[Any]) -> Any:
    """An operation on the tensors beneath those of the device."""
    if torch.Tag.nondeterministic_seeded in func.tags:
        refused_while_captured(f"{func} draws")
    known = [t.raw for t in there]
    written = list(_written(func, hosts, named)) if Side.busy else []
    for side in Side.busy:
        side.examine(func, known, written)
    made = func(*hosts, **named)
    if _streams:
        _streams[-1].did(known, [made, written])
    if _capturing:
        own = {id(t) for t in known}
        before = {place_of(t) for t in _tensors([hosts, named])}
        arguments = [_frozen(v, own) for v in hosts]
        keywords = {k: _frozen(v, own) for k, v in named.items()}
        results = [t if place_of(t) not in before else None for t in _tensors(made)]
        _capturing[-1].append((func, arguments, keywords, results))
    return made


def _written(func: Any, hosts: list[Any], named: dict[str, Any]) -> Iterator[Tensor]:
    if func._schema.is_mutable:
        for at, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                yield from _tensors(hosts[at] if at < len(hosts) else named.get(argument.name))


class Launches:
    """Captures functions, which share their memory as CUDA graphs of one pool do."""

    def __init__(self) -> None:
        self._last: list[Launch] | None = None

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """What does again what ``function`` did."""
        function()
        noted: list[Launch] = []
        _capturing.append(noted)
        try:
            function()
        finally:
            _capturing.pop()
        _spoil(noted)  # what is captured has not been done

        def launch() -> None:
            if self._last is not None and self._last is not noted:
                _spoil(self._last)  # its memory is this one's
            self._last = noted
            with torch.no_grad():
                for func, arguments, keywords, results in noted:
                    made = func(*arguments, **keywords)
                    for place, value in zip(results, _tensors(made), strict=True):
                        if place is not None:
                            place.copy_(value)

        return launch


def _spoil(noted: list[Launch]) -> None:
    for _, _, _, results in noted:
        for place in results:
            if place is not None and place.is_floating_point():
                place.fill_(float("nan"))


class Side:
    """A stream beside the steps', whose work is done when somebody waits for it."""

    busy: ClassVar[list[Side]] = []

    def __init__(self) -> None:
        self._made: dict[int, Tensor] = {}
        self._read: dict[int, Tensor] = {}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """What is done inside is of this stream."""
        _streams.append(self)
        if self not in Side.busy:
            Side.busy.append(self)
        try:
            yield
        finally:
            _streams.remove(self)

    def wait(self) -> None:
        """What it has made is there."""
        self._made.clear(), self._read.clear()
        if self in Side.busy:
            Side.busy.remove(self)

    def did(self, known: list[Tensor], made: Any) -> None:
        """Notes what an operation has read, and what it has made and written."""
        places = {place_of(t) for t in known}
        new, written = made
        for tensor in (*(t for t in _tensors(new) if place_of(t) not in places), *written):
            self._made[place_of(tensor)] = tensor
        for tensor in known:
            if place_of(tensor) not in self._made:
                self._read[place_of(tensor)] = tensor

    def examine(self, func: Any, known: list[Tensor], written: list[Tensor]) -> None:
        """Refuses what the steps may not do before they have waited."""
        name = func._schema.name
        if name.endswith("_like") or name.startswith("aten::new_") or name == "aten::detach":
            return  # of its memory nothing is read
        if _streams and _streams[-1] is self:
            return
        if any(place_of(t) in self._made for t in known):
            raise RuntimeError(f"{func}: a tensor that the side stream has still to make")
        if any(place_of(t) in self._read for t in written):
            raise RuntimeError(f"{func}: a tensor that the side stream still reads")

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle 'Stream' object")
