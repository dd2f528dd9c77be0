"""Convolutions for kfac_lab: claims ``nn.Conv{1,2,3}d`` and ``nn.ConvTranspose{1,2,3}d``.

Their rows are those of KFAC-expand, which is KFC (Grosse & Martens 2016; arXiv:2311.00636);
the block ``kronecker_reduce`` makes KFAC-reduce of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from kfac_lab import hookimpl
from kfac_lab.core.claims import computes_as
from kfac_lab_conv.layers import Convolution, TransposedConvolution
from kfac_lab_conv.reduce import KroneckerReduce

__all__ = ["Convolution", "KroneckerReduce", "TransposedConvolution"]

kfac_lab_api = 1

_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@hookimpl
def kfac_claim_layer(module: Any, path: str) -> Convolution | TransposedConvolution | None:
    """By exact type, and a subclass that overrides nothing of the computation."""
    kind = computes_as(module)
    if kind in _PLAIN:
        return Convolution(module, path)
    if kind in _TRANSPOSED:
        return TransposedConvolution(module, path)
    return None


@hookimpl
def kfac_register_blocks(register: Callable[..., None]) -> None:
    """KFAC-reduce."""
    register(
        "kronecker_reduce",
        KroneckerReduce,
        summary="KFAC-reduce: rows of a case summed over positions",
        reference="Eschenhagen et al. 2023",
    )
