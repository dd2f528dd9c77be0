"""The laws of a block's ``product``: its undamped curvature as a matrix."""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kfac_lab.core.traits import BlockTraits, traits
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.block_subjects import (
    DENSE,
    SLOT,
    factored,
    inverse_of,
    matrix_of,
    shape_of,
    strength,
    subjects,
)
from kfac_lab.testing.laws.common import (
    CHEAP,
    exempt_unless,
    near,
    scale_of,
)
from kfac_lab.testing.subjects import Subject, normal

_product = exempt_unless(
    lambda block: traits(block, BlockTraits).product is not None, "it has no product"
)


def _product_of(case: Case, subject: Subject) -> Callable[[Tensor], Tensor]:
    _, part_state = factored(case.component, subject)
    return lambda matrix: case.component.product(subject["moments"], part_state, matrix)


@law(SLOT, "product is linear and keeps the shape.", applies=_product, needs=CHEAP)
def product_linear(case: Case) -> None:
    for subject in subjects(case):
        product = _product_of(case, subject)
        u, v = normal(*shape_of(subject), seed=282), normal(*shape_of(subject), seed=283)
        wanted = 2 * product(u) - 3 * product(v)
        near(subject.where, "F(2U − 3V)", wanted, product(2 * u - 3 * v))


@law(SLOT, "product is symmetric.", applies=_product, needs=(*CHEAP, "product_linear"))
def product_symmetric(case: Case) -> None:
    for subject in subjects(case):
        f = matrix_of(_product_of(case, subject), subject)
        near(subject.where, "the curvature as its transpose", f.t(), f)


@law(
    SLOT,
    "product is positive semidefinite.",
    applies=_product,
    needs=(*CHEAP, "product_linear", "product_symmetric"),
)
def product_positive(case: Case) -> None:
    for subject in subjects(case):
        f = matrix_of(_product_of(case, subject), subject)
        least = float(torch.linalg.eigvalsh((f + f.t()) / 2).min())
        if least < -1e-8 * scale_of(f):
            raise Broken(subject.where, "no negative eigenvalue of product", f"{least:.3g}")


@law(
    SLOT,
    "With little damping P undoes product.",
    applies=_product,
    needs=(
        *DENSE,
        "product_linear",
        "product_symmetric",
        "product_positive",
        "damping_limit",
        "gamma_damps",
    ),
)
def inverts_its_product(case: Case) -> None:
    for subject in subjects(case):
        inverse = inverse_of(case.component, subject, strength(1e-5))
        again = inverse.apply(_product_of(case, subject)(subject["matrix"]))
        near(f"{subject.where}, γ=1e-05", "V from P·product(V)", subject["matrix"], again, 1e-3)
