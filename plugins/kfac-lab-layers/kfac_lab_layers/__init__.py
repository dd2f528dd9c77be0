"""Embeddings, normalisation and attention as layers of ``kfac_lab``: the claims, by exact type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from kfac_lab import hookimpl
from kfac_lab.core.claims import computes_as
from kfac_lab_layers import attention, embedding, recurrent, scale_shift
from kfac_lab_layers.attention import InProjection, OutProjection
from kfac_lab_layers.embedding import Embedding
from kfac_lab_layers.recurrent import Gates
from kfac_lab_layers.scale_shift import ScaleShift

__all__ = ["Embedding", "Gates", "InProjection", "OutProjection", "ScaleShift", "kfac_claim_layer"]

CLAIMS: dict[type[nn.Module], Callable[[Any, str], Any]] = {
    nn.Embedding: embedding.claim,
    nn.MultiheadAttention: attention.claim,
    **dict.fromkeys(scale_shift.NORMALISED, ScaleShift),
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), recurrent.claim),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), recurrent.claim_cell),
}


@hookimpl
def kfac_claim_layer(module: nn.Module, path: str) -> Any:
    """The Layer, or Layers, of a module that is claimed here; None for any other."""
    claim = CLAIMS.get(computes_as(module))
    return None if claim is None else claim(module, path)
