"""Strengths and records for the tests of λ and γ."""

import torch

from kfac_lab import Recipe
from kfac_lab.core.state import DampingStrength, StepRecord


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def strength(lam=2.0, gamma=0.3, eta=1e-5):
    return DampingStrength(number(lam), number(gamma), number(eta))


def record(actual, predicted, lam=2.0, norm_squared=0.5):
    """What the engine hands to `adapt`: rho is actual over predicted."""
    actual, predicted = number(actual), number(predicted)
    return StepRecord(
        step=5,
        lam=number(lam),
        rho=actual / predicted,
        predicted=predicted,
        actual=actual,
        norm_squared=number(norm_squared),
    )


def component(text):
    return Recipe(damping=text)["damping"]
