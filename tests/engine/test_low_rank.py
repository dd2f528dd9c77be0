"""The product of section 8 by cases: the same steps as the full product, where it is allowed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.core.plan import Plan
from kfac_lab.paper import block_diagonal


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


def test_it_is_refused_with_l2() -> None:
    """ηθ is of full rank: one sentence, before anything is changed."""
    with pytest.raises(kl.RecipeError, match=r"low_rank=True and l2=0\.1 do not go together"):
        run("block_diagonal(low_rank=True)", l2=0.1)


def test_it_is_refused_without_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another network's cases are not at hand."""
    monkeypatch.setattr(Plan, "of", classmethod(lambda cls, network: None))
    with pytest.raises(kl.RecipeError, match="only a sequential network"):
        run("block_diagonal(low_rank=True)")
