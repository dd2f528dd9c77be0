"""The Kronecker block against dense matrices: every π, inverse and kind of factor."""

import itertools
import math

import pytest
import torch

from kfac_lab.core import linalg
from kfac_lab.core.parameters import build, validate
from kfac_lab.core.state import DampingStrength, from_tree, to_tree
from kfac_lab.errors import NumericalError, RecipeError
from kfac_lab.paper.kronecker import Kronecker, KroneckerInverse, low_rank_apply

KINDS_A = ("dense", "diagonal", "rank1_plus_diagonal", "lowrank_plus_diagonal")
KINDS_G = ("dense", "diagonal", "lowrank_plus_diagonal")
KINDS = list(itertools.product(KINDS_A, KINDS_G))
SIZES = [(3, 5), (5, 3), (4, 4), (1, 6), (6, 1)]  # d_out, d_in


def cvec(matrix):
    return matrix.t().reshape(-1)


def uncvec(vector, rows, columns):
    return vector.reshape(columns, rows).t()


def strength(gamma=0.3):
    return DampingStrength(
        torch.tensor(0.7), torch.tensor(gamma, dtype=torch.float64), torch.tensor(0.0)
    )


def rows(d_out, d_in, cases=40, bias=True, dtype=torch.float64):
    a = torch.randn(cases, d_in, dtype=dtype) @ torch.randn(d_in, d_in, dtype=dtype) + 0.5
    if bias:
        a[:, -1] = 1
    return a, torch.randn(cases, d_out, dtype=dtype) @ torch.randn(d_out, d_out, dtype=dtype)


def moments(a, g):
    return {
        "A": a.t() @ a / len(a),
        "A.diagonal": (a * a).mean(0),
        "A.mean": a.mean(0),
        "G": g.t() @ g / len(g),
        "G.diagonal": (g * g).mean(0),
    }


def inverted(block, a, g, gamma=0.3, previous=None):
    part_state = block.observe({}, a[:, None], g[None, :, None], 1.0)
    factored, part_state = block.factorise(moments(a, g), part_state)
    return block.damped(factored, part_state, strength(gamma), previous)


def dense_pi(rule, A, G):
    """π by its definition: norms of the two terms of the residual, formed densely."""
    left = torch.kron(A, torch.eye(len(G), dtype=A.dtype))
    right = torch.kron(torch.eye(len(A), dtype=A.dtype), G)
    norm = {
        "trace": lambda m: torch.linalg.matrix_norm(m, "nuc"),
        "frobenius": lambda m: torch.linalg.matrix_norm(m, "fro"),
        "spectral": lambda m: torch.linalg.matrix_norm(m, 2),
        "median": lambda m: torch.linalg.eigvalsh(m).median(),
        "one": lambda m: torch.tensor(1.0),
    }[rule]
    return math.sqrt(norm(left) / norm(right))


# --- the product (oracle 2) -----------------------------------------------------------------------


@pytest.mark.parametrize("inverse", ["cholesky", "eigh", "newton_schulz"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cases", [2, 40])
@pytest.mark.parametrize("d_out, d_in", SIZES)
def test_the_product_solves_the_dense_damped_system(d_out, d_in, cases, bias, inverse) -> None:
    a, g = rows(d_out, d_in, cases, bias)
    A, G = a.t() @ a / cases, g.t() @ g / cases
    pi = math.sqrt((A.trace() / d_in) / (G.trace() / d_out))
    eye_a, eye_g = torch.eye(d_in).double(), torch.eye(d_out).double()
    block = torch.kron(A + pi * 0.3 * eye_a, G + 0.3 / pi * eye_g)
    v = torch.randn(d_out, d_in).double()
    expected = torch.linalg.solve(block, cvec(v))

    found = inverted(Kronecker(inverse=inverse), a, g)

    scale = torch.linalg.inv(block).norm()
    torch.testing.assert_close(cvec(found.apply(v)), expected, rtol=1e-9, atol=1e-9)
    assert (found.dense() - torch.linalg.inv(block)).norm() < 1e-10 * scale
    torch.testing.assert_close(torch.kron(*found.factors()), block, rtol=1e-12, atol=1e-12)


def test_rows_and_columns_are_not_exchanged() -> None:
    """G ⊗ Ā in place of Ā ⊗ G, the classic slip, is told apart."""
    a, g = rows(4, 4)
    found = inverted(Kronecker(), a, g)
    v = torch.randn(4, 4).double()
    A, G = found.factors()
    slip = uncvec(torch.linalg.solve(torch.kron(G, A), cvec(v)), 4, 4)
    assert (found.apply(v) - slip).norm() > 1e-2 * slip.norm()


@pytest.mark.parametrize("kind_a, kind_g", KINDS)
@pytest.mark.parametrize("d_out, d_in", SIZES)
def test_every_kind_of_factor_inverts_what_it_says(d_out, d_in, kind_a, kind_g) -> None:
    block = Kronecker(factor_a=kind_a, factor_g=kind_g, rank=3)
    validate(block)
    a, g = rows(d_out, d_in)
    found = inverted(block, a, g)
    A, G = found.matrices()
    v = torch.randn(d_out, d_in).double()
    expected = torch.linalg.solve(torch.kron(A, G), cvec(v))
    torch.testing.assert_close(cvec(found.apply(v)), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.dense() @ cvec(v), expected, rtol=1e-8, atol=1e-8)
    assert torch.linalg.eigvalsh(A).min() > 0 and torch.linalg.eigvalsh(G).min() > 0
    # Only full moments fit the cross moments of a chain.
    assert (found.factors() is None) == ((kind_a, kind_g) != ("dense", "dense"))


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


# --- factored Tikhonov and π (oracle 5) -----------------------------------------------------------


def test_the_factored_damping_expands_as_in_section_5_3() -> None:
    a, g = rows(3, 5)
    A, G = a.t() @ a / len(a), g.t() @ g / len(g)
    eye_a, eye_g = torch.eye(5).double(), torch.eye(3).double()
    pi = dense_pi("trace", A, G)
    exact = torch.kron(A, G) + 0.3**2 * torch.eye(15).double()
    residual = pi * 0.3 * torch.kron(eye_a, G) + 0.3 / pi * torch.kron(A, eye_g)
    damped = torch.kron(*inverted(Kronecker(), a, g).factors())
    torch.testing.assert_close(damped, exact + residual, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", ["trace", "frobenius", "spectral", "median", "one"])
@pytest.mark.parametrize("inverse", ["cholesky", "eigh"])
@pytest.mark.parametrize("d_out, d_in", SIZES)
def test_pi_is_the_ratio_of_the_norms_of_the_undamped_moments(d_out, d_in, inverse, rule) -> None:
    a, g = rows(d_out, d_in)
    block = Kronecker(pi=rule, inverse=inverse)
    factored, _ = block.factorise(moments(a, g), {})
    expected = dense_pi(rule, a.t() @ a / len(a), g.t() @ g / len(g))
    assert factored.pi.item() == pytest.approx(expected, rel=1e-10)
    assert factored.pi.dtype == torch.float64 and factored.pi.dim() == 0


@pytest.mark.parametrize("rule", ["trace", "frobenius"])
@pytest.mark.parametrize("kind_a, kind_g", KINDS)
def test_pi_of_structured_factors_is_that_of_their_matrices(kind_a, kind_g, rule) -> None:
    block = Kronecker(pi=rule, factor_a=kind_a, factor_g=kind_g, rank=2)
    a, g = rows(3, 5)
    part_state = block.observe({}, a[:, None], g[None, :, None], 1.0)
    factored, _ = block.factorise(moments(a, g), part_state)
    A, G = (f if isinstance(f, torch.Tensor) else f.dense() for f in (factored.A, factored.G))
    assert factored.pi.item() == pytest.approx(dense_pi(rule, A, G), rel=1e-9)


def test_pi_minimises_the_bound_on_the_residual() -> None:
    a, g = rows(3, 5)
    A, G = a.t() @ a / len(a), g.t() @ g / len(g)
    pi = Kronecker().factorise(moments(a, g), {})[0].pi.item()

    def bound(p):
        return p * 5 * G.trace().item() + 3 * A.trace().item() / p

    assert bound(pi) < bound(pi * 1.01) and bound(pi) < bound(pi / 1.01)
    slope = (bound(pi * (1 + 1e-6)) - bound(pi * (1 - 1e-6))) / 2e-6
    assert abs(slope) < 1e-6 * bound(pi)


@pytest.mark.parametrize("rule", ["trace", "frobenius", "spectral", "median"])
def test_pi_scales_with_the_ratio_only(rule) -> None:
    a, g = rows(3, 5)
    block = Kronecker(pi=rule)

    def pi(scale_a, scale_g):
        return block.factorise(moments(a * scale_a, g * scale_g), {})[0].pi.item()

    assert pi(7, 7) == pytest.approx(pi(1, 1), rel=1e-10)
    assert pi(7, 1) == pytest.approx(7 * pi(1, 1), rel=1e-10)


# --- unfactored Tikhonov (oracle 3) ---------------------------------------------------------------


@pytest.mark.parametrize("cases", [2, 40])
@pytest.mark.parametrize("d_out, d_in", SIZES)
def test_unfactored_damping_is_exact_tikhonov(d_out, d_in, cases) -> None:
    a, g = rows(d_out, d_in, cases)
    A, G = a.t() @ a / cases, g.t() @ g / cases
    block = torch.kron(A, G) + 0.3**2 * torch.eye(d_out * d_in).double()
    v = torch.randn(d_out, d_in).double()
    found = inverted(Kronecker(tikhonov="unfactored"), a, g)
    expected = torch.linalg.solve(block, cvec(v))
    torch.testing.assert_close(cvec(found.apply(v)), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.dense() @ cvec(v), expected, rtol=1e-9, atol=1e-9)
    assert found.factors() is None


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


# --- dead units (oracle 33) -----------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["trace", "frobenius", "spectral", "one"])
@pytest.mark.parametrize("inverse", ["cholesky", "eigh", "newton_schulz"])
@pytest.mark.parametrize("dead", ["input", "constant", "derivative", "all inputs", "all of g"])
def test_dead_units_leave_everything_finite(dead, inverse, rule) -> None:
    a, g = rows(3, 5)
    if dead == "input":
        a[:, 1] = 0
    elif dead == "constant":
        a[:, 1] = 1  # as the homogeneous coordinate: Ā is singular
    elif dead == "derivative":
        g[:, 1] = 0
    elif dead == "all inputs":
        a.zero_()
    else:
        g.zero_()
    block = Kronecker(pi=rule, inverse=inverse)
    factored, _ = block.factorise(moments(a, g), {})
    found = block.damped(factored, {}, strength(), None)
    v = torch.randn(3, 5).double()
    assert torch.isfinite(factored.pi) and torch.isfinite(found.apply(v)).all()
    if dead.startswith("all"):
        assert factored.pi.item() == 1
    expected = torch.linalg.solve(torch.kron(*found.factors()), cvec(v))
    torch.testing.assert_close(cvec(found.apply(v)), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind_a, kind_g", KINDS)
def test_dead_units_in_structured_factors(kind_a, kind_g) -> None:
    a, g = rows(3, 5)
    a[:, 1], g[:] = 0, 0
    found = inverted(Kronecker(factor_a=kind_a, factor_g=kind_g, rank=2), a, g)
    v = torch.randn(3, 5).double()
    expected = torch.linalg.solve(torch.kron(*found.matrices()), cvec(v))
    torch.testing.assert_close(cvec(found.apply(v)), expected, rtol=1e-8, atol=1e-8)


# --- what candidates share, and warm starts -------------------------------------------------------


def test_one_eigendecomposition_serves_all_candidates(monkeypatch) -> None:
    calls = []
    real = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: calls.append(m) or real(m))
    a, g = rows(3, 5)
    block = Kronecker(inverse="eigh", pi="spectral")
    factored, part_state = block.factorise(moments(a, g), {})
    for gamma in (0.1, 0.3, 1.0):
        found = block.damped(factored, part_state, strength(gamma), None)
        direct = Kronecker(pi="spectral")
        expected = direct.damped(direct.factorise(moments(a, g), {})[0], {}, strength(gamma), None)
        torch.testing.assert_close(found.dense(), expected.dense(), rtol=1e-9, atol=1e-9)
        calls[2:] = []
    assert len(calls) == 2


def test_candidates_and_refreshes_do_not_write_into_each_other() -> None:
    a, g = rows(3, 5)
    kept = moments(a, g)
    block = Kronecker()
    factored, _ = block.factorise(kept, {})
    first = block.damped(factored, {}, strength(0.1), None)
    before = first.dense()
    block.damped(factored, {}, strength(1.0), first)
    first.factors()
    for value in kept.values():
        value.fill_(7.0)
    assert torch.equal(first.dense(), before)
    A, G = first.factors()
    torch.testing.assert_close(torch.kron(A, G) @ before, torch.eye(15).double())


@pytest.mark.parametrize(
    "kind_a", ["dense", "diagonal", "rank1_plus_diagonal", "lowrank_plus_diagonal"]
)
def test_factored_holds_nothing_of_the_ledger(kind_a) -> None:
    a, g = rows(3, 5)
    kept = moments(a, g)
    block = Kronecker(factor_a=kind_a, factor_g="diagonal" if kind_a != "dense" else "dense")
    factored, _ = block.factorise(kept, {})
    before = to_tree(factored)
    copies = [t.clone() for t in tensors(before)]
    for value in kept.values():
        value.fill_(float("nan"))
    assert all(torch.equal(x, y) for x, y in zip(tensors(before), copies, strict=True))


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [t for item in tree for t in tensors(item)] if isinstance(tree, list) else []


def test_newton_schulz_starts_from_the_inverse_in_use() -> None:
    a, g = rows(6, 8, 200)
    block = Kronecker(inverse="newton_schulz", iterations=3)
    factored, _ = block.factorise(moments(a, g), {})
    exact = Kronecker().damped(factored, {}, strength(), None)
    nearby = Kronecker().damped(factored, {}, strength(0.31), None)

    def residual(found):
        return (found.A_inverse - exact.A_inverse).norm() / exact.A_inverse.norm()

    with linalg.Attempt():  # three steps are too few from a cold start; nobody looks here
        cold = block.damped(factored, {}, strength(), None)
        warm = block.damped(factored, {}, strength(), nearby)
    assert residual(warm) < 1e-9
    assert not residual(cold) < 1e-3  # NaN, or far


@pytest.mark.parametrize("other", ["unfactored", "shape", "float32", "low rank", "nonsense"])
def test_an_inverse_of_another_kind_is_no_start(other) -> None:
    a, g = rows(3, 5)
    previous = {
        "unfactored": lambda: inverted(Kronecker(tikhonov="unfactored"), a, g),
        "shape": lambda: inverted(Kronecker(), *rows(4, 6)),
        "float32": lambda: inverted(Kronecker(), *rows(3, 5, dtype=torch.float32)),
        "low rank": lambda: inverted(Kronecker(factor_a="diagonal", factor_g="diagonal"), a, g),
        "nonsense": lambda: object(),
    }[other]()
    found = inverted(Kronecker(inverse="newton_schulz"), a, g, previous=previous)
    torch.testing.assert_close(found.dense(), inverted(Kronecker(), a, g).dense())


# --- the undamped product, precision, devices, saving, messages -----------------------------------


@pytest.mark.parametrize("kind_a, kind_g", KINDS)
def test_product_is_the_undamped_block(kind_a, kind_g) -> None:
    block = Kronecker(factor_a=kind_a, factor_g=kind_g, rank=2)
    a, g = rows(3, 5)
    part_state = block.observe({}, a[:, None], g[None, :, None], 1.0)
    factored, _ = block.factorise(moments(a, g), part_state)
    A, G = (f if isinstance(f, torch.Tensor) else f.dense() for f in (factored.A, factored.G))
    v = torch.randn(3, 5).double()
    found = block.product(moments(a, g), part_state, v)
    torch.testing.assert_close(cvec(found), torch.kron(A, G) @ cvec(v), rtol=1e-9, atol=1e-9)


ALL = [
    Kronecker(**fields)
    for fields in (
        {},
        {"inverse": "eigh"},
        {"inverse": "newton_schulz"},
        {"pi": "median"},
        {"pi": "one"},
        {"tikhonov": "unfactored"},
        {"factor_a": "rank1_plus_diagonal", "factor_g": "diagonal"},
        {"factor_a": "lowrank_plus_diagonal", "factor_g": "lowrank_plus_diagonal", "rank": 2},
    )
]


@pytest.mark.parametrize("block", ALL, ids=repr)
def test_single_precision_stays_single_and_agrees(block) -> None:
    a, g = rows(3, 5)
    single = inverted(block, a.float(), g.float())
    v = torch.randn(3, 5).double()
    u = single.apply(v.float())
    assert u.dtype == torch.float32
    assert all(t.dtype == torch.float32 for t in tensors(to_tree(single)) if t.dim())
    expected = inverted(block, a, g).apply(v)
    torch.testing.assert_close(u.double(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("block", ALL, ids=repr)
def test_nothing_is_read_by_the_host(block) -> None:
    """A tensor on the meta device has no value to read."""
    a, g = torch.empty(40, 5, device="meta"), torch.empty(40, 3, device="meta")
    gamma = torch.empty((), dtype=torch.float64, device="meta")
    part_state = block.observe({}, a[:, None], g[None, :, None], 0.5)
    part_state = block.observe(part_state, a[:, None], g[None, :, None], 0.5)
    factored, part_state = block.factorise(moments(a, g), part_state)
    found = block.damped(factored, part_state, DampingStrength(gamma, gamma, gamma), None)
    found = block.damped(factored, part_state, DampingStrength(gamma, gamma, gamma), found)
    assert found.apply(torch.empty(3, 5, device="meta")).shape == (3, 5)
    assert block.product(moments(a, g), part_state, torch.empty(3, 5, device="meta")).shape == (
        3,
        5,
    )


@pytest.mark.parametrize("block", ALL, ids=repr)
def test_the_results_can_be_saved(block) -> None:
    a, g = rows(3, 5)
    found = inverted(block, a, g)
    again = from_tree(to_tree(found))
    v = torch.randn(3, 5).double()
    assert type(again) is type(found) and torch.equal(again.apply(v), found.apply(v))
    factored, part_state = block.factorise(
        moments(a, g), block.observe({}, a[:, None], g[None, :, None], 1.0)
    )
    restored = from_tree(to_tree((factored, part_state)))
    assert torch.equal(block.damped(*restored, strength(), None).apply(v), found.apply(v))


def test_strengths_may_be_plain_numbers() -> None:
    a, g = rows(3, 5)
    for block in ALL:
        part_state = block.observe({}, a[:, None], g[None, :, None], 1.0)
        factored, part_state = block.factorise(moments(a, g), part_state)
        plain = block.damped(factored, part_state, DampingStrength(0.7, 0.3), None)
        assert torch.equal(plain.dense(), inverted(block, a, g).dense())


@pytest.mark.parametrize("factor, name", [("A", "Ā"), ("G", "G")])
def test_a_failure_names_the_factor(factor, name) -> None:
    a, g = rows(3, 5)
    kept = moments(a, g)
    kept[factor] = kept[factor] * float("nan")
    factored, _ = Kronecker(pi="one").factorise(kept, {})
    if kept[factor].device.type != "cpu":  # outside an attempt nobody looks there: it is NaN
        inverse = Kronecker().damped(factored, {}, strength(), None)
        assert torch.isnan(getattr(inverse, f"{factor}_inverse")).all()
        return
    with linalg.label("encoder.0"), pytest.raises(NumericalError, match=f"encoder.0, {name}"):
        Kronecker().damped(factored, {}, strength(), None)


def test_fields_that_contradict_each_other_are_told() -> None:
    with pytest.raises(RecipeError, match="unfactored"):
        build(Kronecker, {"tikhonov": "unfactored", "factor_g": "diagonal"})
    with pytest.raises(RecipeError, match="spectral"):
        build(Kronecker, {"pi": "spectral", "factor_a": "rank1_plus_diagonal"})
    with pytest.raises(RecipeError, match="rank"):
        build(Kronecker, {"rank": 0})
    build(Kronecker, {"factor_a": "rank1_plus_diagonal", "factor_g": "diagonal"})


def test_it_asks_for_no_more_than_it_uses() -> None:
    for kind_a, kind_g in KINDS:
        block = Kronecker(factor_a=kind_a, factor_g=kind_g)
        a, g = rows(3, 5)
        kept = {name: moments(a, g)[name] for name in block.wants()}
        factored, part_state = block.factorise(kept, {})
        assert isinstance(block.damped(factored, part_state, strength(), None), KroneckerInverse)
        dense = {"A" for k in (kind_a,) if k == "dense"} | {"G" for k in (kind_g,) if k == "dense"}
        assert {name for name in block.wants() if "." not in name} == dense
