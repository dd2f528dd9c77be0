"""Factored and unfactored Tikhonov, and every π (section 6.3)."""

import math

import pytest
import torch
from paper.kronecker_dense import KINDS, SIZES, cvec, inverted, moments, rows, strength

from kfac_lab.paper.kronecker import Kronecker


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
