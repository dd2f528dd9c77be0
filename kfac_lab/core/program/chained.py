"""Two programs as one: what the first gives last the second is given first."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from torch import Tensor

from kfac_lab.core.program.program import Program

__all__ = ["Chained"]


class Chained:
    """A gradient and the update by it, to be captured as one launch.

    Its inputs are those of the first, then those of the second without what is passed on; its
    outputs what the first keeps to itself, then those of the second.

    Args:
        first: gives, after ``kept`` outputs of its own, what the second takes.
        second: its first inputs are those.
        kept: how many outputs are the chain's.
    """

    def __init__(self, first: Program, second: Program, kept: int) -> None:
        self._both, self._kept = (first, second), kept
        self._passed = len(first.outputs) - kept
        self.replays = 0
        self.uses = [*first.uses, *second.uses[self._passed :]]
        self.frozen = [*first.frozen, *second.frozen]

    @property
    def factorises(self) -> str | None:
        """See ``Program``."""
        return self._both[0].factorises or self._both[1].factorises

    def fills(self, k: int, numbers: Sequence[float] = ()) -> list[Tensor]:
        """See ``Program``."""
        own = self._split(numbers)
        return [t for p, n in zip(self._both, own, strict=True) for t in p.fills(k, n)]

    def numbers(self, known: Mapping[Hashable, float]) -> list[float]:
        """See ``Program``."""
        return [number for program in self._both for number in program.numbers(known)]

    def run(
        self, inputs: Sequence[Tensor], fills: Sequence[Tensor], numbers: Sequence[float]
    ) -> list[Tensor]:
        """See ``Program``."""
        (first, second), own = self._both, self._split(numbers)
        at, filled = len(first.uses), first.filled
        made = first.run(inputs[:at], fills[:filled], own[0])
        passed = [*made[self._kept :], *inputs[at:]]
        return [*made[: self._kept], *second.run(passed, fills[filled:], own[1])]

    def _split(self, numbers: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
        at = len(self._both[0].frozen)
        return numbers[:at], numbers[at:]
