"""Embeddings, normalisation, attention and recurrence as layers of ``kfac_lab``: the claims.

By type, where a subclass that computes the same is its parent; then by structure: a module seen to
be affine, or to scale and shift, or to give rows of a table, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from kfac_lab import hookimpl
from kfac_lab.core.claims import ByStructure, computes_as
from kfac_lab_layers import attention, bag, embedding, recurrent, scale_shift
from kfac_lab_layers.affine import Affine
from kfac_lab_layers.attention import InProjection, OutProjection
from kfac_lab_layers.bag import Bag
from kfac_lab_layers.bare import bare
from kfac_lab_layers.elementwise import Elementwise, elementwise
from kfac_lab_layers.embedding import Embedding
from kfac_lab_layers.lookup import Lookup, lookup
from kfac_lab_layers.per_gate import PerGate
from kfac_lab_layers.recurrent import Gates
from kfac_lab_layers.scale_shift import ScaleShift
from kfac_lab_layers.structure import affine

__all__ = [
    "Affine",
    "Bag",
    "Elementwise",
    "Embedding",
    "Gates",
    "InProjection",
    "Lookup",
    "OutProjection",
    "PerGate",
    "ScaleShift",
    "kfac_claim_layer",
    "kfac_register_blocks",
]

CLAIMS: dict[type[nn.Module], Callable[[Any, str], Any]] = {
    nn.Embedding: embedding.claim,
    nn.EmbeddingBag: bag.claim,
    nn.MultiheadAttention: attention.claim,
    **dict.fromkeys(scale_shift.NORMALISED, ScaleShift),
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), recurrent.claim),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), recurrent.claim_cell),
}

# Claimed elsewhere, or read by their owner and never called.
_OTHERS = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


@hookimpl
def kfac_claim_layer(module: nn.Module, path: str) -> Any:
    """The Layer, or Layers, of a module that is claimed here; None for any other."""
    kind = computes_as(module)
    claim = CLAIMS.get(kind)
    if claim is not None:
        return claim(module, path)
    if kind in _OTHERS or kind is object or next(module.parameters(), None) is None:
        return None
    for found in (lookup, affine, elementwise):
        layer = found(module, path)
        if layer is not None:
            return ByStructure(layer)
    alone = bare(module, path)
    return ByStructure(alone) if alone else None


@hookimpl
def kfac_register_blocks(register: Callable[..., None]) -> None:
    """The block of a recurrent layer's gates."""
    register(
        "per_gate",
        PerGate,
        summary="Ā ⊗ G_j for each gate of an LSTM or a GRU",
        reference="Martens, Ba & Johnson 2018",
    )
