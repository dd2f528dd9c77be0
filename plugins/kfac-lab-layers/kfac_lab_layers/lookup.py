"""Embeddings with a ``forward`` of their own, which give rows of their table all the same.

Which rows a call gives is read off a call with row numbers in place of the table. Where the rows
are those of positions alone (``[T, d]``, of tokens ``[N, T]``) they are the same for all cases;
while rows are recorded each case gets a copy, so that its gradient is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.layers import Recorded
from kfac_lab.errors import CoverageError
from kfac_lab_layers.embedding import Embedding
from kfac_lab_layers.structure import leaf, replaced

__all__ = ["Lookup", "lookup"]


@dataclass(frozen=True, eq=False)
class Lookup(Embedding):
    """Rows of a table by a forward of its own: as :class:`Embedding`."""

    def record(
        self, module: Any, args: tuple[Any, ...], named: Mapping[str, Any], output: Any
    ) -> Recorded:
        """The call with its row numbers as inputs, a row for each case.

        Raises:
            CoverageError: the output is made of something else than rows of the table.
        """
        numbers = _numbers(module, args, named)
        table: Tensor = module.weight
        given = next((a for a in (*args, *named.values()) if isinstance(a, Tensor)), None)
        if numbers is None or not isinstance(output, Tensor) or given is None:
            raise CoverageError(
                f"{self.path} ({type(module).__name__}) gives no rows of its table: claim it by a "
                "plugin, or freeze its parameters with requires_grad_(False)"
            )
        cases = given.shape[0]
        if numbers.dim() < given.dim():
            numbers = numbers.expand(cases, *numbers.shape)
        rows = nn.functional.embedding(numbers, table)
        watched = rows.expand(cases, *rows.shape[1:]) if len(rows) == 1 else rows
        return Recorded(numbers.expand(watched.shape[:-1]), watched, watched)


def _numbers(module: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor | None:
    """Which row of the table each row of the output is; None where that is no row."""
    table: Tensor = module.weight.detach()
    marks = torch.arange(len(table), dtype=torch.float64, device=table.device)
    with torch.no_grad(), replaced(module, {"weight": marks[:, None].expand(table.shape)}):
        out = module.forward(*args, **named)
    if not isinstance(out, Tensor) or out.shape[-1:] != table.shape[1:]:
        return None
    return out[..., 0].round().long()


def lookup(module: Any, path: str) -> Lookup | None:
    """The layer of an Embedding that gives rows of its table, as a trial shows."""
    if not isinstance(module, nn.Embedding) or not leaf(module) or module.weight.is_meta:
        return None
    held = dict(module.named_parameters(recurse=False))
    if set(held) != {"weight"} or module.sparse or module.max_norm is not None:
        return None
    tokens = torch.arange(min(3, module.num_embeddings), device=module.weight.device)
    given = (tokens.expand(2, -1),)
    try:
        with torch.no_grad(), torch.random.fork_rng([]):
            out, numbers = module.forward(*given), _numbers(module, given, {})
    except Exception:  # whatever somebody's own code raises on tokens that are not its own
        return None
    if numbers is None or bool((numbers < 0).any() | (numbers >= module.num_embeddings).any()):
        return None
    return Lookup(module, path) if torch.equal(out, module.weight.detach()[numbers]) else None
