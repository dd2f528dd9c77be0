"""A method of three methods is enough: step, state, load, as the protocol says."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.hooks import Lab


@dataclass(frozen=True)
class Descent:
    lr: float = 0.05

    def attach(self, problem, recipe, seed):
        return DescentStepper(problem, recipe["batch"], seed, self.lr)


class DescentStepper:
    """Heavy ball; its state are its own tensors, which it goes on writing into."""

    def __init__(self, problem, batch, seed, lr):
        self.problem, self.batch, self.seed, self.lr = problem, batch, seed, lr
        self.k = 0
        self.velocity = [torch.zeros_like(p) for p in problem.model.parameters()]

    def step(self):
        self.k += 1
        drawn = self.problem.draw(self.k, self.batch.size(self.k, 40), self.seed)
        theta = list(self.problem.model.parameters())
        loss = self.problem.likelihood.loss(self.problem.model(drawn.inputs), drawn.targets).mean()
        gradients = torch.autograd.grad(loss, theta)
        with torch.no_grad():
            for p, v, g in zip(theta, self.velocity, gradients, strict=True):
                p += v.mul_(0.9).sub_(g, alpha=self.lr)
        return kl.StepRecord(step=self.k, loss=loss.detach())

    def state(self):
        return {"k": self.k, "v": self.velocity, "model": dict(self.problem.model.state_dict())}

    def load(self, state):
        self.k, self.velocity = state["k"], state["v"]
        self.problem.model.load_state_dict(state["model"])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    lab = Lab(entry_points=False)
    lab.register("method", "descent", Descent)
    monkeypatch.setattr("kfac_lab.hooks.manager.lab", lab)


def problem():
    torch.manual_seed(0)
    x = torch.randn(40, 5)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return kl.Problem(model=model, likelihood="categorical", inputs=x, targets=x[:, :3].argmax(1))


def run_of():
    return kl.Run(problem(), kl.Recipe(method="descent", batch="constant(size=20)"))


def parameters(run):
    return torch.cat([p.detach().flatten() for p in run.problem.model.parameters()])


def test_it_advances_forks_rewinds_and_loads_exactly(tmp_path):
    run = run_of().advance(6)
    at_six = parameters(run)
    fork, path = run.fork(), run.save(tmp_path / "a.pt")
    run.advance(4)
    at_ten = parameters(run)
    assert run.step == len(run.history) == 10 and run.seconds > 0
    assert torch.equal(parameters(fork), at_six)
    assert torch.equal(parameters(fork.advance(4)), at_ten)
    assert torch.equal(parameters(kl.Run.load(path, problem=problem()).advance(4)), at_ten)
    assert torch.equal(parameters(run.rewind(6)), at_six)
    assert run.step == 6 and torch.equal(parameters(run.advance(4)), at_ten)
    assert all(a < b for a, b in pairwise(run.history["seconds"]))


def test_it_evaluates_and_reports():
    run = run_of()
    before = run.evaluate("train").loss
    assert run.advance(20).evaluate("train", at="best").loss < before
    assert "descent" in run.report() and "loss" in run.report()
    assert {row.claimed_by for row in run.coverage()} == {"descent"} and len(run.coverage()) == 4
    with pytest.raises(kl.RecipeError, match="no average"):
        run.evaluate("train", at="average")


def test_its_parts_are_not_swapped():
    run = run_of().advance(1)
    with pytest.raises(kl.RecipeError, match="'descent' takes no swap of batch"):
        run.swap(batch="constant(size=10)")
    assert not run.history.marks and run.recipe.text_of("batch") == "constant(size=20)"
    assert run.advance(2).step == 3
