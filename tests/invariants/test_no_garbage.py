"""A step leaves nothing for the garbage collector: its tensors go when it is over.

A circle of references keeps them until the collector looks, which may be a hundred steps later.
"""

import gc

import pytest
import torch

import kfac_lab as kl


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))


def data():
    return torch.randn(64, 8), torch.randint(0, 3, (64,))


def left_by(step):
    """How many objects five steps leave in circles, once all is made that is made once."""
    for _ in range(6):
        step()
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        for _ in range(5):
            step()
        return gc.collect()
    finally:
        if was:
            gc.enable()


EVERY = ["paper", "robust", "paper_tridiagonal", "quick", "adam", "muon"]


@pytest.mark.parametrize(
    ("recipe", "graphs"),
    [*((name, "auto") for name in EVERY), ("paper", True), ("paper_tridiagonal", True)],
)
@pytest.mark.filterwarnings("ignore:a batch of")
def test_a_step_of_a_run(recipe, graphs):
    x, y = data()
    problem = kl.Problem(model=network(), likelihood="categorical", inputs=x, targets=y, l2=1e-3)
    run = kl.Run(problem, recipe=recipe, graphs=graphs)
    assert left_by(run.step_once) == 0


@pytest.mark.filterwarnings("ignore:a batch of")
def test_a_step_of_a_loop_of_ones_own():
    optimizer, (x, y) = kl.KFAC(network(), "categorical"), data()
    assert left_by(lambda: optimizer.step(x, y)) == 0


@pytest.mark.filterwarnings("ignore:a batch of")
def test_a_step_of_a_preconditioner():
    model, (x, y) = network(), data()
    own, outer = kl.Preconditioner(model, "categorical"), torch.optim.SGD(model.parameters(), 0.01)

    def step():
        outer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        own.step()
        outer.step()

    assert left_by(step) == 0
