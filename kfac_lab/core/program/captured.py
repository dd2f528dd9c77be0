"""A program as one launch, with places for what goes in and comes out; on CUDA by a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from kfac_lab.core.program.chained import Chained
from kfac_lab.core.program.program import Program

__all__ = ["Capture", "Captured", "CudaGraphs"]

Capture = Callable[[Callable[[], None]], Callable[[], None]]
KEPT = 4  # launches for other addresses of what stays where it is; the one before goes first


@dataclass(eq=False)
class _Launch:
    run: Callable[[], None]
    outputs: list[Tensor]
    times: int = 0


class Captured:
    """A program as one launch: its inputs, fills and outputs have places that do not change.

    What a step is given is copied into the places, and what it gives out of them, in a few calls
    each: so nobody outside holds a place, and a State is as much a value as ever. Not copied are:
    memory that stays, such as θ and the two sides of the moments, which is read and written where
    it is, by a launch for each set of its addresses; what is never used; what nobody writes into
    and was copied before, such as the inverse in use; and outputs that are done with before the
    next launch.

    Args:
        program: on tensors of one device, none of them sparse.
        inputs: of a step, for their shapes.
        k: the step.
        numbers: of the step; a launch has those for good that its calls take as Python's.
        capture: notes what a function launches, and gives what launches it again.
        fixed: which inputs have memory that stays.
        values: which inputs nobody ever writes into, as long as they are there.
        passing: which outputs are done with before the next launch.
    """

    def __init__(
        self,
        program: Program | Chained,
        inputs: Sequence[Tensor],
        k: int,
        numbers: Sequence[float],
        capture: Capture,
        fixed: Collection[int] = (),
        values: Collection[int] = (),
        passing: Collection[int] = (),
    ) -> None:
        self.program, self._capture = program, capture
        self.numbers = list(numbers)
        used = [n for n in range(len(inputs)) if program.uses[n]]
        self._fixed = [n for n in used if n in fixed]
        self._places = {n: _place(inputs[n]) for n in used if n not in fixed}
        self._values, self._passing = frozenset(values), frozenset(passing)
        self._last: dict[int, TensorWeakRef] = {}
        self._fills = self._filled(k)
        self._launches: dict[tuple[int, ...], _Launch] = {}

    def opened(self, inputs: Sequence[Tensor]) -> int:
        """Captures the launch for what stays where it is now, unless there is one; how often it was
        used. What the program writes into may have been written then.
        """
        addresses = self._addresses(inputs)
        found = self._launches.get(addresses)
        if found is None:
            while len(self._launches) >= KEPT:
                del self._launches[next(iter(self._launches))]
            made: list[Tensor] = []
            own = dict(self._places)
            own |= {n: inputs[n].detach() for n in self._fixed}
            given: list[Any] = [own.get(n) for n in range(len(inputs))]

            def launched() -> None:
                made[:] = self.program.run(given, self._fills, self.numbers)

            found = self._launches[addresses] = _Launch(self._capture(launched), made)
        return found.times

    def ready(self, inputs: Sequence[Tensor]) -> bool:
        """Whether there is a launch for what stays where it is now."""
        return self._addresses(inputs) in self._launches

    def serves(self, numbers: Sequence[float]) -> bool:
        """Whether these are the numbers that its launches have for good."""
        triples = zip(self.numbers, numbers, self.program.frozen, strict=True)
        return all(a == b for a, b, frozen in triples if frozen)

    def __call__(
        self, inputs: Sequence[Tensor], k: int, numbers: Sequence[float] | None = None
    ) -> list[Tensor]:
        """The outputs at step k, in tensors of their own but for those that pass.

        A launch for these addresses has to be open. ``numbers`` are those of the step, where they
        are others than it was made with.
        """
        return self.given(self.launched(inputs, k, numbers))

    def launched(
        self, inputs: Sequence[Tensor], k: int, numbers: Sequence[float] | None = None
    ) -> list[Tensor]:
        """Launches, and gives the places of the outputs, for :meth:`given`."""
        self.program.replays += 1
        addresses = self._addresses(inputs)
        launch = self._launches[addresses]
        launch.times += 1
        values = self._filled(k, numbers)
        into = [_part(place, value) for place, value in zip(self._fills, values, strict=True)]
        for n, place in self._places.items():
            value = inputs[n]
            if n in self._values and value.data_ptr() not in addresses:  # θ̄ may be θ itself
                known = self._last.get(n)
                if known is not None and known() is value:
                    continue
                self._last[n] = TensorWeakRef(value)
            into.append(_part(place, value))
            values.append(value.detach())
        _copied(into, values)
        launch.run()
        return launch.outputs

    def _filled(self, k: int, numbers: Sequence[float] | None = None) -> list[Tensor]:
        return self.program.fills(k, self.numbers if numbers is None else numbers)

    def given(self, outputs: list[Tensor]) -> list[Tensor]:
        """What a launch has left in its places, copied out of them."""
        given = list(outputs)
        own = [n for n in range(len(given)) if n not in self._passing]
        larger = [n for n in own if given[n].dim()]
        for n in larger:
            given[n] = torch.empty_like(given[n])
        _copied([given[n] for n in larger], [outputs[n] for n in larger])
        for dtype in {given[n].dtype for n in own}:  # numbers: one vector, and views of it
            numbers = [n for n in own if not given[n].dim() and given[n].dtype == dtype]
            if numbers:
                together = torch.stack([outputs[n] for n in numbers])
                for n, number in zip(numbers, together.unbind(), strict=True):
                    given[n] = number
        return given

    def _addresses(self, inputs: Sequence[Tensor]) -> tuple[int, ...]:
        return tuple(inputs[n].data_ptr() for n in self._fixed)

    def nbytes(self) -> int:
        """Bytes of the places, those of what is computed on the way aside."""
        held = [*self._places.values(), *self._fills]
        held += [t for launch in self._launches.values() for t in launch.outputs]
        return sum(t.numel() * t.element_size() for t in held)


class CudaGraphs:
    """Captures functions as CUDA graphs that share their memory: no two of them run at once, and
    what one gives is used or copied before the next is launched, on the same stream.

    Inputs and fills have places outside that memory, for a graph that was captured earlier takes
    what was free then for its own. What nobody has let go of is not free: outputs are held.
    """

    def __init__(self, device: torch.device | str = "cuda") -> None:
        self._device = torch.device(device)
        self._pool: Any = None
        self._stream: Any = None

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """What launches again what ``function`` launches on the device.

        Raises:
            RuntimeError: it cannot be captured; the device and its stream are as they were.
        """
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
                self._stream = torch.cuda.Stream()
            own = torch.cuda.current_stream()
            self._stream.wait_stream(own)
            # On the stream of the capture, so that libraries make their handles and workspaces for
            # it now, and not in the memory of the first graph, which may be gone before the others.
            with torch.cuda.stream(self._stream):
                function()
            own.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # Another thread's calls (a loader that pins memory, a panel) are no matter of ours.
                with torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ):
                    function()
            except BaseException:
                # torch.cuda.graph leaves its stream the current one where a capture has failed.
                torch.cuda.set_stream(own)
                torch.cuda.synchronize()
                raise
        launch: Callable[[], None] = graph.replay
        return launch


def _place(tensor: Tensor) -> Tensor:
    """Memory of a tensor's shape and strides, with its values."""
    tensor = tensor.detach()
    if any(stride == 0 for stride in tensor.stride()):
        return tensor.clone()
    made = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return made.copy_(tensor)


def _part(place: Tensor, value: Tensor) -> Tensor:
    """Of a place the part that a value takes: it may have rows beyond (``padded_launch.py``)."""
    if place.shape == value.shape:
        return place
    return place[tuple(slice(0, side) for side in value.shape)]


def _copied(places: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copies: on CUDA a call is a few launches where types and strides are all the same, and a
    launch for each tensor where one of them is not.
    """
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for place, value in zip(places, values, strict=True):
        alike = place.dtype == value.dtype and place.stride() == value.stride()
        mine, theirs = groups.setdefault((place.dtype, alike), ([], []))
        mine.append(place)
        theirs.append(value)
    with torch.no_grad():
        for mine, theirs in groups.values():
            torch._foreach_copy_(mine, theirs)
