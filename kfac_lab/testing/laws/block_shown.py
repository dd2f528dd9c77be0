"""The laws of what a block is shown and hands back: rows, moments, earlier inverses, saving."""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.state import from_tree, to_tree
from kfac_lab.core.traits import BlockTraits, traits
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.block_subjects import (
    DENSE,
    SLOT,
    factored,
    inverse_of,
    matrix_of,
    observes,
    subjects,
)
from kfac_lab.testing.laws.common import (
    CHEAP,
    exempt_unless,
    first_state,
    hidden,
    near,
    same_to_the_bit,
    scale_of,
)
from kfac_lab.testing.subjects import Subject, moments_of

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
class ForeignInverse:
    """An inverse of nobody's kind, as a swap of blocks leaves it in use."""

    def apply(self, matrix: Tensor) -> Tensor:
        """The matrix."""
        return matrix

    def dense(self) -> Tensor:
        """An empty one."""
        return torch.zeros(0, 0)

    def factors(self) -> None:
        """None."""


_asks = exempt_unless(lambda block: traits(block, BlockTraits).asks is not None, "it has no asks")


@law(
    SLOT,
    "Of the inverses that asks names, made_of makes what damped gives.",
    needs=DENSE,
    applies=_asks,
)
def asked_is_damped(case: Case) -> None:
    own = traits(case.component, BlockTraits)
    for subject in subjects(case):
        found, part_state = factored(case.component, subject)
        asked = own.asks(found, subject["strength"]) if own.asks is not None else None
        if asked is None:
            continue
        inverses = [linalg.damped_inverse(matrix, shift) for _, matrix, shift in asked]
        if own.made_of is None:
            raise Broken(subject.where, "made_of beside asks", "none")
        made = own.made_of(found, subject["strength"], inverses)
        wanted = case.component.damped(found, part_state, subject["strength"], None)
        v = subject["matrix"]
        near(subject.where, "what damped gives", wanted.apply(v), made.apply(v), 1e-6)


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
            "another block's inverse": ForeignInverse(),
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


Stranger = ForeignInverse  # its former name
