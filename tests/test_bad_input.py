"""What outsiders get wrong, and the one sentence that tells them, before anything has changed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import kfac_lab as kl

N = 40
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
CLASSES = X[:, :3].argmax(1)
REAL = X[:, :3].sigmoid()


def network(inputs=6, outputs=3):
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs))


def problem_of(**changes):
    parts = {"model": network(), "likelihood": "categorical", "inputs": X, "targets": CLASSES}
    return kl.Problem(**{**parts, **changes})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": nn.Linear}, "must be an nn.Module"),
        ({"targets": CLASSES[:10]}, "40 inputs came with 10 targets"),
        ({"inputs": X.numpy()}, "inputs must be a tensor of cases .*, not ndarray"),
        ({"targets": torch.tensor(1)}, "targets must be a tensor of cases .*, not a single number"),
        ({"inputs": X[:0], "targets": CLASSES[:0]}, "no case"),
        ({"likelihood": "bernoulli", "targets": 3 * REAL}, r"needs targets in \[0, 1\]"),
        ({"test": (X,)}, "test must be a Split or a pair"),
        ({"test": (X, CLASSES[:3])}, "40 inputs came with 3 targets"),
        ({"l2": math.inf}, "l2=inf must be at least 0 and finite"),
        ({"l2": None}, "l2=None must be at least 0"),
        ({"inputs": None, "targets": None, "data": 3}, "map-style dataset .* or a callable"),
        ({"inputs": None, "targets": None, "data": []}, "no case"),
    ],
)
def test_problems_that_are_none(changes, sentence):
    with pytest.raises(kl.KfacLabError, match=sentence):
        problem_of(**changes)


def test_a_loader_is_told_what_to_give():
    data = torch.utils.data.TensorDataset(X, CLASSES)
    with pytest.raises(kl.RecipeError, match=r"give loader\.dataset"):
        problem_of(inputs=None, targets=None, data=torch.utils.data.DataLoader(data))


@pytest.mark.parametrize("found", [None, (X[:4],), (X[:4], CLASSES[:2])])
def test_a_source_that_gives_no_pair_of_cases(found):
    problem = problem_of(inputs=None, targets=None, data=lambda step, size: found)
    run = kl.Run(problem, kl.Recipe(batch="constant(size=4)"))
    with pytest.raises(kl.DataError, match=r"pair|4 inputs came with 2 targets"):
        run.advance(1)
    assert run.step == 0


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x), x


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": network(5)}, r"does not take inputs of shape \(2, 6\)"),
        ({"inputs": X.double()}, "does not take inputs .* torch.float64"),
        ({"model": Two()}, "gives tuple .* one tensor"),
        ({"targets": CLASSES.float()}, r"real targets are probabilities .* targets.long\(\)"),
        ({"targets": CLASSES.int()}, r"class numbers are torch.int64.* targets.long\(\)"),
        ({"targets": REAL.long()}, r"class numbers of shape \(2, 3\)"),
        ({"targets": CLASSES + 7}, "class numbers go from 0 to 2"),
        ({"likelihood": "gaussian", "targets": REAL[:, 0]}, r"targets of shape \(2,\)"),
        ({"likelihood": "bernoulli", "targets": REAL[:, :2]}, r"targets of shape \(2, 2\)"),
        ({"likelihood": "bernoulli", "targets": REAL.long()}, r"targets.float\(\)"),
    ],
)
def test_cases_that_do_not_fit_the_model(changes, sentence):
    with pytest.raises(kl.DataError, match=sentence):
        kl.Run(problem_of(**changes), "robust")


@pytest.mark.parametrize("method", ["nag", "adam", "muon"])
def test_targets_are_never_broadcast_by_a_baseline_either(method):
    model = network(outputs=1)
    run = kl.Run(problem_of(model=model, likelihood="gaussian", targets=REAL[:, 0]), method)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(kl.DataError, match="one target for each output"):
        run.advance(1)
    assert all(map(torch.equal, before, model.parameters())) and run.step == 0


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.Sequential(nn.LazyLinear(3)), "has no shape yet"),
        (network().half(), "0.weight of Linear is torch.float16"),
        (network().bfloat16(), "in float32 or float64"),
    ],
)
def test_parameters_that_cannot_be_trained(model, sentence):
    with pytest.raises(kl.RecipeError, match=sentence):
        kl.Run(problem_of(model=model))
