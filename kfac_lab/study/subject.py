"""The network of the structure figures, trained as the paper trained it (section 3)."""

from __future__ import annotations

import os

from kfac_lab.hooks import Recipe
from kfac_lab.run import Run

__all__ = ["structure_run"]


def structure_run(
    steps: int = 7,
    seed: int = 0,
    structure: str = "block_diagonal",
    problem: str | None = None,
) -> Run:
    """The example network after ``steps`` iterations of K-FAC in batch mode.

    On ``mnist_small`` where ``KFAC_LAB_DATA`` is set, else on ``digits_small``, whose middle
    layers have the same sizes; ``run.problem.title`` says which. λ1 = 10⁻³, τ1 = τ2 = 1.

    Args:
        steps: iterations; 7 in the paper.
        seed: of initialisation and targets.
        structure: a component's text, such as ``"block_tridiagonal"``.
        problem: one of the two by name; None chooses as said.
    """
    name = problem or ("mnist_small" if os.environ.get("KFAC_LAB_DATA") else "digits_small")
    recipe = Recipe.named("paper").replace(
        structure=structure,
        estimator="sampled(fraction=1.0)",
        quadratic_model="exact_fisher(fraction=1.0)",
        damping="levenberg_marquardt(lam=0.001)",
        batch="constant(size=2000)",  # more than there are: all of them
    )
    return Run(name, recipe, seed=seed, device="cpu").advance(steps)
