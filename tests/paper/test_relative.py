"""The block `relative`, against dense matrices in float64."""

from __future__ import annotations

import pytest
import torch

import kfac_lab as kl
from kfac_lab.core.state import DampingStrength
from kfac_lab.paper.relative import Relative

GAMMA = 0.3


def _inverse(block, moments):
    numbers = (torch.tensor(v, dtype=torch.float64) for v in (GAMMA**2, GAMMA, 0.0))
    factored, state = block.factorise(moments, {})
    return block.damped(factored, state, DampingStrength(*numbers), None)


def _moments(d_out, channels, taps, cases=50):
    torch.manual_seed(0)
    a = torch.randn(cases, channels * taps).double() * torch.rand(channels * taps).double() + 1
    g = torch.randn(cases, d_out).double() * 1e-3
    G = g.T @ g / cases
    return {"A": a.T @ a / cases, "G": G, "G.diagonal": G.diagonal()}


def _unit(matrix):
    return matrix / (matrix.trace() / len(matrix))


@pytest.mark.parametrize("outputs", [True, False])
@pytest.mark.parametrize("taps", [1, 4])
def test_it_solves_the_dense_damped_system(outputs, taps) -> None:
    moments = _moments(3, 5, taps)
    A = sum(moments["A"][t::taps, t::taps] for t in range(taps)) / taps
    shift = GAMMA if outputs else GAMMA**2
    A = torch.kron(_unit(A) + shift * torch.eye(5).double(), torch.eye(taps).double())
    G = _unit(moments["G"]) + shift * torch.eye(3).double() if outputs else torch.eye(3).double()
    inverse = _inverse(Relative(outputs=outputs, taps=taps), moments)
    V = torch.randn(3, 5 * taps).double()
    dense = torch.linalg.solve(torch.kron(A, G), V.T.reshape(-1)).view(5 * taps, 3).T
    torch.testing.assert_close(inverse.apply(V), dense, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(inverse.dense(), torch.linalg.inv(torch.kron(A, G)))
    torch.testing.assert_close(inverse.factors(), (A, G))
    undamped = (torch.kron(_unit_of(A, shift), _unit_of(G, shift if outputs else 0.0))
                @ V.T.reshape(-1)).view(5 * taps, 3).T  # fmt: skip
    product = Relative(outputs=outputs, taps=taps).product(moments, {}, V)
    torch.testing.assert_close(product, undamped, rtol=1e-9, atol=1e-12)


def _unit_of(damped, shift):
    return damped - shift * torch.eye(len(damped)).double()


def test_the_scale_of_neither_moment_matters() -> None:
    moments = _moments(3, 5, 1)
    scaled = {
        name: m * factor
        for (name, m), factor in zip(moments.items(), (7.0, 1e-6, 1e-6), strict=True)
    }
    torch.testing.assert_close(
        _inverse(Relative(), moments).dense(), _inverse(Relative(), scaled).dense()
    )


def test_taps_that_do_not_fit_are_told() -> None:
    with pytest.raises(kl.RecipeError, match="multiple of 4, and one has 5"):
        _inverse(Relative(taps=4), _moments(3, 5, 1))
