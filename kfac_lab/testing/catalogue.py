"""Modules and losses of torch, small and with inputs, to ask a plugin what it claims."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.testing.subjects import normal

__all__ = ["Called", "Example", "calls", "losses", "modules", "tensor_of"]


@dataclass(frozen=True, eq=False)
class Example:
    """A module and what it is called with; the first dimension of each input is the cases."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Called:
    """What a part of an example's module was called with; ``None`` where it was not called."""

    path: str
    module: nn.Module
    args: tuple[Any, ...] | None


def _x(*shape: int, seed: int = 1) -> Tensor:
    return normal(*shape, seed=seed).float()


def modules() -> Iterator[Example]:
    """The modules of torch that have parameters, with the options that change their rows."""
    n = 5
    images, sounds, volumes = _x(n, 4, 6, 5), _x(n, 4, 8), _x(n, 2, 4, 4, 3)
    words = torch.arange(n * 3).reshape(n, 3) % 7
    made: list[tuple[str, nn.Module, tuple[Any, ...]]] = [
        ("Linear", nn.Linear(4, 3), (_x(n, 4),)),
        ("Linear without bias, 2 positions", nn.Linear(4, 3, bias=False), (_x(n, 2, 4),)),
        ("Conv1d", nn.Conv1d(4, 3, 3), (sounds,)),
        ("Conv1d, stride 2, padding", nn.Conv1d(4, 3, 3, stride=2, padding=1), (sounds,)),
        ("Conv1d, circular", nn.Conv1d(4, 3, 3, padding=1, padding_mode="circular"), (sounds,)),
        ("Conv2d", nn.Conv2d(4, 3, 3), (images,)),
        ("Conv2d without bias, 1x1", nn.Conv2d(4, 3, 1, bias=False), (images,)),
        ("Conv2d, dilation", nn.Conv2d(4, 3, (3, 2), padding="same", dilation=2), (images,)),
        ("Conv2d, 2 groups, stride", nn.Conv2d(4, 6, 3, groups=2, stride=(2, 1)), (images,)),
        ("Conv2d, depthwise", nn.Conv2d(4, 4, 3, groups=4, padding=1), (images,)),
        ("Conv3d", nn.Conv3d(2, 3, 2), (volumes,)),
        ("ConvTranspose1d, stride", nn.ConvTranspose1d(4, 3, 3, stride=2), (sounds,)),
        ("ConvTranspose2d", nn.ConvTranspose2d(4, 3, 2, padding=1), (images,)),
        (
            "ConvTranspose2d, 2 groups, stride, dilation, output padding",
            nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, dilation=2, output_padding=1),
            (images,),
        ),
        ("ConvTranspose3d", nn.ConvTranspose3d(2, 3, 2, bias=False), (volumes,)),
        ("Embedding", nn.Embedding(7, 4), (words,)),
        ("Embedding with a padding index", nn.Embedding(7, 4, padding_idx=0), (words,)),
        ("LayerNorm", nn.LayerNorm(4), (_x(n, 2, 4),)),
        ("LayerNorm over two dimensions", nn.LayerNorm([2, 4]), (_x(n, 2, 4),)),
        ("BatchNorm1d", nn.BatchNorm1d(4), (_x(n, 4),)),
        ("BatchNorm2d", nn.BatchNorm2d(4), (images,)),
        ("GroupNorm", nn.GroupNorm(2, 4), (images,)),
        ("InstanceNorm2d", nn.InstanceNorm2d(4, affine=True), (images,)),
        ("PReLU", nn.PReLU(4), (_x(n, 4),)),
        ("Bilinear", nn.Bilinear(4, 3, 2), (_x(n, 4), _x(n, 3, seed=2))),
        ("LSTM", nn.LSTM(4, 3, batch_first=True), (_x(n, 2, 4),)),
        ("GRU", nn.GRU(4, 3, batch_first=True), (_x(n, 2, 4),)),
    ]  # fmt: skip
    if hasattr(nn, "RMSNorm"):
        made.append(("RMSNorm", nn.RMSNorm(4), (_x(n, 2, 4),)))
    x = _x(n, 3, 4)
    made.append(("MultiheadAttention", nn.MultiheadAttention(4, 2, batch_first=True), (x, x, x)))
    made.append(
        (
            "MultiheadAttention across",
            nn.MultiheadAttention(4, 2, batch_first=True, bias=False),
            (x, _x(n, 2, 4, seed=3), _x(n, 2, 4, seed=4)),
        )
    )
    for seed, (name, module, inputs) in enumerate(made):
        yield Example(name, _filled(module, seed), inputs)


def _filled(module: nn.Module, seed: int) -> nn.Module:
    """The module with parameters of a seed, near to those that it was made with in size."""
    with torch.no_grad():
        for n, parameter in enumerate(module.parameters()):
            size = max(parameter[0].numel() if parameter.dim() > 1 else 1, 1)
            drawn = normal(*parameter.shape, seed=1000 * seed + n) / size**0.5
            parameter.copy_(drawn + (parameter.dim() == 1))
    return module


def calls(example: Example) -> list[Called]:
    """Each part with parameters of its own, and what it is called with as the example runs."""
    seen: dict[int, tuple[Any, ...]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda m, args: seen.setdefault(id(m), args) and None)
        for module in example.module.modules()
    ]
    was_training = example.module.training
    try:
        with torch.no_grad():  # training: in evaluation some modules take a path of their own
            example.module.train()
            buffers = {n: b.clone() for n, b in example.module.named_buffers()}
            example.module(*example.inputs)
            for name, buffer in example.module.named_buffers():
                buffer.copy_(buffers[name])
    finally:
        example.module.train(was_training)
        for hook in hooks:
            hook.remove()
    return [
        Called(path, module, seen.get(id(module)))
        for path, module in example.module.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]


def tensor_of(output: Any) -> Tensor:
    """The first tensor of what a module gives."""
    while isinstance(output, (tuple, list)):
        output = output[0]
    found: Tensor = output
    return found


def losses() -> Iterator[tuple[str, nn.Module, Tensor, Tensor]]:
    """Losses of torch with outputs and targets."""
    z, y = _x(6, 3), _x(6, 3, seed=2)
    classes, counts = torch.arange(6) % 3, torch.arange(18).reshape(6, 3).float() % 4
    yield "MSELoss", nn.MSELoss(), z, y
    yield "L1Loss", nn.L1Loss(), z, y
    yield "SmoothL1Loss", nn.SmoothL1Loss(), z, y
    yield "HuberLoss", nn.HuberLoss(), z, y
    yield "BCEWithLogitsLoss", nn.BCEWithLogitsLoss(), z, torch.sigmoid(y)
    yield "CrossEntropyLoss", nn.CrossEntropyLoss(), z, classes
    yield "PoissonNLLLoss", nn.PoissonNLLLoss(), z, counts
    yield "SoftMarginLoss", nn.SoftMarginLoss(), z, torch.sign(y)
