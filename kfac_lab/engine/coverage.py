"""The coverage table: what becomes of each parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kfac_lab.core.capture import CoverageRow, Network
from kfac_lab.core.passes import Passes

__all__ = ["coverage_of"]


def coverage_of(network: Network, passes: Passes, blocks: Sequence[Any]) -> list[CoverageRow]:
    """One row per parameter: layer, block, who claimed it, chain, tangent path."""
    chain_of = {
        i: f"{c + 1}.{n + 1}" for c, chain in enumerate(passes.chains) for n, i in enumerate(chain)
    }
    rows = []
    for i, (use, block) in enumerate(zip(network.uses, blocks, strict=True)):
        for name in use.parameters:
            rows.append(
                CoverageRow(
                    parameter=name,
                    layer=use.layer.path or type(use.layer.module).__name__,
                    kind=type(use.layer).__name__,
                    block=type(block).__name__,
                    claimed_by=use.claimed_by,
                    chain=chain_of.get(i, "-"),
                    tangents=passes.tangent_path,
                    rows=passes.rows_text(i),
                )
            )
    for name in network.left:
        rows.append(CoverageRow(name, "-", "left", "-", "-", "-", "-"))
    for name in network.frozen:
        rows.append(CoverageRow(name, "-", "frozen", "-", "-", "-", "-"))
    return rows
