"""The coverage table: what becomes of each parameter."""

from __future__ import annotations

from dataclasses import fields

from kfac_lab.core.capture import CoverageRow, Network
from kfac_lab.core.passes import Passes
from kfac_lab.engine.parts import Parts

__all__ = ["coverage_of"]


def _named(parts: Parts, layer: int) -> str:
    """The block's class, and what was changed of it to fit the layer's size."""
    block = parts.blocks[layer]
    name = type(block).__name__
    if layer not in parts.fitted:
        return name
    default = type(block)()
    own = {f.name: getattr(block, f.name) for f in fields(block)}
    changed = [f"{k}={v!r}" for k, v in own.items() if v != getattr(default, k)]
    return f"{name}({', '.join(changed)})"


def coverage_of(network: Network, passes: Passes, parts: Parts) -> list[CoverageRow]:
    """One row per parameter: layer, block, who claimed it, chain, tangent path."""
    chain_of = {
        i: f"{c + 1}.{n + 1}" for c, chain in enumerate(passes.chains) for n, i in enumerate(chain)
    }
    rows = []
    for i, use in enumerate(network.uses):
        for name in use.parameters:
            rows.append(
                CoverageRow(
                    parameter=name,
                    layer=use.layer.path or type(use.layer.module).__name__,
                    kind=type(use.layer).__name__,
                    block=_named(parts, i),
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
