"""Recipes that break one law each; ``SOUND`` breaks none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kfac_lab.hooks.manager import Lab

__all__ = ["BROKEN", "SOUND"]

SOUND = """
# γ tied to λ, no momentum
estimator = sampled(fraction=0.5)
block = kronecker
structure = block_diagonal
quadratic_model = exact_fisher(fraction=0.5)
damping = tied(lam=10)
momentum = rescaled
schedule = periodic(T1=5, T2=5, T3=5)
batch = constant(size=500)
average = polyak
collective = single_process
"""


@dataclass(frozen=True, eq=False)
class _NeverEqual:
    """A batch that is equal to nobody, itself read back included."""

    cases: int = 10

    def size(self, step: int, available: int | None) -> int:
        """The same always."""
        return self.cases


def _with_never_equal() -> tuple[str, dict[str, Any]]:
    lab = Lab(entry_points=False)
    lab.load()
    lab.register("batch", "never_equal", _NeverEqual)
    return SOUND.replace("constant(size=500)", "never_equal"), {"lab": lab}


BROKEN: dict[str, Callable[[], Any]] = {
    "runs": lambda: SOUND + "and so on\n",
    "states_every_slot": lambda: SOUND.replace("batch = constant(size=500)\n", ""),
    "fills_every_slot": lambda: SOUND.replace("lam=10", "lamda=10"),
    "round_trip": _with_never_equal,
    "trains": lambda: SOUND.replace("rescaled", "fixed(lr=1e300)"),
}
