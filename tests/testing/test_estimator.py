"""The laws of estimators: the built-in ones obey, and one that was written by hand."""

import dataclasses

import pytest
import torch

from kfac_lab.hooks import Lab
from kfac_lab.testing import LawError, check, report

BUILT_IN = [
    "sampled",
    "sampled(fraction=1.0, limit=0.5, minimum=8)",
    "exact(fraction=1.0)",
    "empirical(fraction=0.5)",
]


@pytest.mark.parametrize("text", BUILT_IN)
def test_built_in(text):
    found = check(Lab(entry_points=False).component("estimator", text))
    assert found.slot == "estimator" and found.passed


def test_the_labels_are_exempt_from_what_samples_must_do():
    found = report(Lab(entry_points=False).component("estimator", "empirical"))
    exempt = {r.law for r in found.results if r.status == "exempt"}
    assert exempt == {"second_moment", "draws_through_draw", "forwards_traits"}


@dataclasses.dataclass(frozen=True)
class Antithetic:
    """Two samples of y per case, from u and from 1 − u."""

    fraction: float = 0.25
    window: int = dataclasses.field(default=20, metadata={"low": 1})

    def decay(self, k):
        return 1 - 1 / min(k, self.window)

    def cotangents(self, likelihood, outputs, targets, draw):
        u = draw("both")
        for each in (u, 1 - u):
            yield likelihood.sampled_gradient(outputs, each) / 2**0.5


def test_one_written_by_hand():
    assert len([r for r in check(Antithetic(window=5)).results if r.status == "obeyed"]) == 19


def test_the_same_with_a_mistake():
    @dataclasses.dataclass(frozen=True)
    class Unscaled(Antithetic):
        def cotangents(self, likelihood, outputs, targets, draw):
            yield likelihood.sampled_gradient(outputs, draw("a"))
            yield likelihood.sampled_gradient(outputs, draw("b"))

    with pytest.raises(LawError, match=r"second_moment: .* of F_R, got") as error:
        check(Unscaled())
    assert error.value.report.broken == ("second_moment",)


def test_labels_taken_for_samples():
    """The empirical Fisher under the promise of estimating F_R."""

    @dataclasses.dataclass(frozen=True)
    class Labels(Antithetic):
        def cotangents(self, likelihood, outputs, targets, draw):
            yield likelihood.gradient(outputs, torch.zeros_like(outputs))

    assert "second_moment" in report(Labels()).broken
