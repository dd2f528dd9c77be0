"""The Kronecker block against dense matrices: its product, precision, saving and messages."""

import math

import pytest
import torch
from paper.kronecker_dense import (
    KINDS,
    SIZES,
    cvec,
    inverted,
    moments,
    rows,
    strength,
    tensors,
    uncvec,
)

from kfac_lab.core import linalg
from kfac_lab.core.parameters import build, validate
from kfac_lab.core.state import DampingStrength, from_tree, to_tree
from kfac_lab.errors import NumericalError, RecipeError
from kfac_lab.paper.kronecker import Kronecker, KroneckerInverse

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
