"""``nn.MultiheadAttention`` as two layers: the packed input projections, and the output's.

The module hands its parameters to one function of torch's and calls no part of itself. So while
rows are recorded a call is made anew in three steps: a linear map to (q, k, v), torch's own
attention on them, and the output projection as a module of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kfac_lab.core.layers import Declined, Linear, Recorded, append_one
from kfac_lab.errors import CoverageError

__all__ = ["InProjection", "OutProjection", "claim"]

_CALL = inspect.signature(nn.MultiheadAttention.forward)


class OutProjection(Linear):
    """The output projection: a Linear ``[E, E+1]`` that the recorded call calls."""


@dataclass(frozen=True, eq=False)
class InProjection:
    """(q, k, v) = W ā, the packed projections of query, key and value: ``[3E, E+1]``.

    In self-attention a position has one row ā and one g for all three. Where query, key and value
    are not the same tensor each has positions of its own, at which the other two thirds of g are
    zero: G is then block-diagonal, and Ā the sum of the three.

    Positions are shared as in a Linear (expand, Eschenhagen et al. 2023).
    """

    module: nn.MultiheadAttention
    path: str

    @property
    def d_out(self) -> int:
        """3E, for an embedding of width E."""
        return 3 * self.module.embed_dim

    @property
    def d_in(self) -> int:
        """E, and the homogeneous 1 where there is a bias."""
        return self.module.embed_dim + (self.module.in_proj_bias is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """The packed weight, and the packed bias where there is one."""
        if self.module.in_proj_bias is None:
            return ("in_proj_weight",)
        return ("in_proj_weight", "in_proj_bias")

    def record(
        self, module: Any, args: tuple[Any, ...], named: Mapping[str, Any], output: Any
    ) -> Recorded:
        """The call in its three steps; ``inputs`` and ``watched`` are ``[N, S, ·]``.

        Raises:
            CoverageError: the call has no dimension of cases.
        """
        call = _CALL.bind(module, *args, **named)
        call.apply_defaults()
        given: dict[str, Any] = dict(call.arguments)
        query, key, value = given["query"], given["key"], given["value"]
        if query.dim() != 3:
            raise CoverageError(
                f"{self.path} is called on {tuple(query.shape)}, without a dimension of cases: "
                "give it three"
            )
        same = query is key and key is value
        first = 0 if module.batch_first else 1
        sources = [t if first == 0 else t.transpose(0, 1) for t in (query, key, value)]
        inputs = sources[0] if same else torch.cat(sources, 1)
        projected = functional.linear(inputs, module.in_proj_weight, module.in_proj_bias)
        thirds = projected.chunk(3, -1)
        if not same:  # of each third the positions of its own source
            lengths = [t.shape[1] for t in sources]
            thirds = tuple(t.split(lengths, 1)[n] for n, t in enumerate(thirds))
        mixed, weights = self._attend(module, [t.transpose(0, 1) for t in thirds], given)
        result = module.out_proj(mixed.transpose(0, 1))
        return Recorded(inputs, projected, (result.transpose(0, first), weights))

    @staticmethod
    def _attend(
        module: Any, projections: Sequence[Tensor], given: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Torch's attention on q, k, v ``[S, N, E]``: its projections are given the identity."""
        q, k, v = projections
        eye = torch.eye(module.embed_dim, dtype=q.dtype, device=q.device)
        return functional.multi_head_attention_forward(
            q,
            k,
            v,
            module.embed_dim,
            module.num_heads,
            None,
            None,
            module.bias_k,
            module.bias_v,
            module.add_zero_attn,
            module.dropout,
            eye,
            None,
            training=module.training,
            key_padding_mask=given["key_padding_mask"],
            need_weights=given["need_weights"],
            attn_mask=given["attn_mask"],
            use_separate_proj_weight=True,
            q_proj_weight=eye,
            k_proj_weight=eye,
            v_proj_weight=eye,
            average_attn_weights=given["average_attn_weights"],
            is_causal=given["is_causal"],
        )

    def rows_in(self, inputs: Tensor) -> Tensor:
        """ā of every position, ``[N, S, E+1]``."""
        return inputs if self.module.in_proj_bias is None else append_one(inputs)

    def rows_out(self, gradients: Tensor) -> Tensor:
        """The gradients at (q, k, v), ``[N, S, 3E]``."""
        return gradients

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Weight, and bias as the last column."""
        if self.module.in_proj_bias is None:
            return tensors[0].clone()
        return torch.cat([tensors[0], tensors[1].unsqueeze(1)], dim=1)

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """Weight and bias."""
        if self.module.in_proj_bias is None:
            return (matrix,)
        return matrix[:, :-1], matrix[:, -1]


def claim(module: nn.MultiheadAttention, path: str) -> Any:
    """The two layers, or why there are none.

    ``bias_k`` and ``bias_v``, of add_bias_kv, are no part of a matrix: they go to the fallback.
    """
    if module.in_proj_weight is None:
        return Declined(
            "with kdim or vdim the weights of query, key and value are apart and share one bias, "
            "which is no matrix"
        )
    layer = InProjection(module, path)
    if not all(getattr(module, name).requires_grad for name in layer.names):
        return Declined("its input projections are frozen in part: freeze both or none")
    out = OutProjection(module.out_proj, f"{path}.out_proj" if path else "out_proj")
    return layer, out
