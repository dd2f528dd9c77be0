"""The error of a factorisation that nothing helped: layer, factor, λ, γ and condition number."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from kfac_lab.core.linalg.calls import Failure, Scalar
from kfac_lab.core.linalg.reading import host
from kfac_lab.core.linalg.symmetric import symmetrise
from kfac_lab.errors import NumericalError

__all__ = ["LinAlgError", "numerical_error"]

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


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
