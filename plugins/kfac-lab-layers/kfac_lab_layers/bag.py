"""``nn.EmbeddingBag``: a Linear on the counts of each token, one row a case (Osawa et al. 2019)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.layers import Declined, Recorded
from kfac_lab.errors import CoverageError
from kfac_lab_layers import embedding
from kfac_lab_layers.embedding import Embedding

__all__ = ["Bag", "claim"]

_CALL = inspect.signature(nn.EmbeddingBag.forward)


@dataclass(frozen=True, eq=False)
class Bag(Embedding):
    """y = W ā with ā the counts of each token, weighted or divided by their number: ``[d, V]``.

    Linear, with one row for each case: as exact as a Linear's block. Ā is not diagonal, as an
    Embedding's is: tokens of one bag come together. ``kronecker(factor_a="diagonal")`` keeps the
    diagonal.
    """

    module: Any

    def record(
        self, module: Any, args: tuple[Any, ...], named: Mapping[str, Any], output: Any
    ) -> Recorded:
        """The call with its counts ``[N, 1, V]``, a sparse COO tensor, as inputs."""
        call = _CALL.bind(module, *args, **named).arguments
        rows = self._counts(call["input"], call.get("offsets"), call.get("per_sample_weights"))
        watched = output.clone() if output.requires_grad and output._is_view() else output
        return Recorded(rows, watched, watched)

    def rows_in(self, inputs: Tensor) -> Tensor:
        """Counts ``[N, 1, V]`` as recorded; or of bags ``[N, L]`` of token numbers."""
        return inputs if inputs.is_sparse else self._counts(inputs, None, None)

    def tangent(
        self, matrices: Sequence[Tensor], inputs: Tensor, tangents: Tensor | None
    ) -> Tensor:
        """V ā for each V, ``[k, N, d]``; tokens have no tangents (appendix C)."""
        rows = self.rows_in(inputs)
        place, size = rows.indices()[::2], (len(rows), self.d_in)
        flat = torch.sparse_coo_tensor(place, rows.values(), size, check_invariants=False)
        return torch.stack([torch.sparse.mm(flat, matrix.t()) for matrix in matrices])

    def pullback(self, gradients: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Tokens have no gradient."""
        raise NotImplementedError("an EmbeddingBag is the first of its network")

    def _counts(self, tokens: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        module = self.module
        if tokens.dim() == 2:
            bags = tokens.shape[0]
            bag = torch.arange(bags, device=tokens.device).repeat_interleave(tokens.shape[1])
        else:
            if offsets is None:
                raise CoverageError(
                    f"{self.path} (EmbeddingBag) is called without offsets: give them"
                )
            bags = len(offsets) - module.include_last_offset
            places = torch.arange(len(tokens), device=tokens.device)
            bag = torch.searchsorted(offsets[:bags].contiguous(), places, right=True) - 1
        flat = tokens.reshape(-1).long()
        values = torch.ones_like(flat, dtype=module.weight.dtype)
        if weights is not None:
            values = weights.detach().reshape(-1).to(values)
        if module.padding_idx is not None:
            values = values * (flat != module.padding_idx)
        if module.mode == "mean":
            count = values.new_zeros(bags).index_add_(0, bag, (values != 0).to(values))
            values = values / count.clamp(min=1)[bag]
        place = torch.stack([bag, torch.zeros_like(bag), flat])
        size = (bags, 1, self.d_in)
        return torch.sparse_coo_tensor(place, values, size, check_invariants=False).coalesce()


def claim(module: Any, path: str) -> Bag | Declined:
    """The layer, or why there is none."""
    if module.mode == "max":
        return Declined("mode='max' takes each number from a token of its own, which is no matrix")
    refused = embedding.claim(module, path)
    return refused if isinstance(refused, Declined) else Bag(module, path)
