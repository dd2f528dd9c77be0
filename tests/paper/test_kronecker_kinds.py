"""Factors that are diagonal, or of low rank plus diagonal (section 8)."""

import pytest
import torch
from paper.kronecker_dense import KINDS, cvec, inverted, moments, rows, uncvec

from kfac_lab.paper.kronecker import Kronecker, low_rank_apply


def undamped(block, a, g):
    """The factors with next to no damping."""
    return inverted(block, a, g, gamma=1e-9).matrices()


def test_diagonal_factors_are_the_diagonals() -> None:
    a, g = rows(3, 5)
    A, G = undamped(Kronecker(factor_a="diagonal", factor_g="diagonal"), a, g)
    torch.testing.assert_close(A, torch.diag((a * a).mean(0)), atol=1e-7, rtol=0)
    torch.testing.assert_close(G, torch.diag((g * g).mean(0)), atol=1e-7, rtol=0)


def test_rank1_plus_diagonal_is_mean_and_variance() -> None:
    a, g = rows(3, 5)
    A, _ = undamped(Kronecker(factor_a="rank1_plus_diagonal", factor_g="diagonal"), a, g)
    expected = torch.outer(a.mean(0), a.mean(0)) + torch.diag(a.var(0, unbiased=False))
    torch.testing.assert_close(A, expected, atol=1e-7, rtol=0)


# --- low rank plus diagonal (section 8) ---------------------------------------------------------


def sketched(block, batches, weights, shared=1):
    """Runs `observe` over batches; gives the part_state and the moments with the same weights."""
    part_state, A, G = {}, 0, 0
    for (a, g), weight in zip(batches, weights, strict=True):
        cases = len(a) // shared
        a_rows = a.reshape(cases, shared, -1)
        g_rows = torch.stack([g, 2 * g]).reshape(2, cases, shared, -1)
        part_state = block.observe(part_state, a_rows, g_rows, weight)
        A = A * (1 - weight) + weight * (a.t() @ a) / cases
        G = G * (1 - weight) + weight * 5 * (g.t() @ g) / (cases * shared)
    return part_state, {"A": A, "G": G, "A.diagonal": A.diagonal(), "G.diagonal": G.diagonal()}


@pytest.mark.parametrize("shared", [1, 4])
def test_a_sketch_of_full_rank_is_the_moment(shared) -> None:
    block = Kronecker(factor_a="lowrank_plus_diagonal", factor_g="lowrank_plus_diagonal", rank=9)
    batches = [rows(3, 5) for _ in range(4)]
    part_state, kept = sketched(block, batches, [1.0, 0.5, 1 / 3, 0.05], shared)
    factored, _ = block.factorise(kept, part_state)
    torch.testing.assert_close(factored.A.dense(), kept["A"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(factored.G.dense(), kept["G"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_thin_sketch_is_positive_with_the_exact_diagonal_and_finds_what_stands_out(dtype) -> None:
    block = Kronecker(factor_a="lowrank_plus_diagonal", factor_g="diagonal", rank=6)
    strong = torch.randn(3, 30, dtype=dtype) * 10
    batches = []
    for _ in range(5):
        a = torch.randn(50, 3, dtype=dtype) @ strong + torch.randn(50, 30, dtype=dtype)
        batches.append((a, torch.randn(50, 4, dtype=dtype)))
    part_state, kept = sketched(block, batches, [1.0, 0.5, 1 / 3, 0.25, 0.2])
    A = block.factorise(kept, part_state)[0].A.dense()
    tolerance = 2e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(A.diagonal(), kept["A.diagonal"], rtol=tolerance, atol=0)
    assert torch.linalg.eigvalsh(A.double()).min() > -tolerance
    diagonal_alone = (torch.diag(kept["A.diagonal"]) - kept["A"]).norm()
    assert (A - kept["A"]).norm() < 0.05 * diagonal_alone


def test_observe_writes_into_nothing_and_draws_from_no_global_state() -> None:
    block = Kronecker(factor_a="lowrank_plus_diagonal", factor_g="lowrank_plus_diagonal")
    a, g = rows(3, 5)
    state = torch.get_rng_state()
    first = block.observe({}, a[:, None], g[None, :, None], 1.0)
    before = {key: value.clone() for key, value in first.items()}
    second = block.observe(first, a[:, None], g[None, :, None], 0.5)
    assert torch.equal(state, torch.get_rng_state())
    assert first.keys() == before.keys() and second is not first
    assert all(torch.equal(first[key], before[key]) for key in before)


def test_a_sketch_that_saw_nothing_is_a_diagonal() -> None:
    block = Kronecker(factor_a="lowrank_plus_diagonal")
    a, g = rows(3, 5)
    factored, _ = block.factorise(moments(a, g), {})
    torch.testing.assert_close(factored.A.dense(), torch.diag((a * a).mean(0)))
    assert block.observe({}, a[:, None] * 0, g[None, :, None], 1.0)["A.sketch"].abs().max() == 0
    part_state = block.observe({}, a[:, None] * 0, g[None, :, None], 1.0)
    zero = {**moments(a, g), "A.diagonal": torch.zeros(5).double()}
    factored, _ = block.factorise(zero, part_state)
    assert factored.A.dense().abs().max() == 0


# --- the low-rank product (oracle 29) -------------------------------------------------------------


@pytest.mark.parametrize(
    "kind_a, kind_g", [("dense", "dense"), ("rank1_plus_diagonal", "diagonal")]
)
@pytest.mark.parametrize("cases", [2, 3, 40])
def test_the_low_rank_product_is_the_full_product(cases, kind_a, kind_g) -> None:
    inverse = inverted(Kronecker(factor_a=kind_a, factor_g=kind_g), *rows(6, 7))
    a, g = rows(6, 7, cases)
    gradient = sum(torch.outer(g[n], a[n]) for n in range(cases)) / cases
    expected = uncvec(inverse.dense() @ cvec(gradient), 6, 7)
    torch.testing.assert_close(low_rank_apply(inverse, a, g), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind_a, kind_g", KINDS)
def test_dead_units_in_structured_factors(kind_a, kind_g) -> None:
    a, g = rows(3, 5)
    a[:, 1], g[:] = 0, 0
    found = inverted(Kronecker(factor_a=kind_a, factor_g=kind_g, rank=2), a, g)
    v = torch.randn(3, 5).double()
    expected = torch.linalg.solve(torch.kron(*found.matrices()), cvec(v))
    torch.testing.assert_close(cvec(found.apply(v)), expected, rtol=1e-8, atol=1e-8)
