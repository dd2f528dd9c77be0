"""What a Run answers with: a score, and the coverage table."""

from __future__ import annotations

from kfac_lab.core.capture import CoverageRow

__all__ = ["Coverage", "Score"]


class Score(float):
    """An evaluation: the error as a number, and what it belongs to.

    ``error`` is the mean per case: the squared error summed over outputs, or for classes the
    percentage wrong; ``loss`` is h on the same cases, ℓ2 included (sections 2 and 13).
    """

    loss: float
    error: float
    split: str
    at: str
    step: int

    @classmethod
    def of(cls, loss: float, error: float, split: str, at: str, step: int) -> Score:
        """A score from its numbers."""
        score = cls(error)
        score.loss, score.error = loss, error
        score.split, score.at, score.step = split, at, step
        return score


class Coverage(list[CoverageRow]):
    """The coverage table: a list of rows that prints as a table, with a line below it or none."""

    note: str | None = None

    def with_note(self, note: str | None) -> Coverage:
        """The same with a line below."""
        self.note = note
        return self

    def __str__(self) -> str:
        names = ("parameter", "layer", "kind", "block", "claimed_by", "chain", "tangents", "rows")
        table = [names, *(tuple(str(getattr(row, n)) for n in names) for row in self)]
        widths = [max(len(line[c]) for line in table) for c in range(len(names))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        return "\n".join([*lines, *([self.note] if self.note else [])])

    __repr__ = __str__
