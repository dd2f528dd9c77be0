"""The laws of ``collective``: several processes as one (Osawa et al. 2019).

They are tried in the one process that asks. Besides the common ones (``trains`` and ``resumes``
are left out: a run of one process calls no method of it):

* ``rank_in_range``: 0 ≤ rank < size.
* ``mean_of_one``: among one process the mean is what was there (exempt: there are several).
* ``mean_in_place``, ``broadcast_in_place``: the tensors themselves change; nothing is returned.
* ``owner_valid``: owner gives one rank below size for each key.
* ``owner_keeps``: after broadcast_ from this process its tensors hold what they held.
* ``two_processes``: two processes of torch.distributed agree on means and on what owners send
  (only where the class says ``processes=True``: it uses torch.distributed).
"""

# ruff: noqa: D103 - a law says itself what it demands
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kfac_lab.core.traits import CollectiveTraits, traits
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.common import CHEAP, Trial, common_laws, exempt_unless, same_to_the_bit
from kfac_lab.testing.processes import two_processes_agree
from kfac_lab.testing.subjects import Subject, normal
from kfac_lab.testing.trees import InputWatch

SLOT = "collective"


def subjects(case: Case) -> Sequence[Subject]:
    """Several tensors and keys, one, and none."""
    return (
        Subject(
            "three tensors, four keys",
            {
                "tensors": (normal(2, 3, seed=1600), normal(4, seed=1601), normal(seed=1602)),
                "keys": ("0", "2", "4", "head"),
                "costs": [3.0, 1.0, 2.0, 1.0],
            },
        ),
        Subject("one of each", {"tensors": (normal(2, seed=1603),), "keys": (7,), "costs": [1.0]}),
        Subject("nothing", {"tensors": (), "keys": (), "costs": []}),
    )


def run(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
    """mean_, owner and broadcast_ on copies."""
    averaged, sent = ([t.clone() for t in subject["tensors"]] for _ in range(2))
    component.mean_(averaged)
    owners = component.owner(subject["keys"], subject["costs"])
    component.broadcast_(sent, int(traits(component, CollectiveTraits).rank))
    return {"mean_": averaged, "owner": [int(rank) for rank in owners], "broadcast_": sent}


# In one process the engine asks a collective for its rank and size alone: no run would show more.
common_laws(Trial(SLOT, subjects, run, problem=None))


def size_of(collective: Any) -> int:
    """How many processes there are."""
    return int(traits(collective, CollectiveTraits).size)


_one = exempt_unless(lambda collective: size_of(collective) == 1, "there are several processes")


@law(SLOT, "rank is one of 0 … size − 1.", needs=("runs",))
def rank_in_range(case: Case) -> None:
    size, rank = size_of(case.component), int(traits(case.component, CollectiveTraits).rank)
    if not 0 <= rank < size:
        raise Broken(f"size={size}", f"a rank from 0 to {size - 1}", f"{rank}")


@law(SLOT, "Among one process the mean is what was there.", needs=CHEAP, applies=_one)
def mean_of_one(case: Case) -> None:
    for subject in subjects(case):
        found = [t.clone() for t in subject["tensors"]]
        case.component.mean_(found)
        same_to_the_bit(subject.where, "the tensors themselves", list(subject["tensors"]), found)


def _in_place(case: Case, name: str) -> None:
    for subject in subjects(case):
        given = [t.clone() for t in subject["tensors"]]
        before = [(id(t), t.data_ptr()) for t in given]
        if name == "mean_":
            back = case.component.mean_(given)
        else:
            back = case.component.broadcast_(
                given, int(traits(case.component, CollectiveTraits).rank)
            )
        if back is not None:
            raise Broken(subject.where, f"nothing returned by {name}", type(back).__name__)
        if [(id(t), t.data_ptr()) for t in given] != before:
            raise Broken(subject.where, "the same tensors in the list", "others")


@law(SLOT, "mean_ changes the tensors themselves and returns nothing.")
def mean_in_place(case: Case) -> None:
    _in_place(case, "mean_")


@law(SLOT, "broadcast_ changes the tensors themselves and returns nothing.")
def broadcast_in_place(case: Case) -> None:
    _in_place(case, "broadcast_")


@law(SLOT, "owner gives one rank below size for each key.", needs=("runs", "rank_in_range"))
def owner_valid(case: Case) -> None:
    for subject in subjects(case):
        keys = subject["keys"]
        owners = list(case.component.owner(keys, subject["costs"]))
        size = size_of(case.component)
        if len(owners) != len(keys) or any(not 0 <= rank < size for rank in owners):
            told = f"{len(keys)} ranks below {size}"
            raise Broken(subject.where, told, f"{owners}")


@law(SLOT, "After broadcast_ the owner's tensors hold what they held.", needs=CHEAP)
def owner_keeps(case: Case) -> None:
    for subject in subjects(case):
        found = [t.clone() for t in subject["tensors"]]
        case.component.broadcast_(found, int(traits(case.component, CollectiveTraits).rank))
        same_to_the_bit(subject.where, "the owner's values", list(subject["tensors"]), found)


@law(
    SLOT,
    "Two processes agree on means, on owners, and on what the owners send.",
    needs=(*CHEAP, "rank_in_range", "owner_valid", "owner_keeps", "mean_in_place"),
    applies=exempt_unless(
        lambda collective: (
            traits(collective, CollectiveTraits).processes
            and torch.distributed.is_available()
            and not torch.distributed.is_initialized()
        ),
        "it does not say processes=True, or torch.distributed is in use already",
    ),
)
def two_processes(case: Case) -> None:
    two_processes_agree(case.component)
