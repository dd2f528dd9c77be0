"""λ and γ: how strongly the model and the factors are damped (section 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kfac_lab.panel.views.pair import Pair
from kfac_lab.panel.views.series import Quantity

__all__ = ["Strengths"]


@dataclass(frozen=True)
class Strengths(Pair):
    """λ of the quadratic model and γ of the factors, as each step used them."""

    title: ClassVar[str] = "Damping: λ and γ"
    note: ClassVar[str] = "λ damps the quadratic model, γ the factors"
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("lam", "λ", "λ"),
        Quantity("gamma", "γ", "γ"),
    )
