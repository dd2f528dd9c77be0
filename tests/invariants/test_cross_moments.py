"""Cross moments open at zero and share the diagonals' weights: a swap works at any step at once."""

import math

import pytest
import torch
from devices import here

import kfac_lab as kl
from invariants.helpers import run_of

STEPS = 60


def joint(engine, name):
    """The joint second moment of all layers, [Σd, Σd] float64; what is not kept is zero."""
    current = {k: v.double() for k, v in engine.store.current.items() if k[0] == name}
    count = len(engine.network.uses)
    rows = []
    for i in range(count):
        row = []
        for j in range(count):
            if (name, i, j) in current:
                row.append(current[name, i, j])
            elif (name, j, i) in current:
                row.append(current[name, j, i].t())
            else:
                row.append(None)
        rows.append(row)
    sides = [current[name, i, i].shape[0] for i in range(count)]
    return rows, sides


def chain(engine, name):
    """[[M_ii, M_ij], [M_ji, M_jj]] of every link: the marginals that a chain is made of."""
    rows, _ = joint(engine, name)
    for i, j in engine.store.links:
        top = torch.cat([rows[i][i], rows[i][j]], 1)
        yield torch.cat([top, torch.cat([rows[j][i], rows[j][j]], 1)])


def semidefinite(matrix):
    matrix = (matrix + matrix.t()) / 2
    low, high = torch.linalg.eigvalsh(matrix)[[0, -1]].tolist()
    return low >= -1e-6 * high


def finite(value):
    """Every tensor in a component's dataclasses is finite."""
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    if isinstance(value, (tuple, list)):
        return all(finite(v) for v in value)
    if hasattr(value, "__dataclass_fields__"):
        return all(finite(getattr(value, f)) for f in value.__dataclass_fields__)
    return True


def test_a_swap_at_every_step_factorises_at_once():
    """By the two ways of Σ in turns; a step's neighbours have the other one."""
    swapped({k: ("eigh", "smith")[k % 2] for k in range(1, STEPS + 1)})


@pytest.mark.soak
@pytest.mark.parametrize("sigma", ["eigh", "smith"])
def test_a_swap_at_every_step_by_each(sigma):
    swapped(dict.fromkeys(range(1, STEPS + 1), sigma))


def swapped(sigmas):
    """Digits, the paper's recipe; from each of 60 steps a fork goes on tridiagonally."""
    recipe = kl.Recipe.named("paper").replace(
        batch="constant(size=128)", estimator="sampled(fraction=0.5)"
    )
    run = kl.Run("digits", recipe, seed=0, device=here())
    for k, sigma in sigmas.items():
        run.advance(1)
        fork = run.fork()
        fork.swap(structure=f"block_tridiagonal(sigma={sigma!r})")
        fork.advance(2 if k % 20 else 5)
        first = fork.history.records[k]
        assert first.due.factors and first.due.inverse
        assert first.kept_inverse == 0 and first.jitter == {}
        assert math.isfinite(first.loss) and math.isfinite(first.predicted)
        assert first.predicted < 0
        engine = fork.stepper
        assert len(engine.state_.inverse.links) == 5
        assert finite(engine.state_.inverse) and finite(engine.state_.previous.matrices)
        for name in ("A", "G"):
            assert all(semidefinite(m) for m in chain(engine, name)), (k, name)


@pytest.mark.parametrize("opened", [0, 1, 2, 7, 30])
def test_the_whole_joint_moment_is_positive_semidefinite(opened):
    """With every pair linked, not neighbours alone: the dense joint Ā and G of all layers."""
    from kfac_lab.paper.block_tridiagonal import BlockTridiagonal

    run = run_of(estimator="sampled(fraction=0.5)")
    run.advance(opened)
    with pytest.MonkeyPatch.context() as patch:
        pairs = [(i, j) for i in range(3) for j in range(i + 1, 3)]
        patch.setattr(BlockTridiagonal, "pairs", lambda self, chains: pairs)
        # A chain has neighbours only: keep the moments, build the inverse of each layer alone.
        patch.setattr(BlockTridiagonal, "damped", _apart)
        run.swap(structure="block_tridiagonal")
        for _ in range(10):
            run.advance(1)
            for name in ("A", "G"):
                rows, sides = joint(run.stepper, name)
                matrix = torch.cat([torch.cat(row, 1) for row in rows])
                assert matrix.shape == (sum(sides), sum(sides))
                assert semidefinite(matrix), (opened, name)


def _apart(self, factored, part_states, strength, previous):
    from kfac_lab.paper.block_diagonal import BlockDiagonal

    return BlockDiagonal().damped(factored.diagonal, part_states, strength, previous)


@pytest.mark.parametrize("opened", [0, 1, 5, 25])
def test_coupling_is_one_minus_the_product_of_epsilon(opened):
    run = run_of()
    run.advance(opened)
    run.swap(structure="block_tridiagonal")
    run.advance(12)
    column, remaining = run.history["cross_weight"], 1.0
    assert list(column[:opened]) == [0.0] * opened
    for k in range(opened + 1, opened + 13):
        remaining *= min(1 - 1 / k, 0.95)
        assert column[k - 1] == pytest.approx(1 - remaining, abs=1e-12)
    if opened == 0:
        assert list(column) == [1.0] * 12  # nothing came before them
    run.swap(structure="block_diagonal")
    run.advance(1)
    assert run.history["cross_weight"][-1] == 0.0  # no link, no cross_weight
    run.swap(structure="block_tridiagonal")
    run.advance(1)
    k = run.step
    assert run.history["cross_weight"][-1] == pytest.approx(1 - min(1 - 1 / k, 0.95))  # opened anew


def test_cross_moments_open_at_zero_and_the_diagonals_are_kept():
    run = run_of().advance(6)
    before = {k: v.clone() for k, v in run.stepper.store.current.items()}
    run.swap(structure="block_tridiagonal")
    store = run.stepper.store
    for key, value in store.current.items():
        if key in before:
            assert torch.equal(value, before[key])
        else:
            assert not value.any()
    assert set(store.current) - set(before) == {
        (name, i, j) for name in ("A", "G") for i, j in store.links
    }


def test_a_block_of_no_two_factors_ends_the_chain():
    run = run_of(block={"2": "diagonal", "*": "kronecker"}, structure="block_tridiagonal")
    run.advance(2)
    assert run.stepper.store.links == ()  # the middle of three layers is out
    assert run.history["cross_weight"][-1] == 0.0
