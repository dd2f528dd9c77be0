"""Damped inverses of several matrices, those of one size in one call where the device gains by it.

On a GPU k factorisations of one size are one launch each instead of k. On a CPU LAPACK makes them
one after the other either way: the calls that are saved are half the time at side 20 and a third at
side 64, at side 1000 the copies cost as much again; and a matrix that begins elsewhere in memory
has other last digits, for which nothing is given up there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kfac_lab.core.linalg import attempt
from kfac_lab.core.linalg.calls import Scalar
from kfac_lab.core.linalg.cholesky import cholesky_root, damped_inverse
from kfac_lab.core.linalg.symmetric import eye_like, symmetrise

__all__ = ["Asked", "batches", "damped_inverses"]


class Asked(NamedTuple):
    """(M + shift·I)⁻¹ of a matrix M [d, d], and what it is called beside its layer."""

    label: tuple[str, ...]
    matrix: Tensor
    shift: Scalar


def batches(device: torch.device) -> bool:
    """Whether inverses of one size are made in one call."""
    return device.type != "cpu"


def damped_inverses(asked: Sequence[Asked]) -> list[Tensor]:
    """As ``damped_inverse`` of each matrix [d, d] under its label, in the order asked for.

    What an attempt has escalated is made alone, and so is all that is asked for outside of one.
    """
    found: list[Tensor | None] = [None] * len(asked)
    current = attempt.in_force()
    groups: dict[tuple[object, ...], list[int]] = {}
    for n, (label, matrix, _) in enumerate(asked):
        if batches(matrix.device) and current is not None and current.is_first(label):
            key = matrix.shape, matrix.dtype, matrix.device
            groups.setdefault(key, []).append(n)
    for members in groups.values():
        if len(members) > 1 and current is not None:
            for n, inverse in zip(members, _together(current, [asked[n] for n in members]),
                                  strict=True):  # fmt: skip
                found[n] = inverse
    for n, (label, matrix, shift) in enumerate(asked):
        if found[n] is None:
            with attempt.label(*label):
                found[n] = damped_inverse(matrix, shift)
    return [inverse for inverse in found if inverse is not None]


def _together(current: attempt.Attempt, asked: Sequence[Asked]) -> list[Tensor]:
    """Of matrices of one size, at the lowest level: each noted in the attempt, as if alone."""
    work = symmetrise(torch.stack([each.matrix for each in asked]))
    like = work.new_empty(())
    shifts = torch.stack([torch.as_tensor(each.shift).to(like) for each in asked])
    work.diagonal(dim1=-2, dim2=-1).add_(shifts[:, None])
    finite = _finite(work)
    work = torch.where(finite[:, None, None], work, eye_like(work))
    if work.device.type == "cpu":
        lower, info = torch.linalg.cholesky_ex(work)
        good = info == 0
        lower = torch.where(good[:, None, None], lower, eye_like(work))
        inverse = torch.cholesky_inverse(lower)
    else:
        ((root,), good) = cholesky_root(work)
        inverse = symmetrise(root @ root.mT)
    good = finite & good & _finite(inverse)
    inverse = inverse.masked_fill_(~good[:, None, None], float("nan"))
    statuses = finite.to(torch.float64) * (good + 1.0) - 1.0
    for (label, matrix, shift), status in zip(asked, statuses.unbind(), strict=True):
        current.note(label, "Cholesky inverse", status, matrix, shift)
    return list(inverse.unbind())


def _finite(matrices: Tensor) -> Tensor:
    """Whether all entries are, of each [b]."""
    flat = matrices.flatten(1)
    return torch.isfinite(flat.amin(1)) & torch.isfinite(flat.amax(1))
