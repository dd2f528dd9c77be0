"""The one function that reads from a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["host", "transfer"]


def host(tensors: Sequence[Tensor]) -> list[float]:
    """Read 0-dim tensors as Python floats: the only function that may read from a device.

    One transfer, however many tensors (one for each device, should they lie on several). Values
    pass through float64, so counts and float64 strengths arrive exact.
    """
    return transfer(tensors)  # whoever counts reads, or answers them, stands in for that one


def transfer(tensors: Sequence[Tensor]) -> list[float]:
    """What :func:`host` does."""
    kinds = {(tensor.device, tensor.dtype) for tensor in tensors}
    if len(kinds) == 1:
        stack = torch.stack([tensor.detach().reshape(()) for tensor in tensors])
        values: list[float] = stack.to(torch.float64).tolist()
        return values
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
