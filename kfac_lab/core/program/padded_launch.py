"""A launch of a program for batches up to a size: its places have more rows than the batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from kfac_lab.core.program.captured import Capture, Captured
from kfac_lab.core.program.padded import Padded, void

__all__ = ["PaddedLaunch"]


class PaddedLaunch(Captured):
    """As :class:`Captured`, for any sizes up to its own.

    Args:
        padded: the program.
        inputs: of a step.
        k: the step.
        numbers: of this step.
        larger: the larger sizes among them.
        capture: see :class:`Captured`, as all that follow.
        fixed: which inputs have memory that stays.
        values: which inputs nobody ever writes into.
        passing: which outputs are done with before the next launch.
    """

    def __init__(
        self,
        padded: Padded,
        inputs: Sequence[Tensor],
        k: int,
        numbers: Sequence[float],
        larger: Sequence[float],
        capture: Capture,
        fixed: Collection[int] = (),
        values: Collection[int] = (),
        passing: Collection[int] = (),
    ) -> None:
        self._padded, self._own = padded, list(larger)
        wide = padded.larger(inputs, larger)
        super().__init__(padded.program, wide, k, larger, capture, fixed, values, passing)
        for place in self._fills:
            void(place)
        self.serve(numbers)

    def serve(self, numbers: Sequence[float]) -> None:
        """What is launched next is a step of these numbers."""
        self._own = list(numbers)
        self._padded.set(self._own)

    def _filled(self, k: int, numbers: Sequence[float] | None = None) -> list[Tensor]:
        return self.program.fills(k, self._own)

    def given(self, outputs: list[Tensor]) -> list[Tensor]:
        """Without the rows beyond."""
        return super().given(self._padded.cut(outputs, self._own))
