"""What targets must have: shapes, types, and ranges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.likelihood.protocol import Flaw
from kfac_lab.errors import DataError

__all__ = [
    "beyond",
    "check_classes",
    "check_real",
    "class_numbers",
    "one_tensor",
    "per_case",
    "refuses_numbers",
    "unknown_numbers",
]


def per_case(values: Tensor) -> Tensor:
    """Sum over everything but the cases."""
    return values.flatten(1).sum(1) if values.dim() > 1 else values


def one_tensor(targets: Any) -> None:
    """Targets of a likelihood of one tensor.

    Raises:
        DataError: they are a dict or a tuple.
    """
    if not isinstance(targets, Tensor):
        raise DataError(
            f"targets are a {type(targets).__name__}, and the likelihood takes one tensor of them: "
            "give it, or a Joint with a likelihood for each"
        )


def check_real(outputs: Tensor, targets: Tensor) -> None:
    """Real targets, one for each output: a target of another shape would be broadcast silently."""
    one_tensor(targets)
    if targets.shape != outputs.shape:
        raise DataError(
            f"targets of shape {tuple(targets.shape)} came with outputs of shape "
            f"{tuple(outputs.shape)}: give one target for each output"
        )
    if not targets.is_floating_point():
        raise DataError(f"targets are {targets.dtype}: give real numbers, targets.float()")


def check_classes(outputs: Tensor, targets: Tensor, dim: int) -> None:
    """Probabilities of the outputs' shape, or class numbers without the classes' dimension."""
    one_tensor(targets)
    wanted = list(outputs.shape)
    wanted.pop(dim)
    if targets.is_floating_point():
        if targets.shape != outputs.shape:
            raise DataError(
                f"real targets are probabilities and need the outputs' shape "
                f"{tuple(outputs.shape)}, not {tuple(targets.shape)}: give those, or class "
                "numbers, targets.long()"
            )
    elif targets.dtype != torch.int64:
        raise DataError(f"class numbers are torch.int64, not {targets.dtype}: targets.long()")
    elif list(targets.shape) != wanted:
        other = list(outputs.shape)
        other.pop(1 if dim == -1 else -1)
        hint = ""
        if list(targets.shape) == other and outputs.dim() > 2:
            hint = (
                "; these fit classes in dimension 1, as torch has them: use "
                "nn.CrossEntropyLoss() in place of 'categorical', or outputs.movedim(1, -1)"
                if dim == -1
                else "; these fit classes in the last dimension: use likelihood='categorical' in "
                "place of torch's loss, or outputs.movedim(-1, 1)"
            )
        raise DataError(
            f"class numbers of shape {tuple(targets.shape)} came with outputs of shape "
            f"{tuple(outputs.shape)}: they need shape {tuple(wanted)}{hint}"
        )


def refuses_numbers(device: torch.device) -> bool:
    """Whether a device says so where a class number is none, and goes on."""
    return device.type in ("cpu", "meta")


def class_numbers(targets: Tensor, classes: int, dim: int) -> Tensor:
    """Class numbers with the classes' dimension, as gather and scatter take them.

    An accelerator would be lost for good by a number that is no class: there they are clamped, and
    the flaw is told by the step's flag.
    """
    if not refuses_numbers(targets.device):
        targets = targets.clamp(0, classes - 1)
    return targets.unsqueeze(dim)


def beyond(
    targets: Tensor, low: float | None, high: float | None, says: Callable[[float, float], str]
) -> list[Flaw]:
    """Real targets that are NaN or infinite, or beyond the bounds; ``says`` takes their range."""
    one_tensor(targets)
    if targets.is_meta or not targets.numel():
        return []
    least, most = targets.detach().aminmax()  # both are NaN where any is
    finite = torch.isfinite(least) & torch.isfinite(most)
    inside = torch.ones_like(finite)
    if low is not None:
        inside = inside & (least >= low)
    if high is not None:
        inside = inside & (most <= high)
    return [
        Flaw(
            ~finite,
            lambda: (
                f"targets hold {int((~torch.isfinite(targets)).sum())} numbers that are NaN or "
                f"infinite, of {targets.numel()}: leave those cases out, or give them weight 0 "
                "and any finite number"
            ),
        ),
        Flaw(~inside, lambda: says(float(least), float(most))),
    ]


def unknown_numbers(targets: Tensor, classes: int | None, ignored: int | None) -> list[Flaw]:
    """Class numbers below 0, or not below ``classes``; ``ignored`` is none of them."""
    if targets.is_meta or not targets.numel():
        return []
    wrong = targets < 0 if classes is None else (targets < 0) | (targets >= classes)
    if ignored is not None:
        wrong = wrong & (targets != ignored)

    def says() -> str:
        seen = targets[wrong]
        bounds = "from 0 on" if classes is None else f"from 0 to {classes - 1}"
        having = "" if classes is None else f", the model having {classes} outputs"
        but = "" if ignored is None else f", or are {ignored} to be ignored"
        return (
            f"class numbers go {bounds}{but}{having}, and {len(seen)} of the {targets.numel()} "
            f"targets do not: the first is {int(seen[0])}"
        )

    return [Flaw(wrong.any(), says)]
