"""The laws of quadratic models: the built-in ones obey; a cautious one is not called broken."""

import dataclasses

import pytest
from testing.matrix import ask

from kfac_lab.hooks import Lab
from kfac_lab.paper.quadratic_model import ExactFisher
from kfac_lab.testing import LawError, check

BUILT_IN = {
    "exact_fisher": set(),
    "exact_fisher(fraction=1.0, minimum=10)": set(),
    "approximate_fisher": {"curvature_is_fisher"},
    "none": {"curvature_is_fisher"},
}


@pytest.mark.parametrize("text", BUILT_IN)
def test_built_in(text):
    found = check(Lab(entry_points=False).component("quadratic_model", text))
    assert found.slot == "quadratic_model"
    assert {r.law for r in found.results if r.status == "exempt"} == {
        *BUILT_IN[text],
        "forwards_traits",
    }


@dataclasses.dataclass(frozen=True)
class Steeper:
    """More curvature than the exact Fisher has, and no claim to be it."""

    factor: float = 1.5
    fraction: float = 0.25

    def restrict(self, evaluation, basis):
        found = ExactFisher().restrict(evaluation, basis)
        return dataclasses.replace(found, curvature=self.factor * found.curvature)


def test_more_curvature_is_no_fault():
    assert check(Steeper()).passed


def test_damping_in_the_curvature_is_one(monkeypatch):
    """λ of its own inside the curvature: another model on another basis of the same span."""

    def restrict(self, evaluation, basis):
        found = ExactFisher().restrict(evaluation, basis)
        eye = found.curvature.new_ones(len(basis)).diag()
        return dataclasses.replace(found, curvature=found.curvature + 0.1 * eye)

    monkeypatch.setattr(Steeper, "restrict", restrict)
    ask(monkeypatch, "quadratic_model", "basis_change")
    with pytest.raises(LawError, match="basis_change"):
        check(Steeper())
