"""KFAC-reduce as a block: for parameters whose positions are summed or averaged before the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import kfac_lab as kl
from kfac_lab.core.protocols import Moments, PartState
from kfac_lab.core.state import DampingStrength
from kfac_lab.core.traits import BlockTraits, traits

__all__ = ["KroneckerReduce"]


@dataclass(frozen=True)
class _Renamed:
    """The reduced moments under the names that the inner block knows."""

    moments: Moments

    def __getitem__(self, name: str) -> Tensor:
        return self.moments[f"{name}.reduced"]

    def __contains__(self, name: str) -> bool:
        return f"{name}.reduced" in self.moments


@dataclass(frozen=True)
class KroneckerReduce:
    """Ā ⊗ G of the rows summed (ā) and averaged (g) over a case's positions.

    Ā = E[(Σ_s ā_s)(Σ_s ā_s)ᵀ] and G = E[(Σ_s g_s)(Σ_s g_s)ᵀ]/S² (Eschenhagen et al. 2023; section
    12.3). With one position it is the inner block itself. The groups of a grouped convolution are
    reduced apart.
    """

    inner: str = field(
        default="kronecker",
        metadata={
            "section": "Eschenhagen et al. 2023",
            "help": "the block that inverts them, on dense factors",
        },
    )

    def check(self) -> str | None:
        """Whether the inner block goes by Ā and G alone."""
        inner = self._inner()
        given = traits(inner, BlockTraits)
        if given.product and not given.observe and set(inner.wants()) == {"A", "G"}:
            return None
        return (
            f"inner={self.inner!r} must be a block of the dense factors A and G, with a product "
            "and nothing to observe"
        )

    def _inner(self) -> Any:
        return kl.lab.component("block", self.inner, prefer="kfac-lab")

    def wants(self) -> Sequence[str]:
        """Ā and G of reduced rows."""
        return tuple(f"{name}.reduced" for name in self._inner().wants())

    def factorise(self, moments: Moments, part_state: PartState) -> tuple[Any, PartState]:
        """The inner block's, of the reduced moments."""
        factored, part_state = self._inner().factorise(_Renamed(moments), part_state)
        return factored, part_state

    def damped(
        self, factored: Any, part_state: PartState, strength: DampingStrength, previous: Any
    ) -> Any:
        """The inner block's."""
        return self._inner().damped(factored, part_state, strength, previous)

    def product(self, moments: Moments, part_state: PartState, matrix: Tensor) -> Tensor:
        """G V Ā of the reduced moments."""
        product: Tensor = self._inner().product(_Renamed(moments), part_state, matrix)
        return product
