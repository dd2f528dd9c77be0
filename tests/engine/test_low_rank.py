"""The product of section 8 by cases: the same steps as the full product, where it is allowed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.core.plan import Plan
from kfac_lab.core.vector import Vec
from kfac_lab.paper import block_diagonal
from kfac_lab.paper.block_diagonal import BlockDiagonalInverse
from kfac_lab.paper.momentum import Optimal


def problem(l2: float = 0.0, seed: int = 0) -> kl.Problem:
    """12 cases, layers wider than that and one narrower."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(30, 25), nn.Tanh(), nn.Linear(25, 4, bias=False), nn.Sigmoid(), nn.Linear(4, 20)
    ).double()
    inputs = torch.randn(12, 30, dtype=torch.float64)
    targets = torch.rand(12, 20, dtype=torch.float64)
    return kl.Problem(model=model, likelihood="bernoulli", inputs=inputs, targets=targets, l2=l2)


def run(structure: str, l2: float = 0.0) -> kl.Run:
    recipe = kl.Recipe.named("paper").replace(
        structure=structure,
        estimator="exact(fraction=1.0)",
        quadratic_model="exact_fisher(fraction=1.0)",
        damping="levenberg_marquardt(lam=1.0)",
        batch="constant(size=12)",
    )
    return kl.Run(problem(l2), recipe)


def test_steps_by_cases_are_the_full_products_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps agree, and the wide layers did go by cases."""
    calls: list[tuple[int, ...]] = []
    plain = block_diagonal.low_rank_apply

    def counted(inverse, inputs, gradients):  # type: ignore[no-untyped-def]
        calls.append((inputs.shape[1], gradients.shape[1]))
        return plain(inverse, inputs, gradients)

    monkeypatch.setattr(block_diagonal, "low_rank_apply", counted)
    full, low = run("block_diagonal"), run("block_diagonal(low_rank=True)")
    for _ in range(10):
        a, b = full.step_once(), low.step_once()
        assert float(a.loss) == pytest.approx(float(b.loss), rel=1e-12)
    for p, q in zip(full.problem.model.parameters(), low.problem.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
    assert set(calls) == {(31, 25)}  # 12 rows pay only there


def test_with_l2_a_refresh_is_exact_and_the_pull_serves_until_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By dense float64 algebra: Δ = −P(∇h − ηθ) − P ηθ_r, θ_r the θ of the refresh."""
    eta = 0.1
    low = run("block_diagonal(low_rank=True)", l2=eta)
    seen: list[tuple[Vec, Vec, Vec, BlockDiagonalInverse]] = []
    plain = Optimal.basis

    def watched(self, space, direction, previous, part_state):  # type: ignore[no-untyped-def]
        theta = space.evaluated.passes.network.pack(space.evaluated.theta)
        seen.append((direction, space.gradient, theta, space.preconditioner))
        return plain(self, space, direction, previous, part_state)

    monkeypatch.setattr(Optimal, "basis", watched)
    refreshed = Vec([])
    for k in range(1, 7):  # burn-in refreshes at 1, 2, 3; then the same inverse serves
        low.step_once()
        direction, gradient, theta, inverse = seen[-1]
        refreshed = theta if k <= 3 else refreshed
        wide, narrow = 0, 1
        for i in (wide, narrow):
            P = inverse.inverses[i].dense()
            at = refreshed[i] if i == wide else theta[i]
            rows = (gradient[i] - eta * theta[i]) + eta * at
            expected = -(P @ rows.t().reshape(-1)).reshape(rows.t().shape).t()
            torch.testing.assert_close(direction[i], expected, rtol=1e-9, atol=1e-12)
        assert inverse.pulls is not None
        assert inverse.pulls[wide] is not None and inverse.pulls[narrow] is None
    assert not torch.equal(refreshed[0], theta[0])


def test_a_preconditioner_that_cannot_pull_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """apply_cases without pulling would leave ηθ out in silence."""
    monkeypatch.delattr(BlockDiagonalInverse, "pulling")
    with pytest.raises(kl.RecipeError, match=r"no pulling\(ηθ, m\)"):
        run("block_diagonal(low_rank=True)", l2=0.1).step_once()
    run("block_diagonal(low_rank=True)").step_once()


def test_it_is_refused_without_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another network's cases are not at hand."""
    monkeypatch.setattr(Plan, "of", classmethod(lambda cls, network: None))
    with pytest.raises(kl.RecipeError, match="only a sequential network"):
        run("block_diagonal(low_rank=True)")
