"""What a swap refuses, and that nothing is changed then."""

import pytest
from devices import here

import kfac_lab as kl
from invariants.helpers import (
    image,
    problem_of,
    same,
    same_run,
    steady,
)
from kfac_lab.paper import averaging, damping

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")

WRONG = {
    "unknown slot": ({"dumping": "tied"}, "dumping"),
    "unknown part": ({"damping": "levenberg_marquart"}, "levenberg_marquardt"),
    "unknown field": ({"damping": "tied(lamb=1)"}, "lam"),
    "out of bounds": ({"estimator": "sampled(fraction=2.0)"}, "fraction"),
    "contradiction": ({"schedule": "periodic(T2=7, T3=5)"}, "multiple"),
    "another method": ({"method": "adam"}, "fork"),
    "one of two": ({"damping": "tied", "momentum": "nonsense"}, "nonsense"),
    "nothing": ({}, "slots"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_invalid_swap_changes_nothing(name):
    parts, says = WRONG[name]
    run, twin = steady(), steady()
    before = image(run)
    with pytest.raises(kl.RecipeError, match=says):
        run.swap(**parts)
    same(before, image(run))
    assert run.history.marks == [] and run._queue == []
    same_run(run.advance(2), twin.advance(2))


class Product:
    """A block without an undamped product."""

    def wants(self):
        return ()

    def factorise(self, moments, part_state):
        return None, part_state

    def damped(self, factored, part_state, strength, previous):
        raise NotImplementedError


class Wishful(Product):
    """A block that wants a moment that is none."""

    def wants(self):
        return ("H",)


class Raising(damping.ConstantDamping):
    """A damping that cannot begin here."""

    def init(self, problem):
        raise kl.RecipeError("not on this problem")


class Half(averaging.Polyak):
    """An average that cannot begin here."""

    def init(self, theta):
        raise kl.RecipeError("not on this problem")


@pytest.mark.parametrize(
    "parts",
    [
        {"block": Product(), "quadratic_model": "approximate_fisher"},
        {"block": Wishful()},
        {"damping": Raising(), "momentum": "rescaled", "block": "diagonal"},
        {"damping": "constant(lam=3.0)", "average": Half()},
    ],
    ids=["no product", "no such moment", "damping.init", "average.init"],
)
def test_a_swap_that_the_engine_refuses_changes_nothing_either(parts):
    run, twin = steady(), steady()
    before, recipe = image(run), run.recipe
    names = dict(run.stepper.parts), run.stepper.blocks
    with pytest.raises(kl.RecipeError):
        run.swap(**parts)
    assert run.recipe is recipe and (run.stepper.parts, run.stepper.blocks) == names
    same(before, image(run))
    assert run.history.marks == [] and run._queue == []
    same_run(run.advance(2), twin.advance(2))


@pytest.mark.parametrize("method", ["nag", "adam", "muon"])
def test_a_baseline_swaps_batch_and_average_only(method):
    text = f"method = {method}\nbatch = constant(size=16)\naverage = polyak"
    run = kl.Run(problem_of(), text, device=here()).advance(2)
    before = image(run)
    with pytest.raises(kl.RecipeError, match=rf"damping.*{method}"):
        run.swap(damping="tied")
    same(before, image(run))
    run.swap(batch="constant(size=8)", average="none")
    run.advance(1)
    assert run.history["batch"][-1] == 8 and run.stepper.average() is None
