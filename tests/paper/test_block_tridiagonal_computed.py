"""How the tridiagonal inverse is computed: dead units, saving, precision, messages."""

import pytest
import torch
from paper.chain_dense import (
    STRENGTH,
    Table,
    assembled,
    build,
    close,
    dense_blocks,
    flat,
    pis,
    precision,
    vec,
)

from kfac_lab.core import linalg
from kfac_lab.core.state import DampingStrength, from_tree, to_tree
from kfac_lab.core.vector import Vec
from kfac_lab.errors import NumericalError
from kfac_lab.paper.block_diagonal import BlockDiagonal
from kfac_lab.paper.block_tridiagonal import BlockTridiagonal
from kfac_lab.paper.kronecker import Kronecker


def test_the_smaller_side_is_decomposed(monkeypatch) -> None:
    """Σ⁻¹ needs eigenvectors of min(d, d of the next layer) only."""
    sizes = []
    real = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: sizes.append(len(m)) or real(m))
    build(Table((9, 7, 3, 8, 6), 50))
    # A: inputs of 10, 8, 4, 9; G: outputs of 7, 3, 8, 6.
    assert sorted(sizes) == sorted([8, 4, 4, 3, 3, 6])


def test_dead_units_stay_finite() -> None:
    table = Table((3, 5, 2, 4))
    table.a[1][:, 2] = 0
    table.g[1][:, 0] = 0
    table.g[2].zero_()
    table = remade(table)
    found = assembled(build(table), table)
    assert torch.isfinite(found).all()
    pi = [p if torch.isfinite(p) else torch.ones(()).double() for p in pis(table)]
    close(found, precision(dense_blocks(table, pi=pi), table.links))


def remade(table):
    """The table with the moments of its rows as they are now."""
    for i, kept in enumerate(table.kept):
        kept |= {"A": table.A(i, i), "G": table.G(i, i)}
    table.crosses = {}
    return table


def test_previous_of_any_kind_is_taken_or_ignored() -> None:
    table = Table((3, 5, 2, 4), 100)
    expected = assembled(build(table), table)
    blocks = [Kronecker(inverse="newton_schulz")] * 3
    for previous in (None, object(), build(table, structure=BlockDiagonal()), build(table)):
        close(assembled(build(table, blocks, previous=previous), table), expected)
    other = build(Table((3, 4, 3, 2)))
    close(assembled(build(table, blocks, previous=other), table), expected)
    found = build(table, blocks, BlockDiagonal(), previous=build(table))
    close(assembled(found, table), assembled(build(table, structure=BlockDiagonal()), table))


def test_factored_holds_nothing_of_the_ledger_and_serves_every_candidate() -> None:
    table = Table((3, 5, 2, 4))
    structure = BlockTridiagonal()
    factored, part_states = structure.factorise(table.layers, [Kronecker()] * 3, table, [{}] * 3)
    expected = [precision(dense_blocks(table, gamma), table.links) for gamma in (0.1, 0.3, 1.0)]
    store = [*table.crosses.values(), *[(m["A"], m["G"]) for m in table.kept]]
    for pair in store:
        for tensor in pair:
            tensor.fill_(float("nan"))
    for gamma, dense in zip((0.1, 0.3, 1.0), expected, strict=True):
        strength = STRENGTH._replace(gamma=gamma)
        close(assembled(structure.damped(factored, part_states, strength, None), table), dense)


@pytest.mark.parametrize("sigma", ["eigh", "smith"])
def test_it_can_be_saved(sigma) -> None:
    table = Table((3, 5, 2, 4))
    structure = BlockTridiagonal(sigma=sigma)
    factored, part_states = structure.factorise(table.layers, [Kronecker()] * 3, table, [{}] * 3)
    found = structure.damped(factored, part_states, STRENGTH, None)
    again = structure.damped(*from_tree(to_tree((factored, part_states))), STRENGTH, None)
    restored = from_tree(to_tree(found))
    v = vec(table)
    assert torch.equal(flat(again.apply(v)), flat(found.apply(v)))
    assert torch.equal(flat(restored.apply(v)), flat(found.apply(v)))


@pytest.mark.parametrize("sigma", ["eigh", "smith"])
def test_single_precision_agrees(sigma) -> None:
    table = Table((3, 5, 2, 4))
    v = vec(table)
    expected = flat(build(table).apply(v))
    for kept in table.kept:
        kept |= {name: value.float() for name, value in kept.items()}
    table.crosses = {(i, j): tuple(x.float() for x in table.cross(i, j)) for i, j in table.links}
    found = build(table, structure=BlockTridiagonal(sigma=sigma))
    u = found.apply(Vec([m.float() for m in v]))
    assert all(m.dtype == torch.float32 for m in u)
    close(flat(u).double(), expected, 1e-3)


@pytest.mark.parametrize("sigma", ["eigh", "smith"])
def test_nothing_is_read_by_the_host(sigma) -> None:
    table = Table((3, 5, 2, 4), device="meta")
    gamma = torch.empty((), dtype=torch.float64, device="meta")
    strength = DampingStrength(gamma, gamma, gamma)
    found = build(table, structure=BlockTridiagonal(sigma=sigma), strength=strength)
    assert all(m.device.type == "meta" for m in found.apply(vec(table)))


def test_apply_writes_into_nothing() -> None:
    table = Table((3, 5, 2, 4))
    found, v = build(table), vec(table)
    before = flat(v)
    first = flat(found.apply(v))
    assert torch.equal(flat(v), before) and torch.equal(flat(found.apply(v)), first)


def test_a_failure_names_the_layer_and_the_factor() -> None:
    table = Table((3, 5, 2, 4))
    A, G = table.cross(1, 2)
    table.crosses[1, 2] = (A, G * float("nan"))
    if A.device.type != "cpu":  # outside an attempt nobody looks there: it is NaN
        assert torch.isnan(build(table).links[1].psi_g).all()
        return
    with pytest.raises(NumericalError, match=r"net\.1, Σ"):
        build(table)
    table.crosses[1, 2] = (A, G)
    table.kept[2]["A"] = table.kept[2]["A"] * float("nan")
    with pytest.raises(NumericalError, match=r"net\.2, Ā"):
        build(table, [Kronecker(pi="one")] * 3)


def test_an_attempt_repeats_the_same_calls() -> None:
    table = Table((3, 5, 2, 4))
    calls = []
    for _ in range(2):
        with linalg.Attempt() as attempt:
            build(table)
        calls.append([(call.label, call.occurrence) for call in attempt.calls])
        assert all(value == 1 for value in linalg.host(attempt.flags()))
    assert calls[0] == calls[1]
    assert all(label[0].startswith("net.") for label, _ in calls[0])
