"""The laws of a Stepper: a function of the seed, saved and loaded, whole or not at all."""

import io

import pytest
import torch
from oracles.schedules import polyak_path
from torch import nn

import kfac_lab as kl
from baselines.helpers import attach, equal, every_method, theta, tiny
from kfac_lab.baselines import Adam, Muon, Nag
from kfac_lab.errors import CheckpointError, CoverageError, NumericalError, RecipeError
from kfac_lab.paper.averaging import NoAverage, Polyak
from kfac_lab.paper.schedules import ConstantBatch


def same(a, b) -> bool:
    """Two trees, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def clocked(state):
    """A state without its seconds."""
    pairs = state["tree"]["items"]
    return [pair for pair in pairs if pair[0] != "seconds"]


# ---- a function of the seed; saved and loaded; whole or not at all -------------------------------


@every_method
def test_the_same_seed_gives_the_same_run(method, device) -> None:
    runs = []
    for seed in (0, 0, 1):
        problem = tiny(device=device, noisy=True)
        stepper = attach(method, problem, seed)
        for _ in range(5):
            stepper.step()
            torch.rand(3, device=device)  # the global generator plays no part
        runs.append(theta(problem))
    assert equal(runs[0], runs[1]) and not equal(runs[0], runs[2])


@every_method
def test_a_saved_stepper_goes_on_bit_for_bit(method) -> None:
    problem, other = tiny(noisy=True), tiny(noisy=True, seed=5)
    stepper, loaded = attach(method, problem), attach(method, other, seed=9)
    for _ in range(7):
        stepper.step()
    file = io.BytesIO()
    torch.save(stepper.state(), file)
    file.seek(0)
    loaded.load(torch.load(file, weights_only=True))
    assert same(loaded.state(), stepper.state())
    for _ in range(5):
        stepper.step(), loaded.step()
    assert same(clocked(loaded.state()), clocked(stepper.state()))
    assert equal(stepper.average(), loaded.average()) and loaded.step_count == 12


@every_method
def test_a_state_is_a_copy(method) -> None:
    stepper = attach(method, tiny())
    stepper.step()
    state = stepper.state()
    kept = torch.save(state, file := io.BytesIO()), file.getvalue()
    stepper.step()
    stepper.load(state)
    stepper.step()
    torch.save(state, again := io.BytesIO())
    assert kept[1] == again.getvalue()


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    stepper = attach(Adam(), tiny())
    stepper.step()
    before = stepper.state()
    wider = kl.Problem(
        model=nn.Linear(6, 4),
        likelihood="bernoulli",
        inputs=torch.randn(9, 6),
        targets=torch.rand(9, 4),
    )
    for state, said in (
        (attach(Nag(), tiny()).state(), "'nag', not by 'adam'"),
        (attach(Adam(), wider).state(), "another network"),
        (attach(Adam(), tiny(noisy=True)).state(), "another network"),
        ({"format": 0}, "format 0"),
    ):
        with pytest.raises(CheckpointError, match=said):
            stepper.load(state)
        assert same(stepper.state(), before)


class Broken(Exception):
    pass


def _raise(*_, **__):
    raise Broken


VERBS = ["draw", "forward", "loss", "error_of", "gradient", "average", "first", "last"]


@pytest.mark.parametrize("verb", VERBS)
@every_method
def test_an_exception_leaves_everything_unchanged(method, verb: str, monkeypatch) -> None:
    problem, twin = tiny(noisy=True), tiny(noisy=True)
    stepper, undisturbed = attach(method, problem), attach(method, twin)
    for _ in range(3):
        stepper.step(), undisturbed.step()
    record = stepper.record
    before = undisturbed.state()  # asking the other one: asking takes θ into the average
    with monkeypatch.context() as patch:
        if verb == "draw":
            patch.setattr(problem, "draw", _raise)
        elif verb == "forward":
            handle = problem.model[4].register_forward_hook(_raise)
        elif verb == "average":
            patch.setattr(Polyak, "update", _raise)
        elif verb in ("first", "last"):
            patch.setattr(stepper._optimisers[-(verb == "last")], "step", _raise)
        else:
            patch.setattr(type(problem.likelihood), verb, _raise)
        with pytest.raises(Broken):
            stepper.step()
        if verb == "forward":
            handle.remove()
    assert stepper.record is record
    assert same(clocked(stepper.state()), clocked(before))
    for _ in range(3):
        stepper.step(), undisturbed.step()
    assert same(clocked(stepper.state()), clocked(undisturbed.state()))


@pytest.mark.host("an accelerator's baselines wait for no objective")
@every_method
def test_numbers_that_are_not_finite_do_not_happen(method) -> None:
    problem = tiny()
    stepper = attach(method, problem, size=40)
    stepper.step()
    before = stepper.state()
    problem.inputs[3, 2] = float("nan")
    with pytest.raises(NumericalError, match="step 2"):
        stepper.step()
    assert same(stepper.state(), before)


def test_what_cannot_be_trained_says_so(monkeypatch) -> None:
    problem = tiny()
    problem.model.requires_grad_(False)
    with pytest.raises(CoverageError, match="no trained parameters"):
        attach(Adam(), problem)
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(RecipeError, match=r"came with 2\.9"):
        attach(Muon(), tiny())


# ---- the average, swaps --------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("asked", [1, 3], ids=["every_step", "now_and_then"])
def test_the_average_is_the_oracles(method, asked: int) -> None:
    problem = tiny(torch.float64)
    stepper = attach(method, problem, average=Polyak(xi=0.8, ramp=True))
    seen = []
    for k in range(1, 13):
        stepper.step()
        seen.append(theta(problem))
        if k % asked == 0:
            stepper.average()
    for place, average in enumerate(stepper.average()):
        expected = polyak_path([t[place] for t in seen], start=1, xi=0.8)[-1]
        torch.testing.assert_close(average, expected, rtol=1e-12, atol=1e-14)
    assert attach(method, tiny(), average=NoAverage()).average() is None


def test_batch_and_average_can_be_swapped() -> None:
    problem = tiny()
    stepper = attach(Nag(), problem)
    stepper.step()
    recipe = {"batch": ConstantBatch(8), "average": NoAverage()}
    stepper.swap(recipe, {"batch": {"size"}})
    assert stepper.step().batch == 8 and stepper.average() is not None
    stepper.swap(recipe, {"average": set()})
    assert stepper.average() is None
    stepper.swap({"batch": ConstantBatch(8), "average": Polyak()}, {"average": set()})
    assert equal(stepper.average(), theta(problem))


@every_method
def test_a_run_forks_and_rewinds(method) -> None:
    run = kl.Run(tiny(), kl.Recipe(method=method, batch="constant(size=16)"), seed=1)
    run.advance(6)
    other = run.fork()
    run.advance(4), other.advance(4)
    assert equal(theta(run.problem), theta(other.problem))
    there = theta(run.problem)
    run.advance(3)
    run.rewind(10)
    assert equal(theta(run.problem), there)
