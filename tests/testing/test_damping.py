"""The laws of a damping: the box's, the hook's example, and two written by hand."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from testing.registered import names, status, tried

import kfac_lab as kl


@dataclass(frozen=True)
class TrustRegion:
    """Nielsen's rule: λ times max(1/3, 1 − (2ρ−1)³) after a decrease of h, else times ν, ν doubled.

    H. B. Nielsen, Damping parameter in Marquardt's method, 1999.
    """

    lam: float = 20.0
    lam_min: float = 1e-8
    lam_max: float = 1e8
    sign: ClassVar[int] = 1
    follows_rho: ClassVar[bool] = True

    def init(self, problem):
        return kl.DampingStrength(self.lam, (self.lam + problem.l2) ** 0.5), {"nu": 2.0}

    def candidates(self, strength, due):
        return (strength,)

    def adapt(self, strength, part_state, record):
        rho, nu = self.sign * record.rho, part_state.get("nu", 2.0) + 0 * strength.lam
        good = rho > 0
        third = torch.full_like(rho, 1 / 3)
        shrunk = torch.maximum(third, 1 - (2 * rho.clamp(max=1.0) - 1) ** 3)
        lam = strength.lam * torch.where(good, shrunk, nu)
        lam = lam.clamp(self.lam_min, self.lam_max)
        nu = torch.where(good, torch.full_like(nu, 2.0), (2 * nu).clamp(max=1024.0))
        return kl.DampingStrength(lam, torch.sqrt(lam + strength.eta)), {"nu": nu}


class Flipped(TrustRegion):
    """The same, ρ's sign mistaken."""

    sign: ClassVar[int] = -1


def test_a_rule_written_by_hand_passes():
    found = kl.testing.check(TrustRegion())
    assert found.slot == "damping" and found.passed
    for law in ("lambda_falls_when_good", "lambda_grows_when_bad", "bounds_kept", "resumes"):
        assert status(found, law) == "obeyed"


def test_its_twin_with_the_sign_of_rho_flipped_fails_for_that():
    with pytest.raises(kl.testing.LawError, match=r"λ of at most 20, got 40") as raised:
        kl.testing.check(Flipped())
    assert raised.value.report.broken == ("lambda_falls_when_good", "lambda_grows_when_bad")
    assert "on λ=20, η=1e-05, ρ=0.9" in str(raised.value)


class Patient(TrustRegion):
    """The same, with what is called at a refresh and at a swap."""

    def retry(self, strength, part_state, record, tries):
        return None

    def on_swap(self, strength):
        return strength


def writes_the_part_state(self, strength, part_state, record, tries):
    part_state["nu"] = 3.0


def reads_at_will(self, strength, part_state, record, tries):
    return strength if float(record.predicted) < -1e3 else None


def draws(self, strength, part_state, record, tries):
    torch.rand(1)


def halves_in_place(self, strength):
    strength.gamma.mul_(0.5)
    return strength


def reads_at_a_swap(self, strength):
    return strength._replace(gamma=float(strength.lam) ** 0.5)


def nan_at_infinity(self, strength, part_state, record):
    adapted, part_state = TrustRegion.adapt(self, strength, part_state, record)
    off = torch.where(torch.isinf(record.rho), record.rho * 0, torch.zeros_like(adapted.lam))
    return adapted._replace(lam=adapted.lam + off), part_state


def test_retry_and_on_swap_may_be_there():
    assert kl.testing.check(Patient()).passed


@pytest.mark.parametrize(
    ("method", "change", "law"),
    [
        ("retry", writes_the_part_state, "inputs_not_written"),
        ("retry", reads_at_will, "no_host_read"),
        ("retry", draws, "global_state_kept"),
        ("on_swap", halves_in_place, "inputs_not_written"),
        ("on_swap", reads_at_a_swap, "no_host_read"),
        ("adapt", nan_at_infinity, "finite"),
    ],
)
def test_the_same_with_a_mistake(method, change, law):
    broken = type("Mistaken", (Patient,), {method: change})
    with pytest.raises(kl.testing.LawError) as raised:
        kl.testing.check(broken())
    assert raised.value.report.broken == (law,)


MORE = [
    "levenberg_marquardt(lam=0.0)",
    "levenberg_marquardt(gamma=0.5, denominator='without_lambda', safeguard=False)",
    "levenberg_marquardt(lam=3.0, share=0.2, lam_min=0.1)",
    "constant(gamma=0.3)",
    "steered(steps=0)",
    "steered(lam=1e-6)",
    "steered(lam=1e6)",
]


@pytest.mark.parametrize("text", [*names("damping"), *MORE])
def test_the_box_obeys(text):
    found = tried("damping", text)
    assert found.passed, str(found)


def test_what_is_exempt_says_why():
    found = {r.law: r.why for r in tried("damping", "constant").results if r.status == "exempt"}
    assert found["lambda_falls_when_good"] == "it does not say follows_rho=True"
    assert found["retry_ends"] == "it has no retry"
    assert "goes_by_the_step" not in {
        r.law for r in tried("damping", "scheduled").results if r.status == "exempt"
    }
