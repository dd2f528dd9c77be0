"""The product of section 8 by cases: the same steps as the full product, where it is allowed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.core.plan import Plan
from kfac_lab.core.vector import Vec
from kfac_lab.engine import proposal
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


def run(structure: str, l2: float = 0.0, **parts: str) -> kl.Run:
    chosen = {
        "estimator": "exact(fraction=1.0)",
        "quadratic_model": "exact_fisher(fraction=1.0)",
        "damping": "levenberg_marquardt(lam=1.0)",
        "batch": "constant(size=12)",
        **parts,
    }
    recipe = kl.Recipe.named("paper").replace(structure=structure, **chosen)
    return kl.Run(problem(l2), recipe, graphs=False)  # a replay calls no part that is watched


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """By how much of Δ each step's is wrong: ‖Δ + P∇h‖/‖P∇h‖, by the whole product."""
    found: list[float] = []
    plain = Optimal.basis

    def watched(self, space, direction, previous, part_state):  # type: ignore[no-untyped-def]
        whole = space.precondition(space.gradient)
        error = direction + whole
        found.append(float((error.dot(error) / whole.dot(whole)).sqrt()))
        return plain(self, space, direction, previous, part_state)

    monkeypatch.setattr(Optimal, "basis", watched)
    return found


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


def test_with_l2_a_pull_serves_until_the_next_refresh_and_the_first_for_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By dense float64 algebra: Δ = −P(∇h − ηθ) − P_r ηθ_r, r the step that made that product.

    And Δ is wrong by what the docstring says at most, which is not nothing.
    """
    eta = 1e-5
    low = run("block_diagonal(low_rank=True)", l2=eta, schedule="periodic(T2=5, T3=5, burn_in=3)")
    seen: list[tuple[Vec, Vec, Vec, BlockDiagonalInverse]] = []
    plain = Optimal.basis

    def watched(self, space, direction, previous, part_state):  # type: ignore[no-untyped-def]
        theta = space.evaluated.passes.network.pack(space.evaluated.theta)
        seen.append((direction, space.gradient, theta, space.preconditioner))
        return plain(self, space, direction, previous, part_state)

    def times(P: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return (P @ matrix.t().reshape(-1)).reshape(matrix.t().shape).t()

    monkeypatch.setattr(Optimal, "basis", watched)
    monkeypatch.setattr(proposal, "SOON", 10)
    wide, narrow = 0, 1
    pulled, bound_then, wrong = torch.empty(0), 0.0, 0.0
    for k in range(1, 18):  # inverses at 1, 2, 3, 5, 10, 15
        low.step_once()
        in_use = low.stepper.state_.inverse  # of the γ that was chosen
        direction, gradient, theta, inverse = next(s for s in reversed(seen) if s[3] is in_use)
        P = [own.dense() for own in inverse.inverses]
        own = inverse.inverses[wide]
        bound = eta * float(theta[wide].norm() / (own.A_shift * own.G_shift))
        if k in (1, 15):
            pulled, bound_then = times(P[wide], eta * theta[wide]), bound
        by_cases = -times(P[wide], gradient[wide] - eta * theta[wide]) - pulled
        torch.testing.assert_close(direction[wide], by_cases, rtol=1e-9, atol=1e-12)
        whole = [-times(p, gradient[i]) for i, p in enumerate(P[:2])]
        torch.testing.assert_close(direction[narrow], whole[narrow], rtol=1e-9, atol=1e-12)
        error = float((direction[wide] - whole[wide]).norm())
        assert error <= bound + bound_then
        assert (error < 1e-12) == (k in (1, 15))
        wrong = max(wrong, error / float(direction[wide].norm()))
        assert inverse.pulls is not None
        assert inverse.pulls[wide] is not None and inverse.pulls[narrow] is None
    assert 1e-6 < wrong < 0.01


@pytest.mark.parametrize("l2", [1e-5, 5e-5, 1e-3, 1e-2, 5e-2])
def test_no_l2_makes_the_product_by_cases_another(errors: list[float], l2: float) -> None:
    """λ falls from 150 as fast as it can, and P grows as much; a large η goes by the whole."""
    low = run(
        "block_diagonal(low_rank=True)",
        l2=l2,
        damping="promised(lam=150.0)",
        schedule="growing(T3=10, growth=1.5, early=5, first=1, eager=20)",
    )
    low.advance(proposal.SOON + 2)
    assert max(errors) < 0.01
    assert (max(errors) < 1e-12) == (l2 > proposal.SLIGHT)


def test_an_inverse_of_a_refresh_not_by_cases_lacks_no_l2(errors: list[float]) -> None:
    """Of more cases than go through the network at a time; the batches after it are smaller."""
    low = run(
        "block_diagonal(low_rank=True)",
        l2=1e-5,
        schedule="periodic(T1=5, T2=40, T3=40, burn_in=1)",
    )
    low.stepper.passes.function.chunk = 8
    low.advance(2)
    assert low.stepper.state_.inverse.pulls is None
    low.swap(batch="constant(size=6)")
    low.advance(3)
    assert len(errors) == 5 and max(errors) < 1e-12


def test_a_pull_is_taken_over_only_where_it_fits() -> None:
    """Not from other layers, nor from what has none."""
    low, other = run("block_diagonal(low_rank=True)", l2=1e-5), run("block_diagonal")
    low.step_once()
    other.step_once()
    own, none = low.stepper.state_.inverse, other.stepper.state_.inverse
    assert own.pulled_as(own).pulls is own.pulls
    assert own.pulled_as(none) is own.pulled_as(None) is None
    swapped = replace(own, pulls=own.pulls[::-1])
    assert own.pulled_as(swapped) is None
    assert own.pulled_as(replace(own, pulls=own.pulls[:2])) is None


def test_a_preconditioner_that_cannot_pull_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """apply_cases without pulling would leave ηθ out in silence."""
    monkeypatch.delattr(BlockDiagonalInverse, "pulling")
    with pytest.raises(kl.RecipeError, match=r"no pulling\(ηθ, m\)"):
        run("block_diagonal(low_rank=True)", l2=1e-5).step_once()
    run("block_diagonal(low_rank=True)").step_once()


def test_without_a_plan_it_is_the_whole_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another network's cases are not at hand."""
    monkeypatch.setattr(Plan, "of", classmethod(lambda cls, network: None))
    monkeypatch.setattr(block_diagonal, "low_rank_apply", None)
    runs = [run(text, l2=5e-5) for text in ("block_diagonal", "block_diagonal(low_rank=True)")]
    for _ in range(6):
        one, other = (each.step_once() for each in runs)
        assert one.predicted == other.predicted < 0
