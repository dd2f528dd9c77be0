"""α and μ: how far along the proposal and along the last update (section 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kfac_lab.panel.views.pair import Pair
from kfac_lab.panel.views.series import Quantity

__all__ = ["Coefficients"]


@dataclass(frozen=True)
class Coefficients(Pair):
    """α and μ of δ = αΔ + μδ0."""

    title: ClassVar[str] = "Coefficients: α and μ"
    note: ClassVar[str] = "the update is δ = αΔ + μδ0"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("alpha", "α", "α"),
        Quantity("mu", "μ", "μ", log=False),
    )
