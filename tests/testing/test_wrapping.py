"""Declared traits: who forwards them and who does not, attributes of old, wrong declarations."""

import dataclasses
from typing import ClassVar

import pytest
from hooks.test_specs import loaded, problem
from testing.registered import status, tried

import kfac_lab as kl
from kfac_lab import engine
from kfac_lab.core.traits import (
    BlockTraits,
    DampingTraits,
    ModelTraits,
    MomentumTraits,
    ScheduleTraits,
    StructureTraits,
    binding,
    forwarded,
    traits,
)
from kfac_lab.paper.block_diagonal import BlockDiagonal
from kfac_lab.paper.damping import ConstantDamping, LevenbergMarquardt, Scheduled, Steered
from kfac_lab.paper.kronecker import Kronecker
from kfac_lab.paper.momentum import Fixed, Optimal
from kfac_lab.paper.quadratic_model import ExactFisher, NoModel
from kfac_lab.paper.schedules import OnDrift, Periodic
from kfac_lab.testing import report
from kfac_lab.testing.law import LAWS, Case


@dataclasses.dataclass(frozen=True)
class Forgetful:
    """Another model with more curvature, which says nothing of what that one is."""

    inner: str = "exact_fisher"
    fraction: float = 0.25

    def restrict(self, evaluation, basis):
        restriction = kl.lab.component("quadratic_model", self.inner).restrict(evaluation, basis)
        return dataclasses.replace(restriction, curvature=1.5 * restriction.curvature)


def lambdas(lab, model, steps=12):
    recipe = kl.Recipe(
        lab=lab, model=model, damping="levenberg_marquardt(lam=150)", batch="constant(size=40)",
        estimator="sampled(fraction=1.0)", schedule="periodic(T1=1, T2=5, T3=5)",
    )  # fmt: skip
    made = engine.attach(problem(), recipe, 0)
    return [float(made.step().lam) for _ in range(steps)]


@pytest.mark.filterwarnings("ignore:λ and γ stay")
def test_the_example_around_no_model_steers_no_lambda():
    lab, _ = loaded("kfac_register_models")
    assert set(lambdas(lab, "cautious(inner='none')")) == {150.0}
    assert set(lambdas(lab, "cautious")) != {150.0}


def test_a_wrapper_that_forgets_is_found():
    lab, _ = loaded("kfac_register_models")
    lab.register("quadratic_model", "forgetful", Forgetful)
    assert set(lambdas(lab, "forgetful(inner='none')")) != {150.0}  # what the law is for
    found = report(Forgetful())
    assert found.broken == ("forwards_traits",)
    assert "on inner='none': expected has_curvature=False of the inner part's" in str(found)
    law = LAWS["quadratic_model"]["forwards_traits"]
    cautious = Case(lab.component("quadratic_model", "cautious"), "quadratic_model", lambda: None)
    assert law.applies(cautious) is None
    law.tries(cautious)
    assert status(tried("quadratic_model", "exact_fisher"), "forwards_traits") == "exempt"


@dataclasses.dataclass(frozen=True)
class Around:
    """A damping around another one, given as a part."""

    inner: object = dataclasses.field(default_factory=Steered)

    @property
    def traits(self):
        return forwarded(self.inner, DampingTraits)

    def init(self, problem):
        return self.inner.init(problem)

    def candidates(self, strength, due):
        return self.inner.candidates(strength, due)

    def adapt(self, strength, part_state, record):
        return self.inner.adapt(strength, part_state, record)


def test_methods_are_forwarded():
    around = Around()
    assert traits(around, DampingTraits).retry == around.inner.retry
    assert traits(around, DampingTraits).band == (0.25, 0.75)
    assert traits(Around(Scheduled()), DampingTraits).needs_rho is False


def test_promises_are_the_parts_own():
    assert forwarded(ExactFisher(), ModelTraits) == ModelTraits()
    assert forwarded(NoModel(), ModelTraits, exact=True) == ModelTraits(
        exact=True, needs_tangents=False, has_curvature=False
    )
    assert not forwarded(Optimal(), MomentumTraits).minimises
    assert set(binding(ModelTraits)) == {"needs_tangents", "has_curvature"}


def test_what_the_box_declares():
    assert traits(LevenbergMarquardt(), DampingTraits).follows_rho
    assert traits(ConstantDamping(), DampingTraits) == DampingTraits(follows_rho=False)
    assert not traits(Fixed(), MomentumTraits).adapts
    assert traits(Periodic(), ScheduleTraits).drift_period is None
    assert traits(OnDrift(check=7), ScheduleTraits).drift_period == 7
    assert traits(BlockDiagonal(low_rank=True), StructureTraits).by_case
    assert traits(Kronecker(), BlockTraits).observe is None
    assert traits(Kronecker(factor_a="lowrank_plus_diagonal"), BlockTraits).observe is not None


# --- attributes of old ---------------------------------------------------------------------------


class Old(ConstantDamping):
    """Written before traits were declared."""

    needs_rho = False


class OldSchedule(Periodic):
    check: int = 3  # type: ignore[assignment]


class Later(Old):
    traits: ClassVar[DampingTraits] = DampingTraits()


def test_attributes_of_old_count_until_a_class_declares():
    assert traits(Old(), DampingTraits) == DampingTraits(needs_rho=False, follows_rho=False)
    assert traits(OldSchedule(), ScheduleTraits).drift_period == 3
    assert traits(Later(), DampingTraits) == DampingTraits()
    found = report(Old(), "damping")
    (note,) = found.notes
    assert note == "needs_rho still counts; declare traits = DampingTraits(needs_rho=False)"
    assert f"note: {note}" in str(found)
    assert tried("damping", "constant").notes == ()


# --- wrong declarations --------------------------------------------------------------------------


class Mistaken(ConstantDamping):
    traits = ModelTraits(has_curvature=False)


def test_traits_of_another_slot_are_an_error():
    told = r"Mistaken.traits is a ModelTraits: declare traits = DampingTraits\(…\)"
    with pytest.raises(kl.PluginError, match=told):
        report(Mistaken(), "damping")
    lab, _ = loaded("kfac_register_models")
    with pytest.raises(kl.PluginError, match=f"registers the damping 'mistaken', but {told}"):
        lab.register("damping", "mistaken", Mistaken)


def test_traits_of_a_frozen_part_are_read_once():
    @dataclasses.dataclass(frozen=True)
    class Counted(ConstantDamping):
        calls: list = dataclasses.field(default_factory=list)

        @property
        def traits(self):
            self.calls.append(1)
            return DampingTraits()

    part, other = Counted(), Counted()
    for _ in range(3):
        assert traits(part, DampingTraits) == traits(other, DampingTraits)
    once = len(part.calls)
    assert once == len(other.calls) <= 2
    for _ in range(300):  # more than are kept
        traits(Counted(), DampingTraits)
    assert traits(part, DampingTraits) == DampingTraits() and len(part.calls) > once
