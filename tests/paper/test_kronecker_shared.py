"""What the candidates of one refresh share, and warm starts."""

import pytest
import torch
from paper.kronecker_dense import inverted, moments, rows, strength, tensors

from kfac_lab.core import linalg
from kfac_lab.core.state import to_tree
from kfac_lab.paper.kronecker import Kronecker


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
