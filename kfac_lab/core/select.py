"""Of two values the one or the other by a flag, which nobody reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["selected"]

SMALL = 4096  # entries up to which a vector is taken together with others


def selected(ok: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    """``new`` where ``ok``, else ``old``, tensor by tensor; ``ok`` is 0-dim.

    Numbers and short vectors of a dtype are taken together: three kernels for all of them, where
    each has one of its own. A sparse tensor, which no ``where`` takes, is the new one.
    """
    found: list[Tensor] = list(new)
    groups: dict[torch.dtype, list[int]] = {}
    for n, (a, b) in enumerate(zip(new, old, strict=True)):
        if a is b or a.layout != torch.strided:
            continue
        short = a.dim() < 2 and a.numel() <= SMALL and a.shape == b.shape and a.dtype == b.dtype
        if short and a.is_contiguous() and b.is_contiguous():
            groups.setdefault(a.dtype, []).append(n)
        else:
            found[n] = torch.where(ok, a, b)
    for own in groups.values():
        if len(own) < 4:
            for n in own:
                found[n] = torch.where(ok, new[n], old[n])
            continue
        mine, theirs = (torch.cat([t[n].reshape(-1) for n in own]) for t in (new, old))
        shares = torch.where(ok, mine, theirs).split([new[n].numel() for n in own])
        for n, share in zip(own, shares, strict=True):
            found[n] = share.view(new[n].shape)
    return found
