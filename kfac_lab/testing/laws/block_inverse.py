"""The laws of a block's damped inverse P: symmetric, positive definite, and smaller as γ grows."""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

import torch

from kfac_lab.core.moments import NAMES
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.block_subjects import (
    DENSE,
    GAMMAS,
    P_LAWS,
    SLOT,
    awkward,
    inverse_of,
    matrix_of,
    run,
    shape_of,
    strength,
    subjects,
)
from kfac_lab.testing.laws.common import (
    CHEAP,
    Trial,
    common_laws,
    near,
    scale_of,
)
from kfac_lab.testing.subjects import normal

common_laws(
    Trial(
        SLOT, subjects, run, awkward=awkward, loose=("dense",), any_dtype=("part_state",), door=True
    )
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
