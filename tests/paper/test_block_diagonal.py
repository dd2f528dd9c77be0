"""F̆⁻¹ against a dense solve over all layers (oracle 2)."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from devices import here

from kfac_lab.core import linalg
from kfac_lab.core.state import DampingStrength, from_tree, to_tree
from kfac_lab.core.vector import Vec
from kfac_lab.errors import NumericalError
from kfac_lab.paper.block_diagonal import BlockDiagonal
from kfac_lab.paper.diagonal import Diagonal, Identity
from kfac_lab.paper.kronecker import Kronecker

DIMS = (4, 3, 6, 2, 5)
GAMMA = 0.3
STRENGTH = DampingStrength(
    torch.tensor(0.7), torch.tensor(GAMMA, dtype=torch.float64), torch.tensor(0.0)
)


class Table:
    """Moments of random rows: `table[i]` is what layer i's block may ask for."""

    links = ()

    def __init__(self, cases=30, bias=True, dims=DIMS, device=None, dtype=torch.float64):
        device = here() if device is None else device
        self.rows = []
        for d_in, d_out in itertools.pairwise(dims):
            a, g = torch.randn(cases, d_in + bias).double(), torch.randn(cases, d_out).double()
            if bias:
                a[:, -1] = 1
            self.rows.append((a.to(device, dtype), g.to(device, dtype)))
        self.layers = [
            SimpleNamespace(path=f"net.{i}", d_in=a.shape[1], d_out=g.shape[1])
            for i, (a, g) in enumerate(self.rows)
        ]
        self.kept = [
            {
                "A": a.t() @ a / cases,
                "G": g.t() @ g / cases,
                "A.diagonal": (a * a).mean(0),
                "G.diagonal": (g * g).mean(0),
            }
            for a, g in self.rows
        ]

    def __getitem__(self, layer):
        return self.kept[layer]

    def cross(self, i, j):
        raise AssertionError("a block-diagonal structure asks for no cross moments")


def vec(table):
    return Vec([torch.randn(m["G"].shape[0], m["A"].shape[0]).to(m["A"]) for m in table.kept])


def flat(vector):
    return torch.cat([m.t().reshape(-1) for m in vector])


def damped_block(A, G, gamma=GAMMA):
    pi = ((A.trace() / len(A)) / (G.trace() / len(G))).sqrt()
    eye_a, eye_g = torch.eye(len(A)).to(A), torch.eye(len(G)).to(G)
    return torch.kron(A + pi * gamma * eye_a, G + gamma / pi * eye_g)


def build(table, blocks, part_states=None, strength=STRENGTH, previous=None):
    structure = BlockDiagonal()
    part_states = part_states or [{}] * len(blocks)
    factored, part_states = structure.factorise(table.layers, blocks, table, part_states)
    return structure.damped(factored, part_states, strength, previous)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cases", [2, 30])
def test_it_is_the_inverse_of_the_diagonal_blocks(cases, bias) -> None:
    table = Table(cases, bias)
    v = vec(table)
    dense = torch.block_diag(*[damped_block(m["A"], m["G"]) for m in table.kept])
    found = build(table, [Kronecker()] * 4).apply(v)
    torch.testing.assert_close(
        flat(found), torch.linalg.solve(dense, flat(v)), rtol=1e-9, atol=1e-9
    )


def test_every_layer_has_its_own_block_and_state() -> None:
    table = Table()
    v = vec(table)
    blocks = [Kronecker(), Diagonal(), Identity(), Kronecker(tikhonov="unfactored")]
    a, g = (rows.to(v[0].device) for rows in table.rows[1])
    part_states = [{}, Diagonal().observe({}, a[:, None], g[None, :, None], 1.0), {"kept": 3}, {}]
    structure = BlockDiagonal()
    factored, after = structure.factorise(table.layers, blocks, table, part_states)
    assert list(after) == part_states
    u = structure.damped(factored, after, STRENGTH, None).apply(v)
    kept = table.kept
    dense = torch.block_diag(
        damped_block(kept[0]["A"], kept[0]["G"]),
        torch.diag(part_states[1]["curvature"].t().reshape(-1)) + GAMMA**2 * torch.eye(24).double(),
        torch.eye(14).double(),
        torch.kron(kept[3]["A"], kept[3]["G"]) + GAMMA**2 * torch.eye(15).double(),
    )
    torch.testing.assert_close(flat(u), torch.linalg.solve(dense, flat(v)), rtol=1e-9, atol=1e-9)


def test_it_keeps_no_cross_moments() -> None:
    assert tuple(BlockDiagonal().pairs([[0, 1, 2], [3]])) == ()


def test_the_blocks_go_with_what_they_factorised() -> None:
    """A restored run damps with the blocks that factorised, whatever the recipe says by then."""
    table = Table()
    v = vec(table)
    blocks = [Kronecker(inverse="eigh"), Kronecker(pi="one"), Identity(), Diagonal()]
    structure = BlockDiagonal()
    factored, part_states = structure.factorise(table.layers, blocks, table, [{}] * 4)
    restored, states_restored = from_tree(to_tree((factored, part_states)))
    assert restored.blocks == tuple(blocks)
    expected = structure.damped(factored, part_states, STRENGTH, None)
    found = structure.damped(restored, states_restored, STRENGTH, None)
    assert torch.equal(flat(found.apply(v)), flat(expected.apply(v)))
    assert torch.equal(flat(from_tree(to_tree(expected)).apply(v)), flat(expected.apply(v)))


def test_a_block_gets_its_own_inverse_in_use() -> None:
    table = Table(100)
    blocks = [Kronecker(inverse="newton_schulz", iterations=4)] * 4
    exact = build(table, [Kronecker()] * 4)
    with linalg.Attempt():  # four steps suffice from next to the inverse only; nobody looks here
        found = build(table, blocks, previous=exact)
    for new, old in zip(found.inverses, exact.inverses, strict=True):
        torch.testing.assert_close(new.A_inverse, old.A_inverse, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("previous", [None, object(), SimpleNamespace(inverses=(1, 2))])
def test_a_preconditioner_of_another_kind_is_no_start(previous) -> None:
    table = Table(100)
    found = build(table, [Kronecker(inverse="newton_schulz")] * 4, previous=previous)
    v = vec(table)
    expected = build(table, [Kronecker()] * 4)
    torch.testing.assert_close(flat(found.apply(v)), flat(expected.apply(v)))


@pytest.mark.host("elsewhere a failure is read with the step that made it")
def test_a_failure_names_the_layer_and_the_factor() -> None:
    table = Table()
    table.kept[2]["G"] = table.kept[2]["G"] * float("nan")
    with pytest.raises(NumericalError, match=r"net\.2, G"):
        build(table, [Kronecker(pi="one")] * 4)


def test_single_precision_and_no_host_read() -> None:
    single = Table(dtype=torch.float32)
    assert all(
        m.dtype == torch.float32 for m in build(single, [Kronecker()] * 4).apply(vec(single))
    )
    meta = Table(device="meta")
    gamma = torch.empty((), dtype=torch.float64, device="meta")
    found = build(meta, [Kronecker()] * 4, strength=DampingStrength(gamma, gamma, gamma))
    assert all(m.device.type == "meta" for m in found.apply(vec(meta)))
