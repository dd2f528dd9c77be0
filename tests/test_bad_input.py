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
        ({"model": network(5)}, r"does not take inputs of shape \(3, 6\)"),
        ({"inputs": X.double()}, "does not take inputs .* torch.float64"),
        ({"model": Two()}, "gives a tuple .* one tensor"),
        ({"targets": CLASSES.float()}, r"real targets are probabilities .* targets.long\(\)"),
        ({"targets": CLASSES.int()}, r"class numbers are torch.int64.* targets.long\(\)"),
        ({"targets": REAL.long()}, r"class numbers of shape \(3, 3\)"),
        ({"targets": CLASSES + 7}, "class numbers go from 0 to 2"),
        ({"likelihood": "gaussian", "targets": REAL[:, 0]}, r"targets of shape \(3,\)"),
        ({"likelihood": "bernoulli", "targets": REAL[:, :2]}, r"targets of shape \(3, 2\)"),
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
        (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4).double()), "of several types"),
    ],
)
def test_parameters_that_cannot_be_trained(model, sentence):
    with pytest.raises(kl.RecipeError, match=sentence):
        kl.Run(problem_of(model=model))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: kl.Run(network()), "a run takes a problem's name or a Problem, not a Sequential"),
        (lambda: kl.Run(problem_of(), seed=1.5), "seed=1.5 must be a whole number"),
        (lambda: kl.Run(problem_of(), device="gpu"), "device='gpu' is none"),
        (lambda: kl.Run(problem_of(), device="cuda:77"), "device='cuda:77' is not there"),
        (lambda: kl.Recipe.named(3), "the name of a recipe is text, not 3"),
        (lambda: kl.Recipe(damping="tied(lower=0.9)"), "lower=0.9 must not be above upper=0.75"),
        (lambda: kl.Recipe(damping="steered(lam_min=2, lam_max=1)"), "lam_min=2.* lam_max=1"),
        (lambda: kl.lab.names("dampng"), "did you mean 'damping'"),
        (lambda: kl.lab.components("dampng"), "did you mean 'damping'"),
        (lambda: kl.KFAC(network(), lr="fast"), "lr='fast' must be at least 0"),
        (lambda: kl.KFAC(network(), seed=None), "seed=None must be a whole number"),
        (lambda: kl.KFAC(network()).load_state_dict(None), "a state is what state_dict"),
        (lambda: kl.Preconditioner(network(), kl_clip="a"), "kl_clip='a' must be above 0"),
        (lambda: kl.Preconditioner(network(), optimizer=3), "must be the torch optimiser"),
        (lambda: kl.Preconditioner(network()).step(loss_scale="x"), "loss_scale='x' must be above"),
    ],
)
def test_arguments_of_another_kind(call, sentence):
    with pytest.raises(kl.KfacLabError, match=sentence):
        call()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda run: run.advance(1.5), "steps=1.5 must be a whole number"),
        (lambda run: run.advance(-1), "steps=-1 must be at least 0"),
        (lambda run: run.advance(seconds="2"), "seconds='2' must be at least 0"),
        (lambda run: run.advance(seconds=math.nan), "seconds=nan must be at least 0"),
        (lambda run: run.advance(until=3), "until=3 must be a function"),
        (lambda run: run.rewind("0"), "rewind='0' must be a whole number"),
        (lambda run: run.evaluate(cases="3"), "cases='3' must be a whole number"),
        (lambda run: run.history["los"], "^history has no column 'los'; it has step, loss"),
        (lambda run: run.save("/nowhere/at/all.pt"), "cannot be written"),
    ],
)
def test_a_run_is_left_as_it_was(call, sentence):
    run = kl.Run(problem_of(), "robust").advance(2)
    with pytest.raises(kl.KfacLabError, match=sentence):
        call(run)
    assert run.step == len(run.history) == 2 and not run.history.marks


def test_a_column_that_is_not_there_is_a_key_error_too():
    with pytest.raises(KeyError):
        kl.Run(problem_of(), "robust").history["los"]


def test_files_that_are_no_run(tmp_path):
    path = tmp_path / "notes.pt"
    path.write_text("nothing of ours")
    with pytest.raises(kl.CheckpointError, match=r"is not a saved run: no file of Run\.save$"):
        kl.Run.load(path)
    kl.Run(problem_of(), "robust").save(path)
    with pytest.raises(kl.CheckpointError, match="give the Problem"):
        kl.Run.load(path, problem=network())


@pytest.mark.parametrize(
    ("inputs", "targets", "sentence"),
    [
        (X[:, :5], CLASSES, r"cases of shape \(5,\) and torch.float32; those before had shape"),
        (X.double(), CLASSES, "torch.float64; those before"),
        (X, CLASSES + 7, "class numbers go from 0 to 2"),
        (X, CLASSES.float(), "targets.long"),
    ],
)
def test_a_batch_of_another_kind(inputs, targets, sentence):
    model = network()
    opt = kl.KFAC(model)
    opt.step(X, CLASSES)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(kl.DataError, match=sentence):
        opt.step(inputs, targets)
    assert opt.step_count == 1 and all(map(torch.equal, before, model.parameters()))
