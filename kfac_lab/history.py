"""History: what a run's steps saw, as columns; swaps as marks."""

from __future__ import annotations

import csv
import io
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kfac_lab.core import files, linalg
from kfac_lab.core.schema import (
    check,
    entries,
    flag,
    listed,
    maybe,
    number,
    record,
    table,
    text,
    whole,
)
from kfac_lab.core.slots import by_todays_names
from kfac_lab.core.state import Due, StepRecord, Swap
from kfac_lab.errors import CheckpointError, KfacLabError

__all__ = ["COLUMNS", "Column", "History"]

COLUMNS = (
    "step",
    "loss",
    "error",
    "alpha",
    "mu",
    "lam",
    "gamma",
    "eta",
    "rho",
    "predicted",
    "actual",
    "norm_squared",
    "slope",
    "lr",
    "batch",
    "seconds",
    "cross_weight",
    "kept_inverse",
    "skipped",
    "taken_back",
)


_FIRST = COLUMNS[:19]  # of histories that do not say theirs; new columns go to the end
_RENAMED = {"coupling": "cross_weight", "void": "skipped"}  # columns by their former names

SCHEMA = record(
    {
        "rows": listed(listed(number())),
        "more": listed(
            record(
                {
                    "due": entries(flag, flag, flag, flag, flag),
                    "candidates": listed(entries(number(), number(), number())),
                    "coefficients": maybe(listed(number())),
                    "jitter": table(number()),
                    "verbs": table(number()),
                }
            )
        ),
        "marks": listed(entries(whole(), table(text()), table(text()), text())),
        "evaluations": listed(
            record(
                {"step": whole(), "split": text(100), "at": text(100), "error": number()},
                optional={"seconds": number(0.0), "cases": whole(), "loss": number()},
            )
        ),
    },
    optional={
        "columns": listed(text(100)),
        "faults": listed(record({"step": whole(), "rows": listed(whole()), "why": text()})),
    },
)
"""What :meth:`History.state` gives."""


class _NoColumn(KfacLabError, KeyError):
    """A KeyError, which prints as the sentence that it is."""

    __str__ = Exception.__str__


class Column(Sequence[float]):
    """One number per step: length, indexing, slices and ``numpy.asarray``."""

    def __init__(self, name: str, values: NDArray[np.float64]) -> None:
        self.name, self._values = name, values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        found = self._values[index]
        return float(found) if np.ndim(found) == 0 else Column(self.name, found)

    def __iter__(self) -> Iterator[float]:
        return iter(self._values.tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self._values, dtype=dtype)

    def __eq__(self, other: object) -> Any:
        return self._values == np.asarray(other)

    def __repr__(self) -> str:
        return f"Column({self.name!r}, {np.array2string(self._values, threshold=6)})"


class History:
    """The records of a run in step order, with marks where parts were swapped.

    Records hold 0-dim tensors until somebody reads; a read moves all pending ones in one transfer.
    Columns, one float64 number per step, NaN where a step or a method has none: ``step``; ``loss``
    h(θ_k) on the batch, ℓ2 included, before the move; ``error`` from the same pass (squared error
    summed over outputs, or % wrong); ``alpha``, ``mu`` the coefficients (section 7); ``lam``,
    ``gamma``, ``eta`` as used in the step (section 6); ``rho`` the reduction ratio (5.5), whose
    numerator is ``actual`` and whose denominator rests on ``predicted`` M(δ) − M(0);
    ``norm_squared`` ‖δ‖²; ``slope`` ∇hᵀδ; ``lr``; ``batch`` in cases; ``seconds`` of training so
    far; ``cross_weight``, ``kept_inverse``, ``skipped`` as in
    :class:`~kfac_lab.core.state.StepRecord`.

    ``history["loss"]`` is a :class:`Column`; ``history.records`` are the records themselves;
    ``history.marks`` the swaps; ``history.evaluations`` what ``Run.evaluate`` measured;
    ``history.faults`` the batches that were left out, with the rows of the data to blame.
    """

    def __init__(self) -> None:
        # Each record with its row of numbers, None where nobody has read it yet: one list, so that
        # every change of it is one operation.
        self._steps: list[tuple[StepRecord, tuple[float, ...] | None]] = []
        self._table = np.empty((len(COLUMNS), 0))  # the numbers again, with room to grow
        self._filled: list[Any] = [0, None]  # how many rows stand in it, and the last one
        self._reading = threading.Lock()  # a panel reads while another thread trains
        self.marks: list[Swap] = []
        self.evaluations: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []

    def append(self, record: StepRecord) -> None:
        """Adds a step's record; nothing is read."""
        self._steps.append((record, None))

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def step(self) -> int:
        """k of the last record; 0 where there is none."""
        return self._steps[-1][0].step if self._steps else 0

    @property
    def records(self) -> Sequence[StepRecord]:
        """The records, numbers read."""
        return tuple(record for record, _ in self._read())

    def tail(self, count: int) -> Sequence[StepRecord]:
        """The last ``count`` records, numbers read."""
        with self._reading:
            end = self._settled()
            return tuple(record for record, _ in self._steps[max(end - count, 0) : end])

    def __getitem__(self, name: str) -> Column:
        name = _RENAMED.get(name, name)
        if name not in COLUMNS:
            raise _NoColumn(f"history has no column {name!r}; it has {', '.join(COLUMNS)}")
        with self._reading:
            return Column(name, self._filled_up(self._settled())[COLUMNS.index(name)].copy())

    def _filled_up(self, end: int) -> NDArray[np.float64]:
        """The first ``end`` rows as columns: new ones are added, and those that stand there stay.

        A look costs what is new, however long the run is.
        """
        count, last = self._filled
        new = self._steps[max(count - 1, 0) : end]
        if count > end or (count and (not new or new[0][1] is not last)):
            count, new = 0, self._steps[:end]  # it went another way
        rows = [row for _, row in (new[1:] if count else new)]
        end = count + len(rows)
        if end > self._table.shape[1]:
            grown = np.empty((len(COLUMNS), max(2 * self._table.shape[1], end, 64)))
            grown[:, :count] = self._table[:, :count]
            self._table = grown
        if rows:
            self._table[:, count:end] = np.array(rows, dtype=np.float64).T
        self._filled = [end, (new[-1][1] if new else None)]
        return self._table[:, :end]

    def __contains__(self, name: object) -> bool:
        return name in COLUMNS or name in _RENAMED

    def settle(self) -> None:
        """Reads all that is pending, in one transfer; numbers need less room than tensors."""
        self._read()

    def _read(self) -> list[tuple[StepRecord, tuple[float, ...]]]:
        """Every record with its row."""
        with self._reading:
            return self._steps[: self._settled()]  # type: ignore[return-value]

    def _settled(self) -> int:
        """Reads all that is pending; how many records there are."""
        end = len(self._steps)
        start = end
        while start and self._steps[start - 1][1] is None:
            start -= 1
        if start < end:
            self._steps[start:end] = _numbers([r for r, _ in self._steps[start:end]])
        return end

    def keep(self, count: int) -> None:
        """Reads what is pending and forgets all but the last ``count`` records."""
        self.settle()
        del self._steps[: max(len(self._steps) - count, 0)]

    def truncate(self, count: int) -> None:
        """Forgets all but the first ``count`` records, and later marks and evaluations."""
        last = self._steps[count - 1][0].step if count else 0
        del self._steps[count:]
        self.marks = [m for m in self.marks if m.step <= last]
        self.evaluations = [e for e in self.evaluations if e["step"] <= last]
        self.faults = [f for f in self.faults if f["step"] <= last]

    def copy(self) -> History:
        """A history of its own with the same content."""
        other = History()
        other._steps = list(self._read())
        other.marks = list(self.marks)
        other.evaluations = [dict(e) for e in self.evaluations]
        other.faults = [dict(f) for f in self.faults]
        return other

    # --- out and in -----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, list[float]]:
        """Column name → list of numbers."""
        return {name: list(self[name]) for name in COLUMNS}

    def to_csv(self, path: str | Path | None = None) -> str:
        """The columns as CSV text, one line per step; written to ``path`` where given.

        Raises:
            CheckpointError: the file cannot be written; an older one there is as it was.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        for _, row in self._read():
            writer.writerow(["" if math.isnan(v) else repr(v) for v in row])
        if path is not None:
            files.write(path, out.getvalue())
        return out.getvalue()

    def to_dataframe(self) -> Any:
        """The columns as a pandas DataFrame.

        Raises:
            KfacLabError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise KfacLabError(
                "to_dataframe needs pandas: pip install pandas, or use to_dict or to_csv"
            ) from error
        return pandas.DataFrame(self.to_dict())

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` takes: plain lists and numbers."""
        steps = self._read()
        return {
            "columns": list(COLUMNS),
            "rows": [list(row) for _, row in steps],
            "more": [
                {
                    "due": list(r.due),
                    "candidates": [list(c) for c in r.candidates],
                    "coefficients": list(r.coefficients) if r.coefficients is not None else None,
                    "jitter": dict(r.jitter),
                    "verbs": dict(r.verbs),
                }
                for r, _ in steps
            ],
            "marks": [[m.step, dict(m.parts), dict(m.before), m.note] for m in self.marks],
            "evaluations": [dict(e) for e in self.evaluations],
            "faults": [dict(f) for f in self.faults],
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> History:
        """A history from what :meth:`state` gave.

        Raises:
            CheckpointError: a field of it is not what it has to be.
        """
        check(state, SCHEMA, "the history")
        columns = state.get("columns", _FIRST)
        if len(state["rows"]) != len(state["more"]):
            raise CheckpointError(
                f"the history is damaged: {len(state['rows'])} rows of numbers came with "
                f"{len(state['more'])} records"
            )
        history = cls()
        for row, more in zip(state["rows"], state["more"], strict=True):
            if len(row) != len(columns):
                raise CheckpointError(
                    f"the history is damaged: a row has {len(row)} numbers for {len(columns)} "
                    "columns"
                )
            known = dict(zip((_RENAMED.get(c, c) for c in columns), row, strict=True))
            values = tuple(float(known.get(name, math.nan)) for name in COLUMNS)
            plain: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
            for name in _WHOLE:
                if not 0 <= plain[name] < 2**53 or plain[name] % 1:
                    raise CheckpointError(
                        f"the history is damaged: a row's {name} is {plain[name]}"
                    )
                plain[name] = int(plain[name])
            coefficients = more["coefficients"]
            record = StepRecord(
                **plain,
                due=Due(*more["due"]),
                candidates=tuple((c[0], c[1], c[2]) for c in more["candidates"]),
                coefficients=tuple(coefficients) if coefficients is not None else None,
                jitter=dict(more["jitter"]),
                verbs=dict(more["verbs"]),
            )
            history._steps.append((record, values))
        history.marks = [
            Swap(s, by_todays_names(p), by_todays_names(b), n) for s, p, b, n in state["marks"]
        ]
        history.evaluations = [dict(e) for e in state["evaluations"]]
        history.faults = [dict(f) for f in state.get("faults", ())]
        return history

    def __repr__(self) -> str:
        if not self._steps:
            return "History(no steps)"
        return f"History({len(self)} steps, last loss {self['loss'][-1]:.6g})"


_WHOLE = ("step", "batch", "kept_inverse")


def _numbers(
    pending: Sequence[StepRecord],
) -> list[tuple[StepRecord, tuple[float, ...]]]:
    """Records with their numbers read, all in one transfer, each with its row."""
    flat: list[Any] = [getattr(r, name) for r in pending for name in COLUMNS]
    extra: list[Any] = []
    for r in pending:
        extra += [x for candidate in r.candidates for x in candidate]
        extra += list(r.coefficients) if r.coefficients is not None else []
    tensors = [v for v in flat + extra if isinstance(v, Tensor)]
    values = iter(linalg.host(tensors) if tensors else ())
    numbers = [next(values) if isinstance(v, Tensor) else float(v) for v in flat]
    extras = [next(values) if isinstance(v, Tensor) else float(v) for v in extra]
    width, at = len(COLUMNS), 0
    found = []
    for n, r in enumerate(pending):
        row = tuple(numbers[n * width : (n + 1) * width])
        plain: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
        for name in _WHOLE:
            plain[name] = int(plain[name])
        tried = len(r.candidates)
        triples = extras[at : at + 3 * tried]
        at += 3 * tried
        plain["candidates"] = tuple(
            (triples[3 * j], triples[3 * j + 1], triples[3 * j + 2]) for j in range(tried)
        )
        if r.coefficients is not None:
            count = len(r.coefficients)
            plain["coefficients"] = tuple(extras[at : at + count])
            at += count
        found.append((replace(r, **plain), row))
    return found
