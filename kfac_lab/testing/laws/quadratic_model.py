"""The laws of ``quadratic_model``: M on the span of a few vectors (section 6.1, appendix C).

Besides the common ones:

* ``fraction_in_range``: τ2 lies in (0, 1].
* ``shapes``: curvature and gram are ``[k, k]``, slope and the minimiser ``[k]``, value 0-dim.
* ``gram_of_basis``, ``slope_of_gradient``: ⟨v_i, v_j⟩ and ⟨∇h, v_i⟩.
* ``curvature_symmetric``, ``curvature_positive``: the curvature is a symmetric positive
  semidefinite matrix.
* ``basis_change``: another basis of the same span, a permuted one too, is the same model.
* ``mean_over_cases``: each case of S2 twice, in other chunks, is the same model.
* ``strength_added_once``: value is slope·c + ½cᵀ(curvature + (λ+η)·gram)c, so curvature holds
  neither λ nor η, and the value at 0 is 0.
* ``model_optimal``: no coefficients have a lower value than the minimiser's.
* ``fixed_respected``: held coefficients stay, the others are optimal beside them.
* ``curvature_is_fisher``: curvature is vᵀFv of the exact Fisher on S2 (only where the model says
  ``exact=True``).
"""

# ruff: noqa: D103 - a law says itself what it demands
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.likelihood import Bernoulli, Categorical, Likelihood
from kfac_lab.core.state import DampingStrength
from kfac_lab.core.traits import ModelTraits, traits
from kfac_lab.core.vector import Vec
from kfac_lab.testing import dense
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.common import (
    CHEAP,
    Trial,
    common_laws,
    exempt_unless,
    near,
    scale_of,
)
from kfac_lab.testing.subjects import Subject, normal, vector_of
from kfac_lab.testing.trees import InputWatch

SLOT = "quadratic_model"
SHAPES = ((3, 4), (2, 5))
ENTRIES = 22


@dataclass(frozen=True)
class GivenEvaluation:
    """An Evaluation whose network is linear: outputs ``[n, out]`` and J ``[n, out, entries]``."""

    gradient: Vec
    loss: Tensor
    likelihood: Likelihood
    outputs: Tensor
    jacobian: Tensor
    root: Tensor  # F̆ = root rootᵀ

    @property
    def rows(self) -> int:
        """|S2|."""
        return self.outputs.shape[0]

    def tangents(self, basis: Sequence[Vec]) -> Iterator[tuple[Tensor, Tensor]]:
        """Two chunks of the cases."""
        v = torch.stack([flat(each) for each in basis])
        half = (self.rows + 1) // 2
        for part in (slice(0, half), slice(half, None)):
            j = self.jacobian[part]
            if len(j):
                yield self.outputs[part], torch.einsum("nop,kp->kno", j, v)

    def approximate_product(self, vector: Vec) -> Vec:
        """F̆ v."""
        return unflat(self.root @ (self.root.t() @ flat(vector)))


def flat(vector: Vec) -> Tensor:
    """All entries, row by row."""
    return torch.cat([m.reshape(-1) for m in vector])


def unflat(entries: Tensor) -> Vec:
    """The inverse of :func:`flat`."""
    first = SHAPES[0][0] * SHAPES[0][1]
    return Vec([entries[:first].reshape(SHAPES[0]), entries[first:].reshape(SHAPES[1])])


def made(where: str, likelihood: Likelihood, cases: int, k: int, seed: int) -> Subject:
    """A linear network of few cases, and k directions."""
    evaluation = GivenEvaluation(
        vector_of(SHAPES, seed),
        torch.tensor(0.7, dtype=torch.float64),
        likelihood,
        normal(cases, 3, seed=seed + 1),
        normal(cases, 3, ENTRIES, seed=seed + 2),
        normal(ENTRIES, 9, seed=seed + 3),
    )
    basis = tuple(vector_of(SHAPES, seed + 10 + j) for j in range(k))
    return Subject(
        where, {"evaluation": evaluation, "basis": basis, "strength": strength(0.3, 0.01)}
    )


def strength(lam: float, eta: float) -> DampingStrength:
    """λ and η as the engine gives them: 0-dim float64."""
    return DampingStrength(*(torch.tensor(v, dtype=torch.float64) for v in (lam, lam**0.5, eta)))


def subjects(case: Case) -> Sequence[Subject]:
    """One, two and three directions, several cases and one."""
    return (
        made("one direction, 5 cases", Bernoulli(), 5, 1, 1000),
        made("two directions, 5 cases", Categorical(), 5, 2, 1100),
        made("three directions, one case", Bernoulli(), 1, 3, 1200),
    )


def awkward(case: Case) -> Sequence[Subject]:
    """A direction that is zero, and two that are parallel."""
    found = []
    for where, factor in (("the second direction is zero", 0.0), ("parallel directions", -2.0)):
        plain = made(where, Bernoulli(), 5, 2, 1300)
        first = plain["basis"][0]
        found.append(Subject(where, {**plain.values, "basis": (first, first.scaled(factor))}))
    return tuple(found)


def restricted(component: Any, subject: Subject) -> Any:
    """The restriction to the subject's basis."""
    return component.restrict(subject["evaluation"], subject["basis"])


def run(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
    """restrict; and value and minimiser of what it gives."""
    restriction = watch(restricted(component, subject), "the restriction")
    best = restriction.minimiser(subject["strength"])
    return {
        "curvature": restriction.curvature,
        "gram": restriction.gram,
        "slope": restriction.slope,
        "minimiser": best,
        "minimiser, one held": restriction.minimiser(subject["strength"], fixed={0: 0.5}),
        "value": restriction.value(best, subject["strength"]),
    }


SCALARS = ("curvature", "gram", "slope", "minimiser", "minimiser, one held", "value")
common_laws(Trial(SLOT, subjects, run, awkward=awkward, double=SCALARS))

SHAPED = (*CHEAP, "dtype_follows", "shapes")
VALUED = (*SHAPED, "curvature_symmetric", "curvature_positive", "strength_added_once")


@law(SLOT, "fraction, τ2, lies in (0, 1].")
def fraction_in_range(case: Case) -> None:
    fraction = case.component.fraction
    if not 0 < fraction <= 1:
        raise Broken("its fields", "fraction in (0, 1]", repr(fraction))


@law(SLOT, "curvature and gram are [k, k], slope and minimiser [k], value is 0-dim.")
def shapes(case: Case) -> None:
    for subject in subjects(case):
        k = len(subject["basis"])
        for name, value in run(case.component, subject, InputWatch()).items():
            wanted = {"curvature": (k, k), "gram": (k, k), "value": ()}.get(name, (k,))
            if tuple(value.shape) != wanted:
                raise Broken(subject.where, f"{name} {wanted}", f"{tuple(value.shape)}")


@law(SLOT, "gram is ⟨v_i, v_j⟩.", needs=SHAPED)
def gram_of_basis(case: Case) -> None:
    for subject in subjects(case):
        v = torch.stack([flat(each) for each in subject["basis"]])
        near(
            subject.where, "the inner products", v @ v.t(), restricted(case.component, subject).gram
        )


@law(SLOT, "slope is ⟨∇h, v_i⟩.", needs=SHAPED)
def slope_of_gradient(case: Case) -> None:
    for subject in subjects(case):
        v = torch.stack([flat(each) for each in subject["basis"]])
        wanted = v @ flat(subject["evaluation"].gradient)
        near(subject.where, "⟨∇h, v⟩", wanted, restricted(case.component, subject).slope)


@law(SLOT, "curvature is symmetric.", needs=SHAPED)
def curvature_symmetric(case: Case) -> None:
    for subject in subjects(case):
        found = restricted(case.component, subject).curvature
        near(subject.where, "curvature as its transpose", found.t(), found, 1e-10)


@law(SLOT, "curvature is positive semidefinite.", needs=(*SHAPED, "curvature_symmetric"))
def curvature_positive(case: Case) -> None:
    for subject in (*subjects(case), *awkward(case)):
        found = restricted(case.component, subject).curvature
        least = float(torch.linalg.eigvalsh(found).min())
        if least < -1e-9 * scale_of(found):
            raise Broken(subject.where, "no negative eigenvalue", f"{least:.3g}")


@law(
    SLOT,
    "Another basis of the same span, also a permuted one, is the same model.",
    needs=(*SHAPED, "curvature_symmetric", "gram_of_basis", "slope_of_gradient"),
)
def basis_change(case: Case) -> None:
    changes = {
        "the basis in another order": torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
        "the basis mixed": torch.tensor([[1.0, 2, 0], [0, 1, -1], [0.5, 0, 3]]),
    }
    for subject in subjects(case):
        k = len(subject["basis"])
        plain = restricted(case.component, subject).curvature
        for what, whole in changes.items():
            change = whole[:k, :k].double()
            if k == 2 and "order" in what:
                change = change.new_tensor([[0, 1], [1, 0]])
            mixed = tuple(Vec.combine(change[:, j], subject["basis"]) for j in range(k))
            new = case.component.restrict(subject["evaluation"], mixed).curvature
            near(f"{subject.where}, {what}", "TᵀCT", change.t() @ plain @ change, new)


@law(
    SLOT,
    "curvature is a mean over the cases of S2: each case twice, in other chunks, is the same.",
    needs=(*SHAPED, "curvature_symmetric", "curvature_positive"),
)
def mean_over_cases(case: Case) -> None:
    for subject in subjects(case):
        once = subject["evaluation"]
        twice = replace(
            once, outputs=once.outputs.repeat(2, 1), jacobian=once.jacobian.repeat(2, 1, 1)
        )
        wanted = restricted(case.component, subject).curvature
        got = case.component.restrict(twice, subject["basis"]).curvature
        near(f"{subject.where}, twice", "the curvature of once", wanted, got)


@law(SLOT, "value is slope·c + ½cᵀ(curvature + (λ+η)·gram)c; λ and η enter there alone.",
     needs=SHAPED)  # fmt: skip
def strength_added_once(case: Case) -> None:
    for subject in subjects(case):
        r = restricted(case.component, subject)
        k = len(subject["basis"])
        for lam, eta in ((0.3, 0.01), (5.0, 0.0), (0.0, 2.0)):
            for c in (torch.zeros(k).double(), normal(k, seed=1400)):
                m = r.curvature + (lam + eta) * r.gram
                wanted = r.slope @ c + c @ (m @ c) / 2
                got = r.value(c, strength(lam, eta))
                where = f"{subject.where}, λ={lam}, η={eta}"
                if float((wanted - got).abs()) > 1e-9 * scale_of(wanted, r.slope):
                    raise Broken(where, f"M(c) − M(0) = {float(wanted):.6g}", f"{float(got):.6g}")


def _lowest(case: Case, fixed: Mapping[int, float]) -> None:
    for subject in subjects(case):
        r, s = restricted(case.component, subject), subject["strength"]
        k = len(subject["basis"])
        held = {j: value for j, value in fixed.items() if j < k}
        if len(held) == k and fixed:
            continue
        best = r.minimiser(s, fixed=held) if held else r.minimiser(s)
        for j, value in held.items():
            if abs(float(best[j]) - value) > 1e-12 * max(1.0, abs(value)):
                raise Broken(f"{subject.where}, c[{j}] held", f"{value}", f"{float(best[j]):.6g}")
        at = best.detach().clone().requires_grad_()
        value = r.value(at, s)
        (slope,) = torch.autograd.grad(value, at)
        free = [j for j in range(k) if j not in held]
        steepest = float(slope[free].abs().max())
        if steepest > 1e-7 * scale_of(r.slope, r.curvature):
            told = "a stationary point of value"
            raise Broken(subject.where, told, f"a slope of {steepest:.3g}")
        for n in range(20):
            step = normal(k, seed=1500 + n) * 10.0 ** (n % 5 - 3)
            step[list(held)] = 0
            other = r.value(best + step, s)
            if float(other) < float(value) - 1e-9 * scale_of(value):
                told = f"no value below {float(value):.6g}"
                raise Broken(f"{subject.where}, random c", told, f"{float(other):.6g}")


@law(SLOT, "No coefficients have a lower value than the minimiser's.", needs=VALUED)
def model_optimal(case: Case) -> None:
    _lowest(case, {})


@law(
    SLOT,
    "Held coefficients stay where they are held, and the others are optimal beside them.",
    needs=(*VALUED, "model_optimal"),
)
def fixed_respected(case: Case) -> None:
    for fixed in ({0: 0.5}, {1: -2.0}, {0: 0.25, 1: 3.0}):
        _lowest(case, fixed)


@law(
    SLOT,
    "curvature is vᵀFv of the exact Fisher on S2.",
    needs=(*SHAPED, "curvature_symmetric", "curvature_positive", "basis_change", "mean_over_cases"),
    applies=exempt_unless(
        lambda model: traits(model, ModelTraits).exact, "it does not say exact=True"
    ),
)
def curvature_is_fisher(case: Case) -> None:
    for subject in subjects(case):
        evaluation = subject["evaluation"]
        f = torch.zeros(ENTRIES, ENTRIES, dtype=torch.float64)
        for z, j in zip(evaluation.outputs, evaluation.jacobian, strict=True):
            f += j.t() @ dense.output_fisher(evaluation.likelihood, z) @ j / evaluation.rows
        v = torch.stack([flat(each) for each in subject["basis"]])
        got = restricted(case.component, subject).curvature
        near(subject.where, "vᵀFv", v @ f @ v.t(), got)
