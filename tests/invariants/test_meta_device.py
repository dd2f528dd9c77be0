"""Whole steps on torch's ``meta`` device: no value exists, so none can be read or mixed in.

There is no meta generator, so the seeded draws give shapes alone; ``linalg.host`` gives canned
answers. Batch indices are drawn on the CPU and sent over: the one tensor that crosses.
"""

import itertools

import pytest
import torch
from torch import nn

import kfac_lab as kl
from invariants.grid import ALL, KFAC, SOAK, recipe_named
from invariants.helpers import problem_of, recipe_of
from kfac_lab.core import linalg
from kfac_lab.core.dispatch import DispatchMode
from kfac_lab.core.program.calls import tensors
from kfac_lab.engine import attach
from kfac_lab.paper.momentum import Optimal

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.host("has a device of its own, meta"),
]
STEPS = 4  # with T1=2 and T2=T3=4: refreshes with and without γ, steady ones with and without λ


class Mixed(AssertionError):
    """Tensors of two devices met in one operation."""


class OneDevice(DispatchMode):
    """Fails where an operation sees two devices; an upload of batch indices is no such thing."""

    def __init__(self):
        super().__init__()
        self.operations = self.uploads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        here, there = ({t.device.type for t in tensors(tree)} for tree in ((args, kwargs), out))
        if func._schema.name == "aten::_to_copy" and here == {"cpu"} and there == {"meta"}:
            self.uploads += 1
        elif len(here | there) > 1:
            raise Mixed(f"{func} saw {sorted(here)} and made {sorted(there)}")
        self.operations += "meta" in there
        return out


def canned(tensors):
    """Every flag is true, every status good; the γ that wins is the current one; no drift."""
    for tensor in tensors:
        assert tensor.dim() == 0 and tensor.device.type == "meta"
    return [1.0 if not t.dtype.is_floating_point or n else 0.0 for n, t in enumerate(tensors)]


def on_meta(problem):
    """The problem with model and data on meta."""
    problem.model.to("meta")
    problem.inputs, problem.targets = problem.inputs.to("meta"), problem.targets.to("meta")
    return problem


@pytest.fixture(autouse=True)
def door(monkeypatch):
    monkeypatch.setattr(linalg.reading, "transfer", canned)


def whole_steps(engine, count=STEPS):
    """Steps under the ban on mixing; the records."""
    mode = OneDevice()
    with mode:
        records = [engine.step() for _ in range(count)]
    assert mode.operations > 100 * count and mode.uploads >= count
    for record in records:
        for value in (record.loss, record.error, record.alpha, record.lam, record.predicted):
            assert value.device.type == "meta"
    assert all(t.device.type == "meta" for t in engine._theta)
    return records


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.soak) if n in SOAK else n for n in ALL]
)
def test_every_recipe_and_every_part(name):
    engine = attach(on_meta(problem_of()), recipe_named(name), 0)
    assert engine.passes.fired == (0, 1, 2)  # attach tried the network, on meta too
    whole_steps(engine)


STRUCTURES, ESTIMATORS = ("block_diagonal", "block_tridiagonal"), ("sampled", "exact", "empirical")
EVERY = list(itertools.product(KFAC, STRUCTURES, ESTIMATORS))
#: every recipe once, and every structure with every estimator
TOLD = [(name, STRUCTURES[n % 2], ESTIMATORS[n % 3]) for n, name in enumerate(KFAC)]


def test_each_is_met_and_structures_and_estimators_all_meet():
    assert [case[0] for case in TOLD] == list(KFAC) and set(TOLD) <= set(EVERY)
    assert {case[1:] for case in TOLD} == {case[1:] for case in EVERY}


@pytest.mark.parametrize(("name", "structure", "estimator"), TOLD)
def test_every_recipe_with_each_structure_and_estimator(name, structure, estimator):
    recipe = recipe_named(name).replace(structure=structure, estimator=f"{estimator}(fraction=0.5)")
    whole_steps(attach(on_meta(problem_of()), recipe, 0), 2)


@pytest.mark.soak
@pytest.mark.parametrize(("name", "structure", "estimator"), [c for c in EVERY if c not in TOLD])
def test_and_the_other_triples(name, structure, estimator):
    test_every_recipe_with_each_structure_and_estimator(name, structure, estimator)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian(scale='full')"])
def test_the_generic_path(likelihood):
    engine = attach(on_meta(problem_of("generic", likelihood)), recipe_of("generic"), 0)
    assert engine.passes.plan is None
    whole_steps(engine)


@pytest.mark.parametrize("estimator", ["sampled", "exact", "empirical"])
def test_classes(estimator):
    problem = kl.Problem(
        model=nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        likelihood="categorical",
        inputs=torch.randn(24, 6),
        targets=torch.arange(24) % 3,
    )
    whole_steps(attach(on_meta(problem), recipe_of(estimator=f"{estimator}(fraction=0.5)"), 0))


def test_a_steered_step_that_is_tried_again(monkeypatch):
    """The reduction that ``robust`` reads says "too much" twice, then "in bounds"."""
    said = iter([0.5, 0.3, 0.08, 0.08])

    def host(tensors):
        if len(tensors) < 3 or any(t.dtype == torch.bool for t in tensors):
            return canned(tensors)
        earlier = (len(tensors) - 3) // 2  # h, and (λ, M(δ) − M(0)) of each candidate
        return [1.0, *([1.0, -0.5] * earlier), 1.0, -next(said)]

    monkeypatch.setattr(linalg.reading, "transfer", host)
    records = whole_steps(attach(on_meta(problem_of()), recipe_named("robust"), 0), 2)
    assert [len(r.candidates) for r in records] == [3, 1]


# --- the ban itself -------------------------------------------------------------------------------


def test_a_real_tensor_in_the_step_is_caught(monkeypatch):
    def choose(self, restriction, strength, step):
        return restriction.minimiser(strength) * torch.ones(len(restriction.slope))

    monkeypatch.setattr(Optimal, "choose", choose)
    with pytest.raises((Mixed, RuntimeError)):
        whole_steps(attach(on_meta(problem_of()), recipe_of(), 0))


def test_a_real_number_as_a_tensor_is_caught(monkeypatch):
    """Torch lets a 0-dim CPU tensor into any operation; here it is a stranger too."""

    def choose(self, restriction, strength, step):
        return restriction.minimiser(strength) * torch.tensor(1.0)

    monkeypatch.setattr(Optimal, "choose", choose)
    with pytest.raises(Mixed):
        whole_steps(attach(on_meta(problem_of()), recipe_of(), 0))


def test_a_read_is_caught(monkeypatch):
    def choose(self, restriction, strength, step):
        best = restriction.minimiser(strength)
        return best if best[0] > 0 else -best

    monkeypatch.setattr(Optimal, "choose", choose)
    with pytest.raises(RuntimeError, match="meta"):
        whole_steps(attach(on_meta(problem_of()), recipe_of(), 0))
