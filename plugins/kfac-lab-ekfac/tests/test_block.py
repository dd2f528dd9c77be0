"""The block against dense matrices in float64, made case by case from the definition."""

import dataclasses

import pytest
import torch
from kfac_lab_ekfac import Ekfac, EkfacInverse, block

import kfac_lab as kl
from kfac_lab.core import linalg

N, D_IN, D_OUT = 11, 4, 3
POSITIONS = [1, 3]
GAMMA = 0.3
EYE = torch.eye(D_IN * D_OUT, dtype=torch.float64)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(positions=1, columns=2, seed=0, cases=N):
    """Rows [N, S, d_in] that end in 1 and cotangents [C, N, S, d_out] that depend on them."""
    rows = normal(cases, positions, D_IN, seed=seed)
    rows[..., -1] = 1
    cotangents = normal(columns, cases, positions, D_OUT, seed=seed + 1)
    return rows, cotangents * (0.2 + rows[..., :1].square())


def case_gradients(rows, cotangents):
    """vec(Σ_s g_s ā_sᵀ) of every case and cotangent, columns stacked: [C·N, d_in·d_out]."""
    found = []
    for g in cotangents:
        for a_n, g_n in zip(rows, g, strict=True):
            matrix = sum(torch.outer(g_s, a_s) for g_s, a_s in zip(g_n, a_n, strict=True))
            found.append(matrix.t().reshape(-1))
    return torch.stack(found)


def fisher(rows, cotangents):
    """E[Σ_c vec vecᵀ] over cases."""
    vectors = case_gradients(rows, cotangents)
    return vectors.t() @ vectors / rows.shape[0]


def moments(rows, cotangents):
    """Ā summed over positions, G averaged over them (Grosse & Martens 2016)."""
    a, g = rows.flatten(0, 1), cotangents.flatten(0, 2)
    count = rows.shape[0]
    return {"A": a.t() @ a / count, "G": g.t() @ g / count / rows.shape[1]}


def basis(part_state):
    return torch.kron(part_state["A.basis"], part_state["G.basis"])


def columns_stacked(matrix):
    return matrix.t().reshape(-1)


def dense_block(part_state):
    return (
        basis(part_state)
        @ torch.diag(columns_stacked(part_state["scales"]))
        @ basis(part_state).t()
    )


def close(one, other, tolerance=1e-10):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def measured(positions=1, columns=2, seed=0):
    """A part_state whose scales are of one batch alone, with what they came from."""
    rows, cotangents = data(positions, columns, seed)
    found = moments(rows, cotangents)
    _, part_state = Ekfac().factorise(found, {})
    return Ekfac().observe(part_state, rows, cotangents, 1.0), found, fisher(rows, cotangents)


# --- the scales -----------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("columns", [1, 4])
def test_scales_are_the_diagonal_of_the_fisher_block_in_the_basis(positions, columns):
    part_state, _, F = measured(positions, columns)
    U = basis(part_state)
    close(U.t() @ U, torch.eye(D_IN * D_OUT, dtype=torch.float64))
    close(columns_stacked(part_state["scales"]), (U.t() @ F @ U).diagonal())
    close(part_state["scales"].sum(), F.trace())


@pytest.mark.parametrize("chunk", [1, 2 * D_IN * D_OUT, 5 * D_IN * D_OUT])
def test_cases_in_chunks_give_the_same_scales(monkeypatch, chunk):
    whole, _, _ = measured(positions=3)
    monkeypatch.setattr(block, "CHUNK", chunk)
    close(measured(positions=3)[0]["scales"], whole["scales"])


def test_one_position_gives_what_several_give():
    """The short form of a plain network against the general one: a second, empty position."""
    rows, cotangents = data()
    part_state, _, _ = measured()
    padded = [torch.cat([t, torch.zeros_like(t)], dim=-2) for t in (rows, cotangents)]
    close(Ekfac().observe(part_state, *padded, 1.0)["scales"], part_state["scales"])


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("seed", range(5))
def test_no_diagonal_in_the_basis_is_nearer_to_the_fisher_block(positions, seed):
    part_state, found, F = measured(positions, seed=10 * seed)
    ours = torch.linalg.norm(F - dense_block(part_state))
    kronecker = torch.kron(found["A"], found["G"])
    U = basis(part_state)
    off = U.t() @ kronecker @ U  # Kronecker's block is one of those diagonals
    close(off, torch.diag(off.diagonal()))
    assert ours < torch.linalg.norm(F - kronecker) * (1 - 1e-3)
    for n in range(5):
        other = part_state["scales"] + 0.05 * normal(D_OUT, D_IN, seed=n)
        assert ours < torch.linalg.norm(F - dense_block({**part_state, "scales": other}))


def test_it_is_kroneckers_block_where_activations_and_derivatives_are_independent():
    """Every ā meets every g: then the Fisher block is Ā ⊗ G itself."""
    a, g = normal(5, D_IN, seed=1), normal(4, D_OUT, seed=2)
    rows = a.repeat_interleave(4, 0).unsqueeze(1)
    cotangents = g.repeat(5, 1)[None, :, None]
    found = moments(rows, cotangents)
    close(fisher(rows, cotangents), torch.kron(found["A"], found["G"]))
    _, opened = Ekfac().factorise(found, {})
    after = Ekfac().observe(opened, rows, cotangents, 1.0)
    close(after["scales"], opened["scales"])


def test_scales_are_an_exponential_average():
    part_state, _, _ = measured()
    rows, cotangents = data(seed=40)
    U, F = basis(part_state), fisher(rows, cotangents)
    after = Ekfac().observe(part_state, rows, cotangents, 0.3)
    expected = 0.7 * columns_stacked(part_state["scales"]) + 0.3 * (U.t() @ F @ U).diagonal()
    close(columns_stacked(after["scales"]), expected)


def test_before_the_first_basis_there_is_nothing_to_measure_in():
    assert Ekfac().observe({}, *data(), 0.5) == {}


# --- a new basis ----------------------------------------------------------------------------------


def test_projection_is_the_diagonal_of_the_old_block_in_the_new_basis():
    part_state, _, _ = measured()
    _, after = Ekfac().factorise(moments(*data(seed=50)), part_state)
    U = basis(after)
    assert not torch.allclose(after["A.basis"].abs(), part_state["A.basis"].abs(), atol=1e-2)
    close(columns_stacked(after["scales"]), (U.t() @ dense_block(part_state) @ U).diagonal())
    close(after["scales"].sum(), part_state["scales"].sum())
    assert (after["scales"] > 0).all()


def test_projection_onto_the_same_basis_changes_nothing():
    part_state, found, _ = measured()
    _, after = Ekfac().factorise(found, part_state)
    close(after["scales"], part_state["scales"])


def test_projection_follows_order_and_signs():
    part_state, found, _ = measured()
    order = torch.tensor([2, 0, 3, 1])
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    turned = {
        **part_state,
        "A.basis": (part_state["A.basis"] * signs)[:, order],
        "scales": part_state["scales"][:, order],
    }
    _, after = Ekfac().factorise(found, turned)
    close(after["scales"], part_state["scales"])


def test_restart_opens_at_kroneckers_own():
    part_state, _, _ = measured()
    found = moments(*data(seed=50))
    _, after = Ekfac(rebase="restart").factorise(found, part_state)
    close(dense_block(after), torch.kron(found["A"], found["G"]))


@pytest.mark.parametrize("rebase", ["project", "restart"])
def test_it_opens_at_kroneckers_own(rebase):
    found = moments(*data())
    _, part_state = Ekfac(rebase=rebase).factorise(found, {})
    close(dense_block(part_state), torch.kron(found["A"], found["G"]))


# --- the inverse ----------------------------------------------------------------------------------


def strength(gamma=GAMMA):
    return kl.DampingStrength(1.0, gamma, 0.0)


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_damped_inverse_is_the_dense_one(positions):
    part_state, found, _ = measured(positions)
    factored, _ = Ekfac().factorise(found, part_state)
    inverse = Ekfac().damped(factored, part_state, strength(), None)
    expected = torch.linalg.inv(dense_block(part_state) + GAMMA**2 * EYE)
    close(inverse.dense(), expected)
    V = normal(D_OUT, D_IN, seed=3)
    close(columns_stacked(inverse.apply(V)), expected @ columns_stacked(V))
    assert inverse.factors() is None and dataclasses.is_dataclass(inverse)


def test_it_is_kroneckers_damped_without_factors_where_the_scales_are_its_products():
    found = moments(*data())
    factored, part_state = Ekfac().factorise(found, {})
    inverse = Ekfac().damped(factored, part_state, strength(), None)
    shifted = torch.kron(found["A"], found["G"]) + GAMMA**2 * EYE
    close(inverse.dense(), torch.linalg.inv(shifted))
    theirs = kl.lab.component("block", "kronecker(tikhonov='unfactored')")
    other = theirs.damped(*theirs.factorise(found, {}), strength(), None)
    V = normal(D_OUT, D_IN, seed=3)
    close(inverse.apply(V), other.apply(V))


def test_the_inverse_follows_the_scales_between_refreshes():
    part_state, found, _ = measured()
    factored, part_state = Ekfac().factorise(found, part_state)
    later = Ekfac().observe(part_state, *data(seed=60), 0.5)
    inverse = Ekfac().damped(factored, later, strength(), None)
    shifted = dense_block(later) + GAMMA**2 * EYE
    close(inverse.dense(), torch.linalg.inv(shifted))


def test_the_undamped_product():
    part_state, found, _ = measured()
    V = normal(D_OUT, D_IN, seed=3)
    close(
        columns_stacked(Ekfac().product(found, part_state, V)),
        dense_block(part_state) @ columns_stacked(V),
    )
    close(Ekfac().product(found, {}, V), found["G"] @ V @ found["A"])


@pytest.mark.host("nobody looks outside an attempt on an accelerator")
def test_no_damping_and_no_curvature_is_an_error_that_names_the_scales():
    zero = {"A": torch.zeros(D_IN, D_IN), "G": torch.zeros(D_OUT, D_OUT)}
    factored, part_state = Ekfac().factorise(zero, {})
    with pytest.raises(kl.NumericalError, match=r"S: eigenvalue power failed"):
        Ekfac().damped(factored, part_state, strength(0.0), None)


def test_nothing_old_is_written_into():
    part_state, found, _ = measured()
    before = {key: value.clone() for key, value in part_state.items()}
    given = {key: value.clone() for key, value in found.items()}
    factored, after = Ekfac().factorise(found, part_state)
    later = Ekfac().observe(after, *data(seed=60), 0.5)
    Ekfac().damped(factored, later, strength(), None)
    assert all(torch.equal(part_state[key], before[key]) for key in before)
    assert all(torch.equal(found[key], given[key]) for key in given)


def test_float32_and_meta():
    rows, cotangents = (t.float() for t in data(3))
    found = {key: value.float() for key, value in moments(*data(3)).items()}
    factored, part_state = Ekfac().factorise(found, {})
    part_state = Ekfac().observe(part_state, rows, cotangents, 0.5)
    inverse = Ekfac().damped(factored, part_state, strength(torch.tensor(0.3).double()), None)
    assert inverse.weights.dtype == torch.float32
    double = measured(3)[1]
    factored64, memo64 = Ekfac().factorise(double, {})
    memo64 = Ekfac().observe(memo64, *data(3), 0.5)
    expected = Ekfac().damped(factored64, memo64, strength(), None).dense()
    torch.testing.assert_close(inverse.dense().double(), expected, rtol=1e-3, atol=1e-3)
    meta = {key: value.to("meta") for key, value in found.items()}
    with linalg.Attempt():
        factored, part_state = Ekfac().factorise(meta, {})
        part_state = Ekfac().observe(part_state, rows.to("meta"), cotangents.to("meta"), 0.5)
        gamma = torch.empty((), dtype=torch.float64, device="meta")
        inverse = Ekfac().damped(factored, part_state, strength(gamma), None)
    assert isinstance(inverse, EkfacInverse)
    assert inverse.apply(torch.empty(D_OUT, D_IN, device="meta")).shape == (D_OUT, D_IN)
