"""check(): finds the slot, says what it needs, and leaves everything as it was."""

import dataclasses
import warnings

import pytest
import torch

import kfac_lab as kl
from kfac_lab.core import linalg
from kfac_lab.core.layers import Linear
from kfac_lab.core.likelihood import Bernoulli
from kfac_lab.hooks import Lab
from kfac_lab.hooks.registry import NEEDS
from kfac_lab.testing import LawError, check, law, report, slot_of
from kfac_lab.testing.law import LAWS

LAB = Lab(entry_points=False)
EVERY_PART = [(entry.slot, entry.name) for slot in NEEDS for entry in LAB.components(slot)]


@pytest.mark.parametrize(("slot", "name"), EVERY_PART)
def test_the_slot_of_every_built_in_part_is_found(slot, name):
    assert slot_of(LAB.component(slot, name)) == slot


def test_the_slots_that_no_recipe_has():
    assert slot_of(Bernoulli()) == "likelihood"
    assert slot_of(Linear(torch.nn.Linear(2, 2), "")) == "layer"
    assert slot_of(kl.Recipe.named("paper")) == "recipe"


def test_a_class_is_not_a_component():
    with pytest.raises(kl.PluginError, match=r"check\(Bernoulli\(…\)\), not its class"):
        check(Bernoulli)


def test_something_of_no_slot():
    with pytest.raises(kl.PluginError, match=r"nothing tells its slot: say check\(…, slot=…\)"):
        check(types_of_nothing())


def types_of_nothing():
    return dataclasses.make_dataclass("Nothing", [])()


def test_something_of_two_slots():
    both = type("Both", (), {name: lambda self: 0 for name in ("size", "due")})()
    with pytest.raises(kl.PluginError, match="could be a schedule or a batch"):
        check(both)


def test_a_slot_that_it_does_not_fill():
    with pytest.raises(kl.PluginError, match="Bernoulli is no damping: it has no init, no cand"):
        check(Bernoulli(), "damping")
    with pytest.raises(kl.PluginError, match="there are no laws of 'dampings'"):
        check(Bernoulli(), "dampings")


def test_the_error_says_where_what_and_what_came():
    class Wrong(Bernoulli):
        def gradient(self, outputs, targets):
            return 2 * super().gradient(outputs, targets)

    with pytest.raises(LawError) as error:
        check(Wrong())
    text = str(error.value)
    assert text.startswith("likelihood Wrong breaks 1 of its laws (24 laws obeyed):\n")
    assert (
        "  gradient_of_loss: gradient is the derivative of loss in the outputs, and error_of makes "
        "the error of it. But on 5 cases: " in text
    )
    assert "expected the gradient of loss, " in text and ", got " in text
    assert isinstance(error.value, kl.PluginError) and isinstance(error.value, AssertionError)


def test_one_fault_is_reported_once():
    class Absent(Bernoulli):
        def mean(self, outputs):
            raise RuntimeError("not today")

    found = report(Absent())
    assert found.broken == ("runs",)
    assert {r.status for r in found.results[1:]} == {"not tried"}
    assert "not tried because of that: finite, " in str(found)


def test_what_is_raised_later_says_where():
    class Picky(Bernoulli):
        def fisher(self, outputs, tangents):
            if outputs.shape[0] == 5 and tangents.count_nonzero() == 5:
                raise RuntimeError("no unit vectors")
            return super().fisher(outputs, tangents)

    found = {r.law: r for r in report(Picky()).results if r.status == "broken"}
    assert set(found) == {"no_host_read", "fisher_symmetric"}
    result = found["fisher_symmetric"]
    assert "it raised RuntimeError: no unit vectors (test_check.py, line " in result.why


def test_nothing_global_changes():
    torch.manual_seed(5)
    state, host = torch.get_rng_state(), linalg.host
    own = set(vars(torch.Tensor))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for slot, name in (("estimator", "sampled"), ("block", "kronecker")):
            check(LAB.component(slot, name))
    assert torch.equal(state, torch.get_rng_state()) and linalg.host is host
    assert set(vars(torch.Tensor)) == own
    assert torch.get_default_dtype() is torch.float32 and torch.is_grad_enabled()


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="'runs' of block is there already"):

        @law("block", "Again.")
        def runs(case):
            """Nothing."""

    assert next(iter(LAWS["block"])) == "runs"
