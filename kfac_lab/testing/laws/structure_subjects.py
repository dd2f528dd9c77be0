"""What a structure is tried on: layers, blocks and moments of small networks; how it is called."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.problem import Problem
from kfac_lab.core.state import DampingStrength
from kfac_lab.core.vector import Vec
from kfac_lab.paper.diagonal import Diagonal, Identity
from kfac_lab.paper.kronecker import Kronecker
from kfac_lab.testing.law import Case
from kfac_lab.testing.laws.block_subjects import strength
from kfac_lab.testing.subjects import (
    GivenTable,
    LayerShape,
    Subject,
    made_once,
    moments_of,
    normal,
    tiny_problem,
    vector_of,
)
from kfac_lab.testing.trees import InputWatch

__all__ = [
    "SLOT",
    "WIDE",
    "awkward",
    "factored",
    "flat",
    "inverse_of",
    "made",
    "matrix_in",
    "matrix_of",
    "problem",
    "run",
    "subjects",
    "table_of",
    "unflat",
]

SLOT = "structure"


WIDE = ((3, 5), (4, 4), (1, 5), (2, 3))


@made_once
def made(
    where: str,
    shapes: tuple[tuple[int, int], ...],
    chains: tuple[tuple[int, ...], ...],
    cases: int,
    blocks: tuple[Any, ...] = (),
    seed: int = 300,
) -> Subject:
    """Rows of several layers that depend on each other, and all their moments."""
    common = normal(cases, 3, seed=seed)
    rows, cotangents = [], []
    for n, (d_out, d_in) in enumerate(shapes):
        a = normal(cases, d_in, seed=seed + 4 * n + 1) + common @ normal(3, d_in, seed=seed + n)
        g = normal(cases, d_out, seed=seed + 4 * n + 2) + common @ normal(3, d_out, seed=seed - n)
        a[:, -1] = 1
        rows.append(a)
        cotangents.append(g / 2)
    table = [
        moments_of(a[:, None], g[None, :, None]) for a, g in zip(rows, cotangents, strict=True)
    ]
    crosses = {
        f"{i} {j}": (rows[i].t() @ rows[j] / cases, cotangents[i].t() @ cotangents[j] / cases)
        for i, j in itertools.permutations(range(len(shapes)), 2)
    }
    chosen = blocks or (Kronecker(),) * len(shapes)
    return Subject(
        where,
        {
            "shapes": shapes,
            "chains": chains,
            "blocks": chosen,
            "moments": tuple(table),
            "crosses": crosses,
            "part_states": tuple({} for _ in shapes),
            "vector": vector_of(shapes, seed=seed + 90),
            "strength": strength(0.5),
            "other": strength(0.7),
        },
    )


def subjects(case: Case) -> Sequence[Subject]:
    """One layer; a chain of four; two chains; blocks that end a chain."""
    mixed = (Kronecker(), Diagonal(), Kronecker(), Identity())
    return (
        made("one layer", WIDE[:1], ((0,),), 60),
        made("a chain of four layers, 60 cases", WIDE, ((0, 1, 2, 3),), 60, seed=400),
        made("two chains, 60 cases", WIDE, ((0, 1), (2, 3)), 60, seed=500),
        made("a chain of kronecker, diagonal, kronecker, identity", WIDE, ((0, 1, 2, 3),), 60,
             mixed, seed=600),
    )  # fmt: skip


def awkward(case: Case) -> Sequence[Subject]:
    """Fewer cases than any layer has sides."""
    return (made("a chain of four layers, 2 cases", WIDE, ((0, 1, 2, 3),), 2, seed=700),)


def table_of(structure: Any, subject: Subject) -> GivenTable:
    """The moments with the cross moments that the structure asks for, as the store keeps them."""
    asked = [(int(i), int(j)) for i, j in structure.pairs(subject["chains"])]
    blocks = subject["blocks"]
    links = tuple(
        (i, j) for i, j in asked if all({"A", "G"} <= set(blocks[k].wants()) for k in (i, j))
    )
    crosses = tuple(subject["crosses"][f"{i} {j}"] for i, j in links)
    return GivenTable(subject["moments"], links, crosses)


def factored(structure: Any, subject: Subject) -> tuple[Any, Sequence[Any]]:
    """The factorisation and the part_states that came with it."""
    shapes = subject["shapes"]
    layers = tuple(LayerShape(f"layer {n}", *shape) for n, shape in enumerate(shapes))
    found: tuple[Any, Sequence[Any]] = structure.factorise(
        layers, subject["blocks"], table_of(structure, subject), subject["part_states"]
    )
    return found


def inverse_of(structure: Any, subject: Subject, at: DampingStrength | None = None) -> Any:
    """The preconditioner made from nothing."""
    found, part_states = factored(structure, subject)
    return structure.damped(found, part_states, at or subject["strength"], None)


def run(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
    """pairs, factorise, damped twice, apply."""
    found, part_states = factored(component, subject)
    watch(part_states, "the part_states of factorise")
    first = watch(
        component.damped(found, part_states, subject["strength"], None), "the preconditioner"
    )
    second = component.damped(found, part_states, subject["other"], first)
    return {
        "pairs": [tuple(pair) for pair in component.pairs(subject["chains"])],
        "apply": first.apply(subject["vector"]),
        "apply, warm": second.apply(subject["vector"]),
    }


def problem(case: Case) -> Problem:
    """The tiny problem."""
    return tiny_problem(l2=1e-3)


def flat(vector: Vec) -> Tensor:
    """All entries of a vector, each matrix column by column."""
    return torch.cat([m.t().reshape(-1) for m in vector])


def unflat(entries: Tensor, shapes: Sequence[tuple[int, int]]) -> Vec:
    """The inverse of :func:`flat`."""
    sizes = [d_out * d_in for d_out, d_in in shapes]
    parts = torch.split(entries, sizes)
    matrices = [p.reshape(s[1], s[0]).t() for p, s in zip(parts, shapes, strict=True)]
    return Vec([m.contiguous() for m in matrices])


def matrix_of(preconditioner: Any, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """P as one matrix, one unit vector at a time."""
    total = sum(d_out * d_in for d_out, d_in in shapes)
    units = torch.eye(total, dtype=torch.float64)
    return torch.stack([flat(preconditioner.apply(unflat(u, shapes))) for u in units], 1)


def matrix_in(case: Case, subject: Subject) -> Tensor:
    """P of a subject as one matrix: made once for all the laws of a report that look at it."""
    found: Tensor | None = case.memo.get(subject.where)
    if found is None:
        found = matrix_of(inverse_of(case.component, subject), subject["shapes"])
        case.memo[subject.where] = found
    return found


def _parts(subject: Subject) -> list[slice]:
    ends = list(itertools.accumulate(d_out * d_in for d_out, d_in in subject["shapes"]))
    return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _own(subject: Subject, n: int) -> Any:
    """The damped inverse of one layer's block, asked without any structure."""
    block = subject["blocks"][n]
    found, part_state = block.factorise(subject["moments"][n], subject["part_states"][n])
    return block.damped(found, part_state, subject["strength"], None)
