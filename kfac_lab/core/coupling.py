"""Modules that normalise over the batch: what a network makes of a case depends on the others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

__all__ = ["normalises", "normalising"]

_BatchNorm = nn.modules.batchnorm._BatchNorm


def normalising(model: nn.Module) -> tuple[nn.Module, ...]:
    """The modules of a network that may normalise over the batch."""
    return tuple(m for m in model.modules() if isinstance(m, _BatchNorm))


def normalises(modules: Sequence[nn.Module]) -> bool:
    """Whether one of them does so now: in training mode, whatever the model's own mode is, and
    without running statistics in eval mode too.
    """
    return any(m.training or (m.running_mean is None and m.running_var is None) for m in modules)
