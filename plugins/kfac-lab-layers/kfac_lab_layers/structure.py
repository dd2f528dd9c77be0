"""Modules told by what they compute: tried on random inputs, with their own parameters and others.

Only a leaf without buffers is tried, by its ``forward`` alone, so that no hook runs; the generator
is left as it was. A module that fails on such inputs is none that is known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kfac_lab_layers.affine import Affine

__all__ = ["affine", "leaf", "replaced", "tried"]


def leaf(module: nn.Module) -> bool:
    """Whether there is nothing below it, and nothing that a call may change."""
    held = [b for b in module._buffers.values() if b is not None]
    return not held and not any(True for _ in module.children())


@contextmanager
def replaced(module: Any, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Other tensors in place of the module's own parameters, for as long as the block lasts."""
    own = vars(module)
    before = {name: own[name] for name in tensors if name in own}
    own.update(tensors)  # found before the registered parameter of that name
    try:
        yield
    finally:
        for name in tensors:
            del own[name]
        own.update(before)


def tried(
    module: Any, shapes: Sequence[tuple[int, ...]], tensors: Mapping[str, Tensor]
) -> list[tuple[Tensor, Tensor] | None]:
    """(x, module(x)) for random x of each shape; None where it fails or gives no tensor."""
    like = next(module.parameters())
    found: list[tuple[Tensor, Tensor] | None] = []
    for n, shape in enumerate(shapes):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(n)).to(like)
        try:
            with torch.no_grad(), torch.random.fork_rng([]), replaced(module, tensors):
                out = module.forward(x)
        except Exception:  # whatever somebody's own code raises on an input that is not its own
            out = None
        found.append((x, out) if isinstance(out, Tensor) else None)
    return found


def affine(module: Any, path: str) -> Affine | None:
    """y = W x + b on the last dimension, W kept as ``[out, in]`` or as ``[in, out]``.

    The Linear of ``torch_geometric`` is one, and the ``Conv1D`` of GPT-2.
    """
    held = dict(module.named_parameters(recurse=False))
    matrices = [name for name, p in held.items() if p.dim() == 2]
    vectors = [name for name, p in held.items() if p.dim() == 1]
    if len(matrices) != 1 or len(vectors) != len(held) - 1 or len(vectors) > 1:
        return None
    (weight,), bias = matrices, vectors[0] if vectors else None
    for transposed in (False, True):
        layer = Affine(module, path, weight, bias, transposed)
        W = held[weight].detach().t() if transposed else held[weight].detach()
        b = None if bias is None else held[bias].detach()
        if b is not None and len(b) != len(W):
            continue
        pairs = tried(module, [(3, W.shape[1]), (2, 3, W.shape[1])], {})
        if all(_close(pair, lambda x, W=W, b=b: functional.linear(x, W, b)) for pair in pairs):
            return layer
    return None


def _close(pair: tuple[Tensor, Tensor] | None, expected: Any) -> bool:
    if pair is None or pair[0].is_meta:
        return False
    wanted = expected(pair[0])
    return pair[1].shape == wanted.shape and torch.allclose(pair[1], wanted, 1e-4, 1e-5)
