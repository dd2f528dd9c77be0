"""The laws of a problem: the box's, with data and without, and the hook's example."""

import pytest
import torch
from broken.problem import sound
from testing.registered import example, names, status, tried

import kfac_lab as kl
from kfac_lab.errors import DataError
from kfac_lab.testing import report

SMALL = ("digits", "digits_classifier", "digits_small")


@pytest.mark.parametrize("name", [name for name in names("problem") if name in SMALL])
def test_the_box_obeys(name):
    found = tried("problem", name)
    assert found.passed, str(found)
    assert {r.status for r in found.results} == {"obeyed"}


def test_data_that_are_not_here_exempt_a_problem_and_say_so():
    def absent(seed=0, device="cpu"):
        raise DataError("MNIST is not on this machine: set KFAC_LAB_DATA")

    found = report(absent, "problem")
    assert found.passed and {r.status for r in found.results} == {"exempt"}
    assert "its data are not here: MNIST is not on this machine" in str(found)


def test_data_that_are_wrong_exempt_nothing():
    def uneven(seed=0, device="cpu"):
        whole = sound(seed, device)
        return kl.Problem(
            model=whole.model,
            likelihood="bernoulli",
            inputs=whole.inputs,
            targets=whole.targets[1:],
        )

    found = report(uneven, "problem")
    assert found.broken == ("runs",) and "40 inputs came with 39 targets" in str(found)


def test_a_large_network_is_exempt_from_training_alone():
    def large(seed=0, device="cpu"):
        model = torch.nn.Sequential(torch.nn.Linear(4, 1001), torch.nn.Linear(1001, 1001))
        with torch.no_grad():
            for n, p in enumerate(model.parameters()):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + n)))
        inputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
        return kl.Problem(
            model=model.to(device),
            likelihood="gaussian",
            inputs=inputs.to(device),
            targets=torch.zeros(9, 1001, device=device),
        )

    found = report(large, "problem")
    assert found.passed and status(found, "trains") == "exempt"
    assert [r.law for r in found.results if r.status == "exempt"] == ["trains"]


def test_the_hooks_example_obeys():
    assert example("problem").passed, str(example("problem"))
