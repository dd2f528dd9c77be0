"""J·v through any model: forward mode, or backward twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.passes.function import Function
from kfac_lab.core.vector import Vec

__all__ = ["PATHS", "jacobian_products", "raised"]

PATHS = ("forward", "double_backward")  # in the order in which they are tried


def jacobian_products(
    path: str, function: Function, theta: list[Tensor], inputs: Tensor, basis: Sequence[Vec]
) -> tuple[Tensor, Tensor]:
    """Outputs ``[n, ...]`` and J·v for each v of ``basis`` ``[k, n, ...]``."""
    directions = [function.network.unpack(v) for v in basis]
    buffers = function.buffers()

    def outputs_at(parameters: list[Tensor]) -> Tensor:
        copies = {n: b.clone() for n, b in buffers.items()}
        out: Tensor = function(parameters, copies, inputs)
        return out

    with _math_attention():
        way = _forward if path == "forward" else _double_backward
        outputs, products = way(outputs_at, theta, directions)
    return raised(outputs), raised(products)


def raised(values: Tensor) -> Tensor:
    """Values of half a word in float32: losses and their curvature are not taken in less."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _forward(function: Any, theta: list[Tensor], directions: Any) -> tuple[Tensor, Tensor]:
    def push(direction: list[Tensor]) -> tuple[Tensor, Tensor]:
        pushed: Any = torch.func.jvp(function, (theta,), (direction,))
        return pushed[0], pushed[1]

    stacked = [torch.stack(group) for group in zip(*directions, strict=True)]
    outputs, products = torch.func.vmap(push, randomness="same")(stacked)
    return outputs[0].detach(), products.detach()


def _double_backward(function: Any, theta: list[Tensor], directions: Any) -> tuple[Tensor, Tensor]:
    leaves = [t.detach().requires_grad_() for t in theta]
    with torch.enable_grad():
        outputs = function(leaves)
        weights = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, leaves, weights, create_graph=True, allow_unused=True)
        rows: list[Tensor] = []
        for direction in directions:
            pairs = [(p, d) for p, d in zip(pulled, direction, strict=True) if p is not None]
            total = torch.stack([(p * d).sum() for p, d in pairs]).sum()
            rows.append(torch.autograd.grad(total, weights, retain_graph=True)[0])
    return outputs.detach(), torch.stack(rows).detach()


@contextlib.contextmanager
def _math_attention() -> Iterator[None]:
    """Forward-mode products exist for the MATH kernel of attention only, and not on the fast path
    that torch's attention modules take in eval mode.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
