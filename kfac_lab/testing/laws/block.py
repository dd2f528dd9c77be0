"""The laws of ``block``: one layer's curvature and its damped inverse (sections 3, 4 and 6.3).

P is the damped inverse as a map of matrices. Besides the common ones:

* ``wants_known``: wants names moments that there are, each once.
* ``shapes``: P keeps the shape, dense is square.
* ``linear``, ``symmetric``, ``positive_definite``: P is a symmetric positive definite matrix.
* ``equals_dense``: dense is the matrix of apply, for column-stacked vec.
* ``equals_its_factors``: where factors gives (Ā, G), dense is (Ā ⊗ G)⁻¹.
* ``falls_with_gamma``: a larger γ makes P no larger.
* ``damping_limit``: γ²P tends to the identity as γ grows, or P ignores γ.
* ``gamma_damps``: if λ or η makes a difference to P, γ does too.
* ``product_linear``, ``product_symmetric``, ``product_positive``: product is a symmetric positive
  semidefinite matrix (exempt: no product).
* ``inverts_its_product``: with little damping P undoes product.
* ``observe_weighs``, ``observe_means``, ``cotangents_even``: what observe keeps goes with the
  weight, is a mean over the cases, and does not know a cotangent's sign (exempt: no observe).
* ``keeps_no_moments``: factorise and damped keep no reference into the moments.
* ``previous_is_a_hint``: damped gives the same inverse from whatever was in use before.
* ``saved``: part_state, factorisation and inverse are saved without pickle and give the same P.
"""

# ruff: noqa: D103 - a law says itself what it demands
from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.moments import NAMES
from kfac_lab.core.state import from_tree, to_tree
from kfac_lab.core.traits import BlockTraits, traits
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.block_subjects import (
    DENSE,
    GAMMAS,
    P_LAWS,
    SLOT,
    awkward,
    factored,
    inverse_of,
    matrix_of,
    observes,
    run,
    shape_of,
    strength,
    subjects,
)
from kfac_lab.testing.laws.common import (
    CHEAP,
    Trial,
    common_laws,
    exempt_unless,
    first_state,
    hidden,
    near,
    same_to_the_bit,
    scale_of,
)
from kfac_lab.testing.subjects import Subject, moments_of, normal

common_laws(
    Trial(
        SLOT, subjects, run, awkward=awkward, loose=("dense",), any_dtype=("part_state",), door=True
    )
)

_product = exempt_unless(
    lambda block: traits(block, BlockTraits).product is not None, "it has no product"
)


@law(SLOT, "wants names moments that there are, each once.")
def wants_known(case: Case) -> None:
    names = list(case.component.wants())
    strange = [name for name in names if name not in NAMES]
    if strange:
        told = f"moments out of {', '.join(NAMES)}"
        raise Broken("wants()", told, ", ".join(map(repr, strange)))
    if len(set(names)) != len(names):
        raise Broken("wants()", "every name once", ", ".join(names))


@law(SLOT, "apply keeps the matrix's shape; dense is square, d_in·d_out.")
def shapes(case: Case) -> None:
    for subject in subjects(case):
        d_out, d_in = shape_of(subject)
        inverse = inverse_of(case.component, subject)
        got = tuple(inverse.apply(subject["matrix"]).shape)
        if got != (d_out, d_in):
            raise Broken(subject.where, f"apply's result {(d_out, d_in)}", f"{got}")
        got, side = tuple(inverse.dense().shape), d_out * d_in
        if got != (side, side):
            raise Broken(subject.where, f"dense's result {(side, side)}", f"{got}")


@law(SLOT, "apply is linear.", needs=(*CHEAP, "shapes"))
def linear(case: Case) -> None:
    for subject in subjects(case):
        apply = inverse_of(case.component, subject).apply
        u, v = normal(*shape_of(subject), seed=280), normal(*shape_of(subject), seed=281)
        near(subject.where, "P(2U − 3V)", 2 * apply(u) - 3 * apply(v), apply(2 * u - 3 * v))


@law(SLOT, "P is symmetric: ⟨U, PV⟩ = ⟨PU, V⟩.", needs=P_LAWS)
def symmetric(case: Case) -> None:
    for subject in subjects(case):
        p = matrix_of(inverse_of(case.component, subject).apply, subject)
        near(subject.where, "P as its transpose", p.t(), p)


@law(SLOT, "P is positive definite.", needs=(*P_LAWS, "symmetric"))
def positive_definite(case: Case) -> None:
    for subject in (*subjects(case), *awkward(case)):
        p = matrix_of(inverse_of(case.component, subject).apply, subject)
        least = float(torch.linalg.eigvalsh((p + p.t()) / 2).min())
        if not least > 0:
            raise Broken(subject.where, "positive eigenvalues of P", f"{least:.3g}")


@law(SLOT, "dense is the matrix of apply, for column-stacked vec.", needs=P_LAWS)
def equals_dense(case: Case) -> None:
    for subject in subjects(case):
        inverse = inverse_of(case.component, subject)
        wanted = matrix_of(inverse.apply, subject)
        # A block may not know in which precision dense is wanted.
        precise = inverse.dense().dtype == torch.float64
        near(subject.where, "apply's matrix", wanted, inverse.dense(), 1e-8 if precise else 1e-5)


def _has_factors(case: Case) -> str | None:
    subject = subjects(case)[0]
    try:
        without = inverse_of(case.component, subject).factors() is None
    except Exception:  # the law ``runs`` reports it
        return None
    return "its factors are None: no product of two" if without else None


@law(SLOT, "factors (Ā, G) say what P inverts: (Ā ⊗ G)⁻¹.", needs=DENSE, applies=_has_factors)
def equals_its_factors(case: Case) -> None:
    for subject in subjects(case):
        inverse = inverse_of(case.component, subject)
        a, g = inverse.factors()
        d_out, d_in = shape_of(subject)
        sides = tuple(a.shape), tuple(g.shape)
        if sides != ((d_in, d_in), (d_out, d_out)):
            told = f"Ā {(d_in, d_in)} and G {(d_out, d_out)}"
            raise Broken(subject.where, told, f"{sides[0]} and {sides[1]}")
        wanted = torch.linalg.inv(torch.kron(a.double().contiguous(), g.double().contiguous()))
        near(subject.where, "(Ā ⊗ G)⁻¹", wanted, matrix_of(inverse.apply, subject), 1e-6)


@law(SLOT, "A larger γ makes P no larger.", needs=DENSE)
def falls_with_gamma(case: Case) -> None:
    for subject in subjects(case):
        found = [
            matrix_of(inverse_of(case.component, subject, strength(g)).apply, subject)
            for g in GAMMAS
        ]
        for n in range(len(GAMMAS) - 1):
            drop = found[n] - found[n + 1]
            least = float(torch.linalg.eigvalsh((drop + drop.t()) / 2).min())
            if least < -1e-7 * scale_of(found[n]):
                where = f"{subject.where}, γ={GAMMAS[n]} and {GAMMAS[n + 1]}"
                raise Broken(where, "P to fall in every direction", f"a rise by {-least:.3g}")


@law(SLOT, "γ²P tends to the identity as γ grows, or P does not depend on γ.", needs=DENSE)
def damping_limit(case: Case) -> None:
    for subject in subjects(case):
        v, gamma = subject["matrix"], 1e5
        small = inverse_of(case.component, subject).apply(v)
        large = inverse_of(case.component, subject, strength(gamma)).apply(v)
        if not torch.equal(small, large):
            near(f"{subject.where}, γ={gamma:g}", "γ²PV = V", v, gamma**2 * large, 1e-3)


@law(SLOT, "It is γ that damps P: where λ or η makes a difference, γ does too.", needs=DENSE)
def gamma_damps(case: Case) -> None:
    for subject in subjects(case):
        v, here = subject["matrix"], strength(0.5)
        at = inverse_of(case.component, subject, here).apply(v)
        if not torch.equal(at, inverse_of(case.component, subject, strength(3.0)).apply(v)):
            continue
        other = inverse_of(case.component, subject, strength(0.5, lam=0.3, eta=0.1)).apply(v)
        if not torch.equal(at, other):
            raise Broken(subject.where, "another P for another γ", "one that goes by λ and η alone")


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


# --- what it is shown -----------------------------------------------------------------------------

_observes = exempt_unless(observes, "it has no observe")


def _after(case: Case, subject: Subject, *shown: tuple[Tensor, Tensor, float]) -> Tensor:
    """P of the subject's moments after rows, cotangents and weights were shown."""
    part_state = first_state(case.component, "block")
    for rows, cotangents, weight in shown:
        part_state = case.component.observe(part_state, rows, cotangents, weight)
    found, part_state = case.component.factorise(subject["moments"], part_state)
    for rows, cotangents, weight in shown:  # some use only what comes after a factorisation
        part_state = case.component.observe(part_state, rows, cotangents, weight)
    return matrix_of(
        case.component.damped(found, part_state, subject["strength"], None).apply, subject
    )


@law(
    SLOT,
    "observe's weight is the share of the new: the larger, the nearer to the new alone.",
    needs=DENSE,
    applies=_observes,
)
def observe_weighs(case: Case) -> None:
    for subject in subjects(case):
        rows, cotangents = subject["rows"], subject["cotangents"]
        old, new = (rows, cotangents, 1.0), (rows.flip(1) * 2, cotangents * 3)
        alone = _after(case, subject, (*new, 1.0))
        near_by, far = (
            float((_after(case, subject, old, (*new, weight)) - alone).abs().max())
            for weight in (0.9, 0.1)
        )
        if near_by > far + 1e-9 * scale_of(alone):
            told = f"P with weight 0.9 nearer to P of the new alone than {far:.3g}"
            raise Broken(subject.where, told, f"{near_by:.3g}")


@law(
    SLOT,
    "What observe keeps is a mean over the cases: each case twice is the same.",
    needs=DENSE,
    applies=_observes,
)
def observe_means(case: Case) -> None:
    for subject in subjects(case):
        rows, cotangents = subject["rows"], subject["cotangents"]
        once = _after(case, subject, (rows, cotangents, 1.0))
        doubled = (rows.repeat(2, 1, 1), cotangents.repeat(1, 2, 1, 1), 1.0)
        told = "P as with every case once"
        near(f"{subject.where}, twice", told, once, _after(case, subject, doubled), 1e-6)


@law(
    SLOT,
    "A cotangent's sign says nothing: it is a column of a factor of F_R.",
    needs=DENSE,
    applies=_observes,
)
def cotangents_even(case: Case) -> None:
    subject = subjects(case)[-1]
    rows, cotangents = subject["rows"], subject["cotangents"]
    signs = torch.tensor([1.0, -1.0], dtype=cotangents.dtype).view(-1, 1, 1, 1)
    plain = _after(case, subject, (rows, cotangents, 1.0))
    other = _after(case, subject, (rows, cotangents * signs, 1.0))
    near(f"{subject.where}, one of them negated", "P as before", plain, other, 1e-6)


@law(SLOT, "factorise and damped keep no reference into the moments.", needs=CHEAP)
def keeps_no_moments(case: Case) -> None:
    for subject in subjects(case):
        given = subject.fresh()
        found, part_state = factored(case.component, given)
        inverse = case.component.damped(found, part_state, given["strength"], None)
        before = (
            inverse.apply(given["matrix"]),
            case.component.damped(found, part_state, given["other"], None).apply(given["matrix"]),
        )
        for tensor in given["moments"].values():
            tensor.fill_(7.0)
        after = (
            inverse.apply(given["matrix"]),
            case.component.damped(found, part_state, given["other"], None).apply(given["matrix"]),
        )
        where = f"{subject.where}, after the moments changed"
        same_to_the_bit(where, "P as before", before, after)


@dataclass(frozen=True)
class Stranger:
    """An inverse of nobody's kind, as a swap of blocks leaves it in use."""

    def apply(self, matrix: Tensor) -> Tensor:
        """The matrix."""
        return matrix

    def dense(self) -> Tensor:
        """An empty one."""
        return torch.zeros(0, 0)

    def factors(self) -> None:
        """None."""


def _earlier(subject: Subject) -> Subject:
    """The same layer before it has learnt: other rows and cotangents."""
    rows, cotangents = 2 * subject["rows"], subject["cotangents"].flip(-1) / 3
    values = {"rows": rows, "cotangents": cotangents, "moments": moments_of(rows, cotangents)}
    return Subject(subject.where, {**subject.values, **values})


@law(SLOT, "damped gives the same inverse, whatever was in use before.", needs=DENSE)
def previous_is_a_hint(case: Case) -> None:
    everything = subjects(case)
    for n, subject in enumerate(everything):
        found, part_state = factored(case.component, subject)
        at = subject["other"]
        cold = case.component.damped(found, part_state, at, None).apply(subject["matrix"])
        others = {
            "the inverse of another γ": inverse_of(case.component, subject),
            "the inverse of earlier moments": inverse_of(case.component, _earlier(subject), at),
            "the inverse of another layer": inverse_of(case.component, everything[n - 1]),
            "another block's inverse": Stranger(),
        }
        for what, previous in others.items():
            where = f"{subject.where}, {what} in use"
            with hidden(where):
                warm = case.component.damped(found, part_state, at, previous).apply(
                    subject["matrix"]
                )
            near(where, "the result without one", cold, warm, 1e-6)


@law(
    SLOT,
    "part_state, factorisation and inverse are saved without pickle, and give the same P.",
    needs=CHEAP,
)
def saved(case: Case) -> None:
    for subject in subjects(case)[:2]:
        found, part_state = factored(case.component, subject)
        inverse = case.component.damped(found, part_state, subject["strength"], None)
        with hidden(f"{subject.where}, saved"):
            back = reread({"factored": found, "part_state": part_state, "inverse": inverse})
            again = case.component.damped(
                back["factored"], back["part_state"], subject["other"], None
            )
        v = subject["matrix"]
        wanted = case.component.damped(found, part_state, subject["other"], None)
        told = "the same P from what was saved"
        same_to_the_bit(subject.where, told, inverse.apply(v), back["inverse"].apply(v))
        same_to_the_bit(subject.where, told, wanted.apply(v), again.apply(v))


def reread(value: Any) -> Any:
    """The value after a checkpoint's way to a file and back."""
    file = io.BytesIO()
    torch.save(to_tree(value), file)
    file.seek(0)
    return from_tree(torch.load(file, weights_only=True))
