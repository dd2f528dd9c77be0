"""The laws of a momentum: the box's and the hook's example."""

from dataclasses import dataclass

import pytest
import torch
from testing.registered import names, status, tried

import kfac_lab as kl


@dataclass(frozen=True)
class NoMemory:
    """α in closed form, −slope over curvature; a zero curvature gives no step."""

    def basis(self, space, direction, previous, part_state):
        return (direction,)

    def choose(self, restriction, strength, step):
        total = restriction.curvature[0, 0] + (strength.lam + strength.eta) * restriction.gram[0, 0]
        safe = torch.where(total > 0, total, torch.ones_like(total))
        alpha = torch.where(total > 0, -restriction.slope[0] / safe, torch.zeros_like(total))
        return alpha.reshape(1)


@dataclass(frozen=True)
class WithoutLambda(NoMemory):
    """Forgets λ+η in the denominator, which is right where the batch is the whole set only."""

    minimises = True

    def choose(self, restriction, strength, step):
        nothing = strength._replace(lam=0 * strength.lam, eta=0 * strength.eta)
        return super().choose(restriction, nothing, step)


def test_one_written_by_hand_passes():
    found = kl.testing.check(NoMemory())
    assert found.slot == "momentum" and status(found, "descends") == "obeyed"


def test_one_that_forgets_lambda_is_not_optimal():
    with pytest.raises(kl.testing.LawError) as raised:
        kl.testing.check(WithoutLambda())
    assert raised.value.report.broken[0] in ("descends", "model_optimal")
    assert set(raised.value.report.broken) <= {"descends", "model_optimal"}


@pytest.mark.parametrize("text", [*names("momentum"), "conjugate_gradient(steps=5)"])
def test_the_box_obeys(text):
    found = tried("momentum", text)
    assert found.passed, str(found)
    adapts = text.partition("(")[0] in ("optimal", "rescaled", "conjugate_gradient", "confirmed")
    assert status(found, "model_optimal") == ("obeyed" if adapts else "exempt")
