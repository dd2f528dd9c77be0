"""Who looks at the status of a factorisation, and what is tried when it failed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar, Token

import torch
from torch import Tensor

from kfac_lab.core.linalg.calls import LADDER, Call, Failure, Outcome, Scalar
from kfac_lab.core.linalg.failing import numerical_error
from kfac_lab.core.linalg.reading import host
from kfac_lab.errors import NumericalError

__all__ = ["Attempt", "guarded", "in_force", "label"]

_LABEL: ContextVar[tuple[str, ...]] = ContextVar("kfac_lab_label", default=())
_ATTEMPT: ContextVar[Attempt | None] = ContextVar("kfac_lab_attempt", default=None)


@contextlib.contextmanager
def label(*parts: str) -> Iterator[None]:
    """Name what is being factorised: ``with label("layer 3.weight", "Ā"): ...``.

    An inner label adds to an outer one, so a structure may name the layer and a block the factor.
    """
    token = _LABEL.set(_LABEL.get() + parts)
    try:
        yield
    finally:
        _LABEL.reset(token)


class Attempt:
    """Collects the status of every factorisation made while it is open, without reading any.

    It may be opened several times; calls are counted through. A call is known by its label and its
    place among the calls of that label, so a repeated attempt must ask for the same things. It
    keeps hold of the matrices, to say what was wrong with them: drop it once its flags are read.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._levels: dict[tuple[tuple[str, ...], int], int] = {}
        self._seen: dict[tuple[str, ...], int] = {}
        self._tokens: list[Token[Attempt | None]] = []

    def __enter__(self) -> Attempt:
        self._tokens.append(_ATTEMPT.set(self))
        return self

    def __exit__(self, *exception: object) -> None:
        _ATTEMPT.reset(self._tokens.pop())

    def __repr__(self) -> str:
        raised = {", ".join(k): level for (k, _), level in self._levels.items()}
        return f"Attempt({len(self.calls)} calls{f', raised {raised}' if raised else ''})"

    def flags(self) -> list[Tensor]:
        """The status of every call, 0-dim each, in call order: for :func:`host`."""
        return [call.status for call in self.calls]

    def failed(self, values: Sequence[float]) -> tuple[Failure, ...]:
        """Which calls failed, given :meth:`flags` as read by :func:`host`."""
        pairs = zip(self.calls, values, strict=True)
        return tuple(Failure(call, finite=value > -0.5) for call, value in pairs if not value > 0.5)

    def escalate(self, failed: Sequence[Failure]) -> Attempt | None:
        """The attempt to make next: calls that failed one level up, the others as they were.

        None where nothing failed, and where nothing is left to try for any that did: then the last
        good inverse is kept, or :meth:`error` is raised.
        """
        treatable = [failure.call for failure in failed if failure.treatable]
        if not treatable:
            return None
        attempt = Attempt()
        attempt._levels = dict(self._levels)
        for call in treatable:
            attempt._levels[call.label, call.occurrence] = call.level + 1
        return attempt

    def error(
        self, failed: Sequence[Failure], lam: Scalar | None = None, gamma: Scalar | None = None
    ) -> NumericalError:
        """The error to raise when nothing is left to try; see :func:`numerical_error`."""
        return numerical_error(failed, lam, gamma)

    @property
    def jitter(self) -> dict[str, Tensor]:
        """What was added to the diagonal, 0-dim, by label; the largest where it was several."""
        amounts: dict[str, Tensor] = {}
        for call in self.calls:
            if call.jitter is not None:
                known = amounts.get(call.name)
                more = call.jitter if known is None else torch.maximum(known, call.jitter)
                amounts[call.name] = more
        return amounts

    def is_first(self, label: tuple[str, ...]) -> bool:
        """Whether the next call of this name, inside the labels in force, is as it is first made:
        not escalated.
        """
        names = _LABEL.get() + label
        return self._levels.get((names, self._seen.get(names, 0)), 0) == 0

    def note(
        self, label: tuple[str, ...], operation: str, status: Tensor, subject: Tensor, shift: Scalar
    ) -> None:
        """A call of this name, made at the lowest level by somebody else."""
        names = _LABEL.get() + label
        occurrence, level = self._place(names)
        levels = len(LADDER)
        self.calls.append(
            Call(names, occurrence, operation, level, levels, status, None, subject, shift)
        )

    def _place(self, names: tuple[str, ...]) -> tuple[int, int]:
        occurrence = self._seen.get(names, 0)
        self._seen[names] = occurrence + 1
        return occurrence, self._levels.get((names, occurrence), 0)


def in_force() -> Attempt | None:
    """The attempt that collects what is factorised now."""
    return _ATTEMPT.get()


def guarded(
    operation: str,
    compute: Callable[[int], Outcome],
    subject: Tensor | None = None,
    shift: Scalar = 0.0,
    levels: int = len(LADDER),
) -> tuple[Tensor, ...]:
    """Run `compute(level)` under the attempt in force, or escalate here if there is none.

    A factorisation of one's own gets the same protection through this function; `prepared` and
    `finished` make its two ends.

    Args:
        operation: what an error calls it.
        compute: one try; its outputs, of any shapes, are what is returned.
        subject: the matrix [d, d] to be blamed, or its eigenvalues [d].
        shift: what was added to its diagonal.
        levels: how many rungs of the ladder may be tried.
    """
    names = _LABEL.get()
    attempt = _ATTEMPT.get()

    def call(level: int, outcome: Outcome, occurrence: int = 0) -> Call:
        status, jitter = outcome.status, outcome.jitter
        return Call(names, occurrence, operation, level, levels, status, jitter, subject, shift)

    if attempt is not None:
        occurrence, level = attempt._place(names)
        outcome = compute(level)
        attempt.calls.append(call(level, outcome, occurrence))
        return outcome.outputs

    for level in range(levels):
        outcome = compute(level)
        if outcome.status.device.type != "cpu":
            return outcome.outputs
        seen = call(level, outcome)
        (status,) = host([outcome.status])
        if status > 0.5:
            if outcome.jitter is not None:
                (amount,) = host([outcome.jitter])
                warnings.warn(
                    f"{seen.name}: {operation} succeeded only after {amount:.2e} was added to the "
                    "diagonal; the damping is too small for this matrix",
                    RuntimeWarning,
                    stacklevel=4,
                )
            return outcome.outputs
        failure = Failure(seen, finite=status > -0.5)
        if not failure.treatable:
            break
    raise numerical_error([failure])
