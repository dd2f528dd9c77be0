"""``nn.Embedding``: a Linear whose inputs are one-hot rows, so Ā is diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from kfac_lab.core.layers import Declined

__all__ = ["Embedding", "claim"]


@dataclass(frozen=True, eq=False)
class Embedding:
    """y = W e_token, with W the module's weight transposed: ``[d, V]`` for a vocabulary of V.

    Ā = diag(counts of each token per case). ``kronecker`` keeps just that where V is above 256; a
    dense Ā holds the same numbers in V × V. Tokens that did not occur have only the damping.

    The row of ``padding_idx`` is zero, as torch never trains it.
    """

    module: nn.Embedding
    path: str
    one_hot: ClassVar[bool] = True

    @property
    def d_out(self) -> int:
        """d, the width of the embedding."""
        return self.module.embedding_dim

    @property
    def d_in(self) -> int:
        """V, the size of the vocabulary."""
        return self.module.num_embeddings

    @property
    def names(self) -> tuple[str, ...]:
        """The table of vectors."""
        return ("weight",)

    def rows_in(self, inputs: Tensor) -> Tensor:
        """One-hot rows ``[N, S, V]`` of token numbers ``[N, ...]``, as a sparse COO tensor."""
        tokens = inputs.reshape(inputs.shape[0], -1).long()
        cases, positions = tokens.shape
        case = torch.arange(cases, device=tokens.device).repeat_interleave(positions)
        position = torch.arange(positions, device=tokens.device).repeat(cases)
        flat = tokens.reshape(-1)
        values = torch.ones_like(flat, dtype=self.module.weight.dtype)
        if self.module.padding_idx is not None:
            values = values * (flat != self.module.padding_idx)
        return torch.sparse_coo_tensor(
            torch.stack([case, position, flat]),
            values,
            (cases, positions, self.d_in),
            check_invariants=False,  # torch has looked the tokens up already
            is_coalesced=True,
        )

    def rows_out(self, gradients: Tensor) -> Tensor:
        """The gradient at the vectors looked up, ``[N, S, d]``."""
        return gradients.reshape(gradients.shape[0], -1, gradients.shape[-1])

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """The table transposed, ``[d, V]``."""
        return tensors[0].t().clone(memory_format=torch.contiguous_format)

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """The table ``[V, d]``."""
        return (matrix.t(),)


def claim(module: nn.Embedding, path: str) -> Embedding | Declined:
    """The layer, or why there is none."""
    if module.sparse:
        return Declined("sparse=True makes gradients that K-FAC cannot use: sparse=False", False)
    if module.max_norm is not None:
        return Declined(
            "max_norm rewrites the table in every forward pass, those of a trial step included: "
            "max_norm=None",
            False,
        )
    if module.scale_grad_by_freq:
        return Declined(
            "scale_grad_by_freq makes torch's gradient another than the objective's: "
            "scale_grad_by_freq=False",
            False,
        )
    return Embedding(module, path)
