"""Damped inverses that say when they fail, and the one function that reads from a device.

Every factorisation here goes the same way: symmetrise, add the shift, check that the numbers are
finite, factorise, check again. What came of it is a 0-dim **status** on the device, not an
exception: 1 for good, 0 for failed, -1 where the numbers that came in were not finite already. A
failed result is NaN throughout, so nothing downstream can take it for an answer.

Who looks at the status, and when:

- Inside an :class:`Attempt` nothing does until its owner reads all of them at once with
  :func:`host`. Calls that failed are then tried again one level up, the others as before::

      attempt = Attempt()
      while True:
          with attempt:
              ...  # factorise, invert; components know nothing of the attempt
          failed = attempt.failed(host(attempt.flags()))
          again = attempt.escalate(failed)
          if again is None:
              break  # all is well, or nothing is left to try: see `attempt.error(failed)`
          attempt = again

- Outside any attempt, on the CPU, where looking costs nothing, each call looks for itself,
  escalates, warns of what it added and raises `NumericalError` in the end. Outside any attempt on
  an accelerator nobody looks: a failed result is NaN.

The levels are in :data:`LADDER`: as it is, jitter relative to the mean diagonal, float64.

Only what leaves the device alone is used: `cholesky_ex` and triangular solves. `cholesky_inverse`
and `eigh` look at their status on the host: the first serves the CPU only, the second sits in
:func:`eigh` alone and belongs on refresh steps. Everything takes float32 and float64, gives back
what it was given, and runs on the meta device.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass

import torch
from torch import Tensor

from kfac_lab.errors import NumericalError

__all__ = [
    "LADDER",
    "Attempt",
    "Call",
    "Eigen",
    "Failure",
    "Outcome",
    "Rung",
    "Scalar",
    "cholesky_inverse",
    "cholesky_root",
    "damped_inverse",
    "eigenpairs",
    "eigh",
    "eye_like",
    "finished",
    "guarded",
    "host",
    "inverse_root",
    "label",
    "numerical_error",
    "precision",
    "prepared",
    "spectral_power",
    "symmetric_root",
    "symmetrise",
]

Scalar = float | Tensor
"""A Python number, or a 0-dim tensor that stays on its device."""


LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


# ---- reading -------------------------------------------------------------------------------------


def host(tensors: Sequence[Tensor]) -> list[float]:
    """Read 0-dim tensors as Python floats: the only function that may read from a device.

    One transfer, however many tensors (one for each device, should they lie on several). Values
    pass through float64, so counts and float64 strengths arrive exact.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(i)
    stacks: dict[torch.device, list[Tensor]] = {}
    order: dict[torch.device, list[int]] = {}
    for (device, _), members in groups.items():
        stack = torch.stack([tensors[i].detach().reshape(()) for i in members])
        stacks.setdefault(device, []).append(stack.to(torch.float64))
        order.setdefault(device, []).extend(members)
    values = [0.0] * len(tensors)
    for device, parts in stacks.items():
        for i, value in zip(order[device], torch.cat(parts).tolist(), strict=True):
            values[i] = value
    return values


# ---- attempts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rung:
    """One level of the ladder: what is added to the diagonal, and in which precision."""

    jitter: float = 0.0  # relative to the mean of the diagonal
    double: bool = False


LADDER = (Rung(), Rung(1e-6), Rung(1e-4), Rung(1e-2), Rung(1e-2, double=True))
"""What is tried, in this order, on a matrix that will not be inverted."""


@dataclass(frozen=True)
class Outcome:
    """One try of one call: its results, its status [0-dim] and the jitter [0-dim] if any."""

    outputs: tuple[Tensor, ...]
    status: Tensor
    jitter: Tensor | None = None


@dataclass(frozen=True)
class Call:
    """One factorisation that was asked for: who asked, for what, and what came of it.

    `subject` is the matrix as given, or, where only its eigenvalues were at hand, these [d]; None
    where there is no one matrix to blame. `shift` is what the caller added to its diagonal.
    """

    label: tuple[str, ...]
    occurrence: int  # the how-manieth call under this label
    operation: str
    level: int
    levels: int
    status: Tensor
    jitter: Tensor | None
    subject: Tensor | None
    shift: Scalar

    @property
    def name(self) -> str:
        """The label in words."""
        return ", ".join(self.label) or "a matrix without a label"


@dataclass(frozen=True)
class Failure:
    """A call that failed; `finite` is False where its input was not finite to begin with."""

    call: Call
    finite: bool

    @property
    def treatable(self) -> bool:
        """Whether another level is left that could help; NaN is past help."""
        return self.finite and self.call.level + 1 < self.call.levels


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

    def _place(self, names: tuple[str, ...]) -> tuple[int, int]:
        occurrence = self._seen.get(names, 0)
        self._seen[names] = occurrence + 1
        return occurrence, self._levels.get((names, occurrence), 0)


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


def numerical_error(
    failed: Sequence[Failure], lam: Scalar | None = None, gamma: Scalar | None = None
) -> NumericalError:
    """A NumericalError naming layer, factor, λ, γ and condition number of what failed.

    Calls whose input was not finite are named only where no other failed: they may be the ones
    that were handed the failed results of those.
    """
    first = [f for f in failed if f.finite] or list(failed)
    lines = [_described(f, lam, gamma) for f in first[:5]]
    if len(failed) > len(lines):
        lines.append(f"and {len(failed) - len(lines)} more, some of them in consequence")
    if first and first[0].finite:
        lines.append("More damping helps (gamma, lam), and so do statistics over more rows.")
    else:
        lines.append("No damping helps here: look at what the numbers were computed from.")
    return NumericalError("\n".join(lines))


def _described(failure: Failure, lam: Scalar | None, gamma: Scalar | None) -> str:
    call = failure.call
    numbers: dict[str, Scalar] = {"shift": call.shift}
    if lam is not None:
        numbers["λ"] = lam
    if gamma is not None:
        numbers["γ"] = gamma
    if call.jitter is not None:
        numbers["jitter"] = call.jitter
    subject = call.subject
    if subject is not None:
        subject = subject.detach().to(torch.float64)
        values = symmetrise(subject) if subject.dim() == 2 else subject
        wrong = (~torch.isfinite(values)).sum()
        values = torch.nan_to_num(values, 0.0, 0.0, 0.0)
        if subject.dim() == 2:
            with contextlib.suppress(LinAlgError):
                values = torch.linalg.eigvalsh(values)
        numbers |= {"wrong": wrong, "low": values.min(), "high": values.max()}
    tensors = {k: v for k, v in numbers.items() if isinstance(v, Tensor)}
    read = {k: v for k, v in numbers.items() if not isinstance(v, Tensor)}
    read |= dict(zip(tensors, host(list(tensors.values())), strict=True))

    text = f"{call.name}: {call.operation} failed"
    if subject is None:
        text += "" if failure.finite else ", its input is not finite"
    elif read["wrong"]:
        text += f", {read['wrong']:.0f} of {subject.numel()} entries are not finite"
    else:
        low, high = read["low"] + read["shift"], read["high"] + read["shift"]
        condition = high / low if low > 0 else float("inf")
        size = "×".join(map(str, subject.shape))
        kind = f"a {size} matrix" if subject.dim() == 2 else f"{size} eigenvalues"
        text += (
            f" on {kind}, condition number "
            f"{condition:.3g} (eigenvalues, shift included, from {low:.3g} to {high:.3g})"
        )
    if "jitter" in read:
        text += f", with {read['jitter']:.2e} added to the diagonal"
    given = [f"{k} = {read[k]:.4g}" for k in ("λ", "γ", "shift") if k in read]
    return f"{text}; {', '.join(given)}."


# ---- the two ends of a factorisation -------------------------------------------------------------


@contextlib.contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Float32 products in full precision, or with ``tf32`` in TF32 where the device has it.

    Statistics and inverses suffer first from short products, so full is what a step asks for,
    whatever the process has set; the process's setting is back afterwards.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def symmetrise(matrix: Tensor) -> Tensor:
    """(M + Mᵀ)/2, a new matrix [d, d], symmetric to the last bit."""
    return (matrix + matrix.mT).mul_(0.5)


def prepared(
    matrix: Tensor, shift: Scalar = 0.0, rung: Rung = LADDER[0]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(M + Mᵀ)/2 + shift·I with the rung's jitter: the matrix [d, d], finite?, the jitter.

    Where the matrix is not finite it is replaced by I, so that no factorisation can choke on it.
    """
    work = symmetrise(matrix.to(torch.float64) if rung.double else matrix)
    work.diagonal().add_(shift)
    finite = torch.isfinite(work).all()
    work = torch.where(finite, work, eye_like(work))
    if not rung.jitter:
        return work, finite, None
    jitter = rung.jitter * work.diagonal().abs().mean()
    work.diagonal().add_(jitter)
    return work, finite, jitter


def finished(
    outputs: Sequence[Tensor],
    dtype: torch.dtype,
    finite: Tensor,
    ok: Tensor,
    jitter: Tensor | None = None,
) -> Outcome:
    """Judge `outputs`: the status from finite?, ok? [0-dim bool] and their own finiteness.

    Their memory is used: where the status is not good they are filled with NaN.
    """
    results = [output.to(dtype) for output in outputs]
    good = finite & ok
    for result in results:
        good = good & torch.isfinite(result).all()
    bad = ~good
    status = finite.to(torch.float64) * (good + 1.0) - 1.0
    return Outcome(tuple(r.masked_fill_(bad, float("nan")) for r in results), status, jitter)


def _factorised(
    operation: str,
    matrix: Tensor,
    shift: Scalar,
    method: Callable[[Tensor], tuple[tuple[Tensor, ...], Tensor]],
) -> tuple[Tensor, ...]:
    def compute(level: int) -> Outcome:
        work, finite, jitter = prepared(matrix, shift, LADDER[level])
        outputs, ok = method(work)
        return finished(outputs, matrix.dtype, finite, ok, jitter)

    return guarded(operation, compute, matrix, shift)


def eye_like(like: Tensor) -> Tensor:
    """I [d, d] in the dtype and on the device of `like` [d, d]."""
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


# ---- Cholesky ------------------------------------------------------------------------------------


def damped_inverse(matrix: Tensor, shift: Scalar = 0.0) -> Tensor:
    """(M + shift·I)⁻¹, symmetric [d, d], by Cholesky (section 5.3)."""
    return _factorised("Cholesky inverse", matrix, shift, cholesky_inverse)[0]


def inverse_root(matrix: Tensor, shift: Scalar = 0.0) -> Tensor:
    """R [d, d] with R Rᵀ = (M + shift·I)⁻¹: the transposed inverse of the Cholesky factor.

    Any such R serves where section 3.4 has A^(-1/2), and this one costs far less than an
    eigendecomposition.
    """
    return _factorised("Cholesky root", matrix, shift, cholesky_root)[0]


def cholesky_inverse(work: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The inverse of a matrix that is ready to be factorised, and whether it could be [0-dim]."""
    if work.device.type == "cpu":
        lower, info = torch.linalg.cholesky_ex(work)
        ok = info == 0
        return (torch.cholesky_inverse(torch.where(ok, lower, eye_like(work))),), ok
    (root,), ok = cholesky_root(work)
    return (symmetrise(root @ root.mT),), ok


def cholesky_root(work: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """L⁻ᵀ of a matrix L Lᵀ that is ready to be factorised, and whether it could be [0-dim]."""
    lower, info = torch.linalg.cholesky_ex(work)
    return (torch.linalg.solve_triangular(lower.mT, eye_like(work), upper=True),), info == 0


# ---- eigendecomposition --------------------------------------------------------------------------


@dataclass(frozen=True)
class Eigen:
    """M = Q diag(values) Qᵀ: one decomposition that serves every shift (section 7.4).

    `values` [d] ascend and are not negative; the columns of `vectors` [d, d] are Q.
    """

    values: Tensor
    vectors: Tensor

    def inverse(self, shift: Scalar = 0.0) -> Tensor:
        """(M + shift·I)⁻¹, symmetric [d, d]."""
        return self.root(shift, power=-1.0)

    def root(self, shift: Scalar = 0.0, power: float = -0.5) -> Tensor:
        """(M + shift·I)^power, symmetric [d, d]."""
        scaled = self.vectors * spectral_power(self.values, shift, power)
        return symmetrise(scaled @ self.vectors.mT)

    def apply(self, matrix: Tensor, shift: Scalar = 0.0, power: float = -1.0) -> Tensor:
        """(M + shift·I)^power · matrix [d, n], without forming the power."""
        powers = spectral_power(self.values, shift, power)
        return self.vectors @ (powers[:, None] * (self.vectors.mT @ matrix))


def eigh(matrix: Tensor) -> Eigen:
    """Eigendecomposition of (M + Mᵀ)/2 [d, d], its values clamped at 0.

    On an accelerator this waits for the device, as any library's does: for refresh steps only.
    """
    values, vectors = _factorised("eigendecomposition", matrix, 0.0, eigenpairs)
    return Eigen(values, vectors)


def eigenpairs(work: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Values [d] clamped at 0 and vectors [d, d] of a matrix that is ready, and whether finite."""
    try:
        values, vectors = torch.linalg.eigh(work)
    except LinAlgError:  # did not converge
        values, vectors = torch.full_like(work[0], float("nan")), torch.full_like(work, 0.0)
    return (values.clamp_min(0.0), vectors), torch.isfinite(values).all()


def symmetric_root(matrix: Tensor, power: float = -0.5, shift: Scalar = 0.0) -> Tensor:
    """(M + shift·I)^power, symmetric [d, d], by eigendecomposition."""
    return eigh(matrix).root(shift, power)


def spectral_power(values: Tensor, shift: Scalar = 0.0, power: float = -1.0) -> Tensor:
    """(values + shift)^power entry by entry, any shape; a call like any other.

    `values` are eigenvalues, not negative; a zero that the shift does not lift is a failure.
    """

    def compute(level: int) -> Outcome:
        rung = LADDER[level]
        work = (values.to(torch.float64) if rung.double else values) + shift
        finite = torch.isfinite(work).all()
        jitter = rung.jitter * work.abs().mean() if rung.jitter else None
        if jitter is not None:
            work = work + jitter
        ok = (work > 0).all() if power < 0 else (work >= 0).all()
        return finished([work**power], values.dtype, finite, ok, jitter)

    return guarded("eigenvalue power", compute, values.reshape(-1), shift)[0]
