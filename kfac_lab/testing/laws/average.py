"""The laws of an average of the iterates (section 13).

Beside the common ones: ``shaped_like_theta``, ``one_kind_of_answer``, ``owns_its_tensors``,
``keeps_a_constant``, ``between_what_it_saw``, ``follows``.
"""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.testing.law import Broken, Case, law, try_last
from kfac_lab.testing.laws.common import CHEAP, Trial, common_laws
from kfac_lab.testing.subjects import Subject, normal
from kfac_lab.testing.trees import InputWatch

SLOT = "average"
SHAPES = ((3, 4), (3,), (1, 2, 2, 2))


def _theta(seed: int, size: float = 1.0) -> list[Tensor]:
    return [size * normal(*shape, seed=seed + 17 * n) for n, shape in enumerate(SHAPES)]


def subjects(case: Case) -> Sequence[Subject]:
    """θ of several shapes, wandering; and θ that is one number."""
    return (
        Subject("θ of 3 tensors over 5 steps", {"thetas": [_theta(s) for s in range(6)]}),
        Subject(
            "a θ of one number over 3 steps",
            {"thetas": [[normal(1, seed=s)] for s in (7, 8, 9, 10)]},
        ),
    )


def run(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
    """The average from before the first step on, read after each."""
    first, *rest = subject["thetas"]
    part_state = component.init(watch(first, "θ")) or {}
    part_states, read = [part_state], [component.read(watch(part_state, "part_state"))]
    for theta in rest:
        part_state = component.update(watch(part_state, "part_state"), watch(theta, "θ")) or {}
        part_states.append(part_state)
        read.append(component.read(part_state))
    return {"part_state": part_states, "read": read}


# What a part_state holds besides tensors of θ's kind (a count, say) has a dtype of its own.
common_laws(Trial(SLOT, subjects, run, any_dtype=("part_state",)))


def _reads(case: Case, thetas: Sequence[list[Tensor]]) -> list[Sequence[Tensor] | None]:
    found = run(case.component, Subject("", {"thetas": thetas}), InputWatch())["read"]
    return list(found)


@law(SLOT, "θ̄ has θ's tensors: as many, of the same shapes.")
def shaped_like_theta(case: Case) -> None:
    for subject in subjects(case):
        wanted = [tuple(t.shape) for t in subject["thetas"][0]]
        for n, read in enumerate(_reads(case, subject["thetas"])):
            found = wanted if read is None else [tuple(t.shape) for t in read]
            if found != wanted:
                raise Broken(f"{subject.where}, after {n}", f"{wanted}", f"{found}")


@law(SLOT, "There is a θ̄ at every step, or there never is one.")
def one_kind_of_answer(case: Case) -> None:
    for subject in subjects(case):
        reads = _reads(case, subject["thetas"])
        there = [n for n, read in enumerate(reads) if read is not None]
        if there and len(there) != len(reads):
            lacking = next(n for n in range(len(reads)) if n not in there)
            got = f"None after {lacking} and tensors after {there[0]}"
            raise Broken(subject.where, "tensors always, or None always", got)


_OWN = (*CHEAP, "shaped_like_theta", "one_kind_of_answer")


@law(
    SLOT,
    "It keeps copies: θ is overwritten at the next step, and θ̄ must not move with it.",
    needs=_OWN,
)
def owns_its_tensors(case: Case) -> None:
    for updates in (0, 1, 3):
        thetas = [_theta(s) for s in range(updates + 1)]
        part_state = case.component.init(thetas[0])
        for theta in thetas[1:]:
            part_state = case.component.update(part_state or {}, theta)
        read = case.component.read(part_state or {})
        if read is None:
            return
        before = [t.detach().clone() for t in read]
        for theta in thetas:
            for tensor in theta:
                tensor.fill_(1e6)
        for n, (old, new) in enumerate(
            zip(before, case.component.read(part_state or {}), strict=True)
        ):
            if not torch.equal(old, new):
                where = f"tensor {n}, after {updates} updates, θ overwritten"
                raise Broken(where, "the θ̄ of before", f"{float((new - old).abs().max()):.3g} off")


@law(SLOT, "The average of one θ, again and again, is that θ.", needs=(*_OWN, "owns_its_tensors"))
def keeps_a_constant(case: Case) -> None:
    theta = _theta(3)
    for n, read in enumerate(_reads(case, [theta] * 300)):
        for tensor, wanted in zip(read or (), theta, strict=read is not None):
            gap = float((tensor - wanted).abs().max())
            if gap > 1e-12:
                raise Broken(f"the same θ {n + 1} times", "θ̄ = θ", f"{gap:.3g} off")


@law(
    SLOT,
    "θ̄ lies between the least and the largest of what it was given, entry by entry.",
    needs=(*_OWN, "keeps_a_constant"),
)
def between_what_it_saw(case: Case) -> None:
    thetas = [_theta(s, 1.0 + s % 3) for s in range(40)]
    for n, read in enumerate(_reads(case, thetas)):
        for i, tensor in enumerate(read or ()):
            seen = torch.stack([theta[i] for theta in thetas[: n + 1]])
            low, high = seen.amin(0) - 1e-12, seen.amax(0) + 1e-12
            over = float(torch.maximum(low - tensor, tensor - high).max())
            if over > 0:
                raise Broken(f"tensor {i}, after {n} of 39 updates", "no more", f"{over:.3g} more")


@law(
    SLOT,
    "Where θ has moved for good, θ̄ comes nearer to it.",
    needs=(*_OWN, "keeps_a_constant", "between_what_it_saw"),
)
def follows(case: Case) -> None:
    old, new = _theta(1), _theta(2)
    read = _reads(case, [old, *[new] * 1000])[-1]
    if read is None:
        return
    for n, (tensor, start, goal) in enumerate(zip(read, old, new, strict=True)):
        before, after = float((start - goal).norm()), float((tensor - goal).norm())
        if not after < before:
            where = f"tensor {n}, 1000 steps at another θ"
            raise Broken(where, f"a distance below {before:.4g}", f"{after:.4g}")


for _name in ("trains", "resumes", "replays"):
    try_last(SLOT, _name, "shaped_like_theta", "one_kind_of_answer")
