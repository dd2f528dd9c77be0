"""What a block is tried on: layers' rows, cotangents and moments; and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.state import DampingStrength
from kfac_lab.core.traits import BlockTraits, traits
from kfac_lab.testing import dense
from kfac_lab.testing.law import Case
from kfac_lab.testing.laws.common import (
    CHEAP,
    first_state,
)
from kfac_lab.testing.subjects import SIDES, Subject, made_once, moments_of, normal
from kfac_lab.testing.trees import InputWatch

__all__ = [
    "DENSE",
    "GAMMAS",
    "P_LAWS",
    "SLOT",
    "awkward",
    "factored",
    "inverse_of",
    "made",
    "matrix_of",
    "observes",
    "run",
    "seen",
    "shape_of",
    "strength",
    "subjects",
]

SLOT = "block"


GAMMAS = (0.1, 0.5, 3.0)


@made_once
def made(
    where: str,
    shape: tuple[int, int],
    cases: int,
    positions: int,
    seed: int,
    cotangents_each: int = 1,
) -> Subject:
    """Rows of a layer, their cotangents and moments, and a matrix to apply to."""
    d_out, d_in = shape
    rows = normal(cases, positions, d_in, seed=seed)
    rows[..., -1] = 1
    cotangents = normal(cotangents_each, cases, positions, d_out, seed=seed + 1) / 2
    return Subject(
        where,
        {
            "rows": rows,
            "cotangents": cotangents,
            "moments": moments_of(rows, cotangents),
            "matrix": normal(d_out, d_in, seed=seed + 2),
            "strength": strength(0.5),
            "other": strength(0.7),
        },
    )


def strength(gamma: float, lam: float = 0.03, eta: float = 0.01) -> DampingStrength:
    """λ, γ and η as the engine gives them: 0-dim float64. γ need not be √(λ+η) (section 6.6)."""
    return DampingStrength(*(torch.tensor(v, dtype=torch.float64) for v in (lam, gamma, eta)))


def subjects(case: Case) -> Sequence[Subject]:
    """Wide and tall layers of many cases, one of several positions."""
    plain = [
        made(f"a layer {shape}, 60 cases", shape, 60, 1, 200 + 10 * n)
        for n, shape in enumerate(SIDES)
    ]
    return (
        *plain,
        made("a layer (3, 4), 40 cases of 3 positions, 2 cotangents each", (3, 4), 40, 3, 250, 2),
    )


def awkward(case: Case) -> Sequence[Subject]:
    """One case alone, and a layer that has seen nothing but zeros."""
    nothing = made("moments that are zero", (3, 4), 5, 1, 270)
    zeros = {
        name: torch.zeros_like(nothing[name]) if name in ("rows", "cotangents") else nothing[name]
        for name in nothing.values
    }
    zeros["moments"] = moments_of(zeros["rows"], zeros["cotangents"])
    return made("a layer (4, 5), one case", (4, 5), 1, 1, 260), Subject(nothing.where, zeros)


def observes(block: Any) -> bool:
    """Whether a block is shown the rows themselves."""
    return traits(block, BlockTraits).observe is not None


def seen(block: Any, subject: Subject, watch: InputWatch | None = None) -> Mapping[str, Any]:
    """The part_state after two observations of the subject's rows."""
    watch = watch or InputWatch()
    part_state = watch(first_state(block, "block"), "the part_state of init")
    observe = traits(block, BlockTraits).observe
    if observe is not None:
        for weight in (1.0, 0.5):
            part_state = observe(part_state, subject["rows"], subject["cotangents"], weight)
            watch(part_state, f"the part_state of observe with weight {weight}")
    return part_state


def factored(
    block: Any, subject: Subject, watch: InputWatch | None = None
) -> tuple[Any, Mapping[str, Any]]:
    """The factorisation and the part_state that came with it."""
    part_state = seen(block, subject, watch)
    found: tuple[Any, Mapping[str, Any]] = block.factorise(subject["moments"], part_state)
    return found


def inverse_of(block: Any, subject: Subject, at: DampingStrength | None = None) -> Any:
    """A damped inverse made from nothing."""
    found, part_state = factored(block, subject)
    return block.damped(found, part_state, at or subject["strength"], None)


def run(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
    """observe, factorise, damped twice, apply, dense, factors, product."""
    part_state = seen(component, subject, watch)
    found, after = component.factorise(subject["moments"], part_state)
    watch(found, "the factorisation")
    watch(after, "the part_state of factorise")
    first = watch(component.damped(found, after, subject["strength"], None), "the inverse")
    second = component.damped(found, after, subject["other"], first)
    results = {
        "apply": first.apply(subject["matrix"]),
        "apply, warm": second.apply(subject["matrix"]),
        "part_state": after,
        "dense": first.dense(),
        "factors": first.factors(),
    }
    product = traits(component, BlockTraits).product
    if product is not None:
        results["product"] = product(subject["moments"], after, subject["matrix"])
    return results


P_LAWS = (*CHEAP, "shapes", "linear")


DENSE = (*P_LAWS, "symmetric", "positive_definite")


def shape_of(subject: Subject) -> tuple[int, int]:
    """(d_out, d_in) of a subject."""
    d_out, d_in = subject["matrix"].shape
    return d_out, d_in


def matrix_of(apply: Callable[[Tensor], Tensor], subject: Subject) -> Tensor:
    """A map of matrices as a matrix ``[d_in·d_out, d_in·d_out]``."""
    return dense.of_map(apply, shape_of(subject), torch.float64)
