"""The laws of a momentum: the basis of a step and its coefficients (sections 6.4 and 7).

Beside the common ones: ``direction_first``, ``basis_fits``, ``first_step``, ``one_for_each``,
``finite_when_singular``, ``finite_at_a_minimum``, ``starts_downhill``, ``descends``,
``signs_right``, ``model_optimal``, ``shortens``.

``descends`` and ``signs_right`` are asked of all that do not say ``adapts=False``;
``model_optimal`` only of those that say ``minimises=True``: one may hold a coefficient back on
purpose.
"""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.state import StepRecord
from kfac_lab.core.subspace import SubspaceQuadratic
from kfac_lab.core.traits import MomentumTraits, traits
from kfac_lab.core.vector import PartialVec, Vec
from kfac_lab.testing.law import Broken, Case, law, try_last
from kfac_lab.testing.laws.common import CHEAP, Trial, common_laws, exempt_unless, first_state
from kfac_lab.testing.steps import Bowl, bowl
from kfac_lab.testing.subjects import Subject, normal
from kfac_lab.testing.trees import InputWatch, moved

SLOT = "momentum"
_adapts = exempt_unless(
    lambda component: traits(component, MomentumTraits).adapts,
    "adapts=False says that the coefficients are not the model's",
)
_minimises = exempt_unless(
    lambda component: traits(component, MomentumTraits).minimises,
    "it does not say minimises=True",
)


def subjects(case: Case) -> Sequence[Subject]:
    """Quadratics of full and of low rank, on a large and on a small batch."""
    return (
        bowl("a quadratic of full rank"),
        bowl("a quadratic of rank 3, λ=0.01", rank=3, lam=0.01),
        bowl("a quadratic on a batch of 20", cases=20),
    )


def run(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
    """Three steps: the last two have a δ0, which is what the step before has made of its basis."""
    space = Bowl(subject)
    part_state = first_state(component, "momentum")
    results: dict[str, Any] = {"basis": [], "coefficients": [], "part_states": []}
    direction = watch(-space.precondition(space.gradient), "direction")
    for step in (1, 2, 50, 1_000_000):
        previous = watch(subject["previous"], "previous")
        basis = component.basis(space, direction, previous, watch(part_state, "part_state"))
        restriction = watch(space.restrict(basis), "restriction")
        chosen = component.choose(restriction, space.strength, step)
        results["basis"].append(tuple(basis))
        results["coefficients"].append(watch(chosen, "coefficients"))
        update = traits(component, MomentumTraits).update
        if update is not None:
            given: StepRecord = moved(subject["record"], lambda t: t.double())
            draft = watch(replace(given, step=step), "record")
            part_state = update(part_state, chosen, draft) or {}
            results["part_states"].append(part_state)
    return results


common_laws(Trial(SLOT, subjects, run, double=("coefficients",), any_dtype=("part_states",)))


def _step(
    component: Any, subject: Subject, first: bool = False
) -> tuple[Bowl, tuple[Any, ...], SubspaceQuadratic, Tensor]:
    """Basis, restriction and coefficients of one step on a subject."""
    space = Bowl(subject)
    direction = -space.precondition(space.gradient)
    previous = None if first else subject["previous"]
    basis = tuple(component.basis(space, direction, previous, first_state(component, "momentum")))
    restriction = space.restrict(basis)
    chosen = component.choose(restriction, space.strength, 1 if first else 2)
    return space, basis, restriction, chosen


# --- the basis ------------------------------------------------------------------------------------


@law(
    SLOT,
    "The basis begins with the direction Δ, whole or in parts; where adapts = False, each layer of "
    "it may have a length of its own.",
)
def direction_first(case: Case) -> None:
    for subject in subjects(case):
        space = Bowl(subject)
        direction = -space.precondition(space.gradient)
        given = subject["previous"]
        basis = case.component.basis(
            space, direction, given, first_state(case.component, "momentum")
        )
        if not len(basis):
            raise Broken(subject.where, "at least Δ in the basis", "no vector")
        parts = list(itertools.takewhile(lambda v: isinstance(v, PartialVec), basis))
        first = Vec.combine(torch.ones(len(parts)), parts) if parts else basis[0]
        for n, (wanted, got) in enumerate(zip(direction, first, strict=True)):
            if not traits(case.component, MomentumTraits).adapts:
                length = (wanted * got).sum() / (wanted * wanted).sum()
                close = bool(length > 0) and torch.allclose(got, wanted * length, rtol=1e-3)
                if close:
                    continue
            if not torch.equal(wanted, got):
                gap = float((wanted - got).abs().max())
                raise Broken(subject.where, "Δ as the first vector", f"{gap:.3g} off in layer {n}")


@law(SLOT, "Every vector of the basis has the gradient's matrices.", needs=("runs",))
def basis_fits(case: Case) -> None:
    for subject in subjects(case):
        space, basis, _, _ = _step(case.component, subject)
        shapes = [tuple(m.shape) for m in space.gradient]
        for n, vector in enumerate(basis):
            found = [tuple(m.shape) for m in vector]
            if found != shapes:
                raise Broken(f"{subject.where}, vector {n}", f"{shapes}", f"{found}")


@law(SLOT, "At the first step there is no δ0, and the basis does without.")
def first_step(case: Case) -> None:
    for subject in subjects(case):
        where = f"{subject.where}, previous=None"
        try:
            chosen = _step(case.component, subject, first=True)[-1]
        except Exception as error:
            raise Broken(where, "a basis", f"{type(error).__name__}: {error}") from error
        if not bool(torch.isfinite(chosen).all()):
            raise Broken(where, "finite coefficients", f"{chosen.tolist()}")


# --- the coefficients -----------------------------------------------------------------------------


@law(
    SLOT,
    "There is one coefficient for each vector of the basis, in one tensor.",
    needs=("runs", "first_step"),
)
def one_for_each(case: Case) -> None:
    for subject in subjects(case):
        for first in (True, False):
            _, basis, _, chosen = _step(case.component, subject, first)
            where = f"{subject.where}, {len(basis)} vectors"
            if not isinstance(chosen, Tensor) or tuple(chosen.shape) != (len(basis),):
                kind = type(chosen).__name__
                got = tuple(chosen.shape) if isinstance(chosen, Tensor) else f"a {kind}"
                raise Broken(where, f"coefficients of shape ({len(basis)},)", f"{got}")


_OWN = (*CHEAP, "first_step", "one_for_each", "basis_fits")


@law(SLOT, "The coefficients are finite where the model does not determine them.", needs=_OWN)
def finite_when_singular(case: Case) -> None:
    for subject in (
        bowl("δ0 along Δ", parallel=True),
        bowl("a δ0 of zeros", earlier=0.0),
        bowl("no curvature", rank=0),
        bowl("curvature of rank 1, λ=0", rank=1, lam=0.0),
    ):
        _finite(case, subject)


@law(SLOT, "The coefficients are finite at a minimum, where ∇h and Δ are zero.", needs=_OWN)
def finite_at_a_minimum(case: Case) -> None:
    _finite(case, bowl("∇h = 0", slope=0.0))
    _finite(case, bowl("∇h = 0 and δ0 = 0", slope=0.0, earlier=0.0))


def _finite(case: Case, subject: Subject) -> None:
    for first in (True, False):
        chosen = _step(case.component, subject, first)[-1]
        if not bool(torch.isfinite(chosen).all()):
            where = subject.where + (", no δ0" if first else "")
            raise Broken(where, "finite coefficients", f"{chosen.tolist()}")


@law(
    SLOT,
    "The first step, which has no δ0, does not go uphill: ⟨∇h, δ⟩ is at most 0.",
    needs=_OWN,
)
def starts_downhill(case: Case) -> None:
    for subject in subjects(case):
        restriction, chosen = _step(case.component, subject, first=True)[2:]
        slope = float((restriction.slope * chosen).sum())
        if not slope <= 1e-9 * float((restriction.slope * chosen).abs().sum()):
            raise Broken(f"{subject.where}, no δ0", "⟨∇h, δ⟩ of at most 0", f"{slope:.6g}")


@law(
    SLOT,
    "The step that is chosen promises a reduction: M is at most 0, and no more than without Δ.",
    needs=(*_OWN, "starts_downhill"),
    applies=_adapts,
)
def descends(case: Case) -> None:
    for subject in subjects(case):
        for first in (True, False):
            space, basis, restriction, chosen = _step(case.component, subject, first)
            value = float(restriction.value(chosen, space.strength))
            slack = 1e-9 * float((restriction.slope * chosen).abs().sum())
            without = torch.cat([torch.zeros_like(chosen[:1]), chosen[1:]])
            bound = min(0.0, float(restriction.value(without, space.strength)))
            if not value <= bound + slack:
                where = f"{subject.where}, {len(basis)} vectors"
                raise Broken(where, f"M of at most {bound:.6g}", f"{value:.6g}")


@law(
    SLOT,
    "No coefficient has the wrong sign: with the other one the step, at its best length, promises "
    "no larger reduction.",
    needs=(*_OWN, "descends"),
    applies=_adapts,
)
def signs_right(case: Case) -> None:
    for subject in subjects(case):
        space, _, restriction, chosen = _step(case.component, subject)
        chosen = chosen.double()

        def promised(
            c: Tensor, restriction: SubspaceQuadratic = restriction, space: Bowl = space
        ) -> float:
            scaled = replace(
                restriction,
                slope=(restriction.slope * c).sum()[None],
                curvature=(c @ restriction.curvature @ c)[None, None],
                gram=(c @ restriction.gram @ c)[None, None],
            )
            return float(scaled.value(scaled.minimiser(space.strength), space.strength))

        least = promised(chosen)
        for n in range(len(chosen)):
            other = promised(torch.where(torch.arange(len(chosen)) == n, -chosen, chosen))
            if other < least - 1e-9 * abs(least):
                where = f"{subject.where}, the sign of coefficient {n} changed"
                raise Broken(where, f"M of at least {least:.6g}", f"{other:.6g}")


@law(
    SLOT,
    "Where it says minimises=True, no coefficients near the chosen ones have a lower M.",
    needs=(*_OWN, "descends", "signs_right"),
    applies=_minimises,
)
def model_optimal(case: Case) -> None:
    for subject in subjects(case):
        for first in (True, False):
            space, basis, restriction, chosen = _step(case.component, subject, first)
            value = float(restriction.value(chosen, space.strength))
            slack = 1e-10 * float((restriction.slope * chosen).abs().sum())
            for n in range(20):
                size = (1e-1, 1e-3)[n % 2] * float(chosen.abs().max())
                moved = chosen + size * normal(len(chosen), seed=n)
                other = float(restriction.value(moved, space.strength))
                if other < value - slack:
                    where = f"{subject.where}, {len(basis)} vectors"
                    told = f"M={value:.9g} at {chosen.tolist()}, M={other:.9g} at {moved.tolist()}"
                    raise Broken(where, "the least M at the chosen coefficients", told)


@law(
    SLOT,
    "Where there is a ``length``, its factor is None or lies in (0, 1], and what it remembers has "
    "the form of before.",
    needs=(*_OWN,),
    applies=exempt_unless(
        lambda component: traits(component, MomentumTraits).length is not None,
        "it has no length",
    ),
)
def shortens(case: Case) -> None:
    declared = traits(case.component, MomentumTraits)
    for subject in (*subjects(case), bowl("∇h = 0", slope=0.0), bowl("δ0 = 0", earlier=0.0)):
        space, part_state = Bowl(subject), first_state(case.component, "momentum")
        for n, previous in enumerate((None, *3 * [subject["previous"]])):
            assert declared.length is not None
            part_state, factor = declared.length(part_state, space, previous)
            if factor is not None and not (factor.ndim == 0 and 0 < float(factor) <= 1):
                raise Broken(f"{subject.where}, step {n + 1}", "a factor in (0, 1]", f"{factor}")
            if declared.update is not None:
                given: StepRecord = moved(subject["record"], lambda t: t.double())
                nothing = torch.zeros(1, dtype=torch.float64)
                after = declared.update(part_state, nothing, given) or {}
                if set(after) != set(part_state):
                    told = f"{sorted(part_state)}", f"{sorted(after)}"
                    raise Broken(f"{subject.where}, step {n + 1}", *told)
                part_state = after


for _name in ("trains", "resumes", "replays"):
    try_last(SLOT, _name, "direction_first", "basis_fits", "first_step", "one_for_each")
