"""Launches of steps that differ in numbers: a batch that grows, a rate that fades.

Numbers are tensors to such a launch; for a batch that grows it has rows beyond the batch.
A rung is a power of two, or one and a half of one, or the whole set. What a launch is for, the
rows beyond the batch and the numbers of sizes, see ``core/program/padded.py``. Its sums run over
more rows, in another order: the numbers of a step are those of its own m, S1 and S2 but for the
last digits, which is why a replay call by call, whose numbers are the step's bit for bit, is tried
beside the first launch of each rung.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kfac_lab.core.program import Capture, Program
from kfac_lab.core.program.extents import Unpadded, apart
from kfac_lab.core.program.padded import Padded
from kfac_lab.core.program.padded_launch import PaddedLaunch
from kfac_lab.engine.asked import StepInputs, size_pattern
from kfac_lab.engine.boundary import rows_at
from kfac_lab.engine.known import KnownStep
from kfac_lab.engine.prepared import Begun, passing

__all__ = ["LARGEST", "Padding", "rung"]

MOVED = 24  # steps at which a number has to move before it is a tensor: ε stops at k = 20
PATIENCE = 3  # launches that may give other numbers than the calls
LARGEST = 8192  # cases: the kernels of more outlast the calls that launch them


def rung(m: int, available: int | None) -> int:
    """The number of cases that a launch for m of them has."""
    power = 1 << max(0, m - 1).bit_length()  # at least m
    most = power if 3 * power < 4 * m else 3 * power // 4
    return min(most, available or most)


@dataclass(eq=False)
class Padding:
    """The launches of one program of all sizes; one is kept.

    Args:
        constant: sizes that the program has for good.
        spans: whether it was tried at sizes below and above those asked for.

    Attributes:
        refused: why there is none, where there is none.
        launch: the one that there is.
    """

    constant: Mapping[str, int]
    spans: Callable[[tuple[int, ...]], bool] = bool  # at its own sizes
    refused: str | None = None
    launch: PaddedLaunch | None = None
    _padded: Padded | None = None
    _sizes: dict[str, int] = field(default_factory=dict)  # of the launch, or one that is wanted
    _moving: frozenset[Hashable] = frozenset()  # numbers that are tensors
    _disagreed: int = 0
    _moved: int = 0  # steps at which another number was one

    def opened(
        self,
        begun: Begun,
        asked: StepInputs,
        entry: KnownStep,
        before: Sequence[float] | None,
        capture: Capture,
    ) -> PaddedLaunch | None:
        """The launch for a step, ready for its numbers; None where there is none, or not yet: a
        rung is captured when it is asked for a second time.
        """
        program = entry.program
        if program is None or program.factorises is not None:
            return None
        sizes = self.sizes(begun, asked)
        if sizes is None or not self.spans(tuple(sizes.values())):
            return None
        numbers = program.numbers(asked.numbers)
        wanted: dict[Any, float] = {**asked.numbers, **sizes}
        larger = program.numbers(wanted)
        if not self._settled(program, numbers, before, sizes):
            return None
        free = self._moving.union(sizes)
        frozen = [n for n, label in enumerate(program.recording.supplied) if label not in free]
        if self.launch is not None and sizes == self._sizes:
            if all(self.launch.numbers[n] == numbers[n] for n in frozen):
                self.launch.serve(numbers)
                return self.launch
            self.launch = None
        if sizes != self._sizes:
            self.launch, self._sizes = None, sizes
            return None
        try:
            if self._padded is None:
                still = self.constant, self._moving
                self._padded = _padded(program, begun, asked, *still)
            self.launch = PaddedLaunch(
                self._padded,
                asked.tensors,
                begun.plan.k,
                numbers,
                larger,
                capture,
                asked.fixed,
                asked.values,
                passing(entry.template),
            )
        except (Unpadded, RuntimeError) as error:
            self.refuse(str(error).splitlines()[0])
        return self.launch

    def _settled(
        self,
        program: Program,
        numbers: Sequence[float],
        before: Sequence[float] | None,
        sizes: Mapping[str, int],
    ) -> bool:
        """Whether it is known which numbers move: those that go on when ε has come to its limit."""
        pairs = zip(program.recording.supplied, numbers, before or (), strict=before is not None)
        changed = {label for label, a, b in pairs if a != b and label not in sizes}
        if before is not None and changed <= self._moving:
            return True
        self._moved += 1
        if self._moved > MOVED and before is not None:
            self._moving |= changed
            self.launch = self._padded = None
        return False

    def disagreed(self) -> None:
        """The launch has given other numbers than the calls: it is to be captured anew, and after
        ``PATIENCE`` times there is none.
        """
        self.launch = None
        self._disagreed += 1
        if self._disagreed >= PATIENCE:
            self.refuse("with rows beyond the batch it gives other numbers")

    def refuse(self, reason: str) -> None:
        """There is no launch for any sizes but a step's own."""
        self.refused, self.launch, self._padded = reason, None, None

    def sizes(self, begun: Begun, asked: StepInputs) -> dict[str, int] | None:
        """The sizes that a launch is to have, which are to each other as the step's are; None where
        there are none, or no launch is to be hoped for.
        """
        engine, plan = begun.engine, begun.plan
        if self.refused is not None:
            return None
        if self.constant.keys() == asked.sizes.keys():
            return dict(asked.sizes)
        if plan.m > LARGEST:
            return None
        m = rung(plan.m, engine.problem.available)
        sizes = dict(zip(asked.sizes, (m, *rows_at(engine, m)), strict=True))
        larger, own = tuple(sizes.values()), tuple(asked.sizes.values())
        chunk = engine.passes.function.chunk
        alike = size_pattern(larger, chunk) == size_pattern(own, chunk)
        enough = all(n >= asked.sizes[name] for name, n in sizes.items())
        still = all(sizes[name] == n for name, n in self.constant.items())
        return sizes if alike and enough and still else None


def _padded(
    program: Program,
    begun: Begun,
    asked: StepInputs,
    constant: Mapping[str, int],
    moving: Collection[Hashable],
) -> Padded:
    """The program at larger sizes; it is run at one triple of sizes or two, for its shapes."""
    own = {id(t): t.clone() for t in asked.writable}
    inputs = [own.get(id(t), t) for t in asked.tensors]
    sizes, batch = apart(asked.sizes, constant), asked.fixed.stop
    rows = torch.arange(sizes["m"], device=begun.engine.device) % begun.plan.m
    more = [
        t.index_select(0, rows) if n >= batch and t.shape[:1] == (begun.plan.m,) else t
        for n, t in enumerate(inputs)
    ]
    k = begun.plan.k
    if sizes == asked.sizes:
        return Padded(program, [(inputs, k, asked.numbers)], list(sizes), moving)
    numbers: dict[Any, float] = {**asked.numbers, **sizes}
    seen = (inputs, k, asked.numbers), (more, k, numbers)
    return Padded(program, seen, list(sizes), moving)
