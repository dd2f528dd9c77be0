"""No step moves a global generator, and none depends on one."""

import random

import numpy as np
import pytest
import torch
from devices import here

import kfac_lab as kl
from invariants.helpers import problem_of, recipe_of, run_of, same_run

ESTIMATORS = ["sampled(fraction=0.5)", "exact(fraction=0.5)", "empirical(fraction=0.5)"]


def everything():
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


def disturb(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def untouched(before):
    after = everything()
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all() and before[2] == after[2]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", ["explicit", "generic"])
def test_neither_moved_nor_used(kind, estimator, tmp_path):
    made = run_of(kind, estimator=estimator), run_of(kind, estimator=estimator)
    for seed, run in enumerate(made):
        disturb(seed)
        before = everything()
        run.advance(4)
        run.swap(structure="block_tridiagonal", block="kronecker(factor_g='lowrank_plus_diagonal')")
        run.advance(3)
        run.fork().rewind(2)
        run.save(tmp_path / "run.pt")
        run.evaluate("train", at="best")
        run.advance(1)
        untouched(before)
    same_run(*made)


@pytest.mark.parametrize("method", ["nag", "adam", "muon"])
def test_baselines_neither_move_nor_use_them(method):
    recipe = f"method = {method}\nbatch = constant(size=16)\naverage = polyak"
    made = [kl.Run(problem_of("generic"), recipe, seed=0, device=here()) for _ in range(2)]
    for seed, run in enumerate(made):
        disturb(seed)
        before = everything()
        run.advance(5)
        untouched(before)
    same_run(*made)


def test_dropout_left_on_in_an_evaluation_mode_model_is_seeded_too():
    made = []
    for seed in range(2):
        problem = problem_of("generic")
        problem.model.eval()
        problem.model[3].train()  # Monte Carlo dropout: the root says eval, the module trains
        run = kl.Run(problem, recipe_of("generic"), seed=0, device=here())
        disturb(seed)
        before = everything()
        run.advance(4)
        untouched(before)
        made.append(run)
    same_run(*made)


def test_attaching_moves_nothing():
    disturb(5)
    problem = problem_of("generic")
    before = everything()
    kl.Run(problem, recipe_of("generic"), seed=0, device=here())
    untouched(before)
    before = everything()
    kl.Run("digits", "robust", seed=0, device=here())
    untouched(before)
