"""What a commit is made of where nobody has looked at the step: the old value unless it is ok."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kfac_lab.core import trees
from kfac_lab.core.select import selected as gated
from kfac_lab.core.state import GATED, State
from kfac_lab.core.vector import Vec

__all__ = ["gated", "gated_state"]


def gated_state(ok: Tensor, new: State, old: State) -> State:
    """``new`` where ``ok``; else the tensors of ``old``, but for the moments, k and the clock."""
    before = old.previous
    if before is None and new.previous is not None:
        before = Vec([torch.zeros_like(m) for m in new.previous])
    own = {name: getattr(new, name) for name in GATED}
    was = {**{name: getattr(old, name) for name in GATED}, "previous": before}
    return replace(new, **trees.where(ok, own, was))
