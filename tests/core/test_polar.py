"""The spectral direction of a metric, against roots and singular values in float64."""

from __future__ import annotations

import pytest
import torch

from kfac_lab.core.polar import COEFFICIENTS, polar


def _spd(d: int, condition: float) -> torch.Tensor:
    basis = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q
    return (
        basis
        @ torch.diag(torch.logspace(0, -torch.tensor(condition).log10(), d).double())
        @ basis.T
    )


def _root(matrix: torch.Tensor, power: float) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**power) @ vectors.T


def _whitened(V, A, G):
    """X = G^(-1/2) V A^(-1/2) and the way back."""
    of_a, of_g = _root(A, -0.5), _root(G, -0.5)
    return of_g @ V @ of_a, lambda X: of_g @ X @ of_a


SHAPES = [(5, 5), (9, 4), (4, 9), (1, 6), (6, 1), (40, 24)]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_polynomial_of_the_whitened_gradients_singular_values(shape) -> None:
    torch.manual_seed(0)
    A, G = _spd(shape[1], 1e3), _spd(shape[0], 1e3)
    V = torch.randn(*shape, dtype=torch.float64) * 1e-3
    X, back = _whitened(V, A, G)
    left, s, right = torch.linalg.svd(X, full_matrices=False)
    s = s / (s**8).sum() ** 0.125
    for a, b, c in COEFFICIENTS:
        s = a * s + b * s**3 + c * s**5
    found = polar(V, torch.linalg.inv(G) @ V @ torch.linalg.inv(A))
    torch.testing.assert_close(found, back(left * s @ right), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_near_the_polar_factor_of_the_whitened_gradient(shape) -> None:
    """Where no singular value is below a fiftieth of the scale: all of them are 1 ± 0.52 then."""
    torch.manual_seed(1)
    A, G = _spd(shape[1], 1e2), _spd(shape[0], 1e2)
    small = min(shape)
    left = torch.linalg.qr(torch.randn(shape[0], small, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(shape[1], small, dtype=torch.float64)).Q
    X = left @ torch.diag(torch.linspace(0.1, 1.0, small).double()) @ right.T
    V = _root(G, 0.5) @ X @ _root(A, 0.5)
    found = polar(V, torch.linalg.inv(G) @ V @ torch.linalg.inv(A))
    back = _root(G, 0.5) @ found @ _root(A, 0.5)
    values = torch.linalg.svdvals(back)[:small]
    assert 0.48 < float(values.min()) and float(values.max()) < 1.52
    turned = left.T @ back @ right  # diagonal: the singular vectors stay
    assert float((turned - torch.diag(turned.diagonal())).abs().max()) < 1e-6


def test_neither_the_gradients_scale_nor_the_inverses_matters() -> None:
    torch.manual_seed(2)
    A, G = _spd(7, 1e2), _spd(5, 1e2)
    V = torch.randn(5, 7, dtype=torch.float64)
    U = torch.linalg.inv(G) @ V @ torch.linalg.inv(A)
    one = polar(V, U)
    torch.testing.assert_close(polar(1e-6 * V, 1e-6 * U), one, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(polar(V, 4.0 * U), 2.0 * one, rtol=1e-9, atol=1e-12)


def test_a_change_of_coordinates_changes_it_alike() -> None:
    """With inputs turned by any matrix S, V Sᵀ and S A Sᵀ give Δ S⁻¹: the same function."""
    torch.manual_seed(3)
    A, G = _spd(6, 1e2), _spd(6, 1e2)
    V, S = torch.randn(6, 6, dtype=torch.float64), torch.randn(6, 6, dtype=torch.float64)
    one = polar(V, torch.linalg.inv(G) @ V @ torch.linalg.inv(A))
    turned = V @ S.T
    other = polar(turned, torch.linalg.inv(G) @ turned @ torch.linalg.inv(S @ A @ S.T))
    torch.testing.assert_close(other @ S, one, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", [(64, 64), (32, 96)])
def test_single_precision_is_enough(shape) -> None:
    torch.manual_seed(4)
    A, G = _spd(shape[1], 1e4), _spd(shape[0], 1e4)
    V = torch.randn(*shape, dtype=torch.float64) * 1e-4
    U = torch.linalg.inv(G) @ V @ torch.linalg.inv(A)
    exact, found = polar(V, U), polar(V.float(), U.float()).double()
    assert float((found - exact).norm() / exact.norm()) < 2e-3


def test_zeros_give_zeros() -> None:
    zeros = torch.zeros(3, 4)
    assert torch.equal(polar(zeros, zeros), zeros)
