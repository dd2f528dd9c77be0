"""The laws of ``structure``: how the blocks make one preconditioner P (section 4).

They are tried with the paper's Kronecker blocks, and with blocks that are no product of factors.
Besides the common ones:

* ``pairs_adjacent``: pairs are neighbours in one of the chains, each once.
* ``linear``, ``symmetric``, ``positive_definite``: P is a symmetric positive definite matrix.
* ``apart_without_links``: a structure without pairs couples nothing.
* ``single_layers_alone``: where nothing may be linked, P is each block's own damped inverse.
* ``diagonal_blocks_kept``: P⁻¹ has the blocks' own damped curvature on its diagonal.
* ``links_kept``: at a link P⁻¹ has the cross moments' product (exempt: asks for no pairs).
* ``keeps_no_moments``: factorise and damped keep no reference into the moments.
* ``states_handed_on``: each block gets its own state at factorise and at damped, and the state that
  its factorise makes is given back.
* ``joined_is_whole``: layers that are factorised and damped one by one and then joined give what
  they give at once (exempt: it has no ``joined``).
* ``previous_is_a_hint``: damped gives the same P from whatever was in use before.
* ``saved``: the factorisation and P are saved without pickle and give the same.

The four in the middle do not bind a structure that says ``keeps_blocks=False``: one that scales
the blocks' inverses, or couples them in a way of its own.
"""

# ruff: noqa: D103 - a law says itself what it demands
from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch

from kfac_lab.core.state import DampingStrength
from kfac_lab.core.traits import StructureTraits, traits
from kfac_lab.core.vector import Vec
from kfac_lab.paper.diagonal import Diagonal
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.block_shown import reread
from kfac_lab.testing.laws.common import (
    CHEAP,
    Trial,
    common_laws,
    exempt_unless,
    hidden,
    near,
    same_to_the_bit,
)
from kfac_lab.testing.laws.structure_subjects import (
    SLOT,
    WIDE,
    _own,
    _parts,
    awkward,
    factored,
    flat,
    inverse_of,
    made,
    matrix_in,
    matrix_of,
    problem,
    run,
    subjects,
    table_of,
)
from kfac_lab.testing.subjects import (
    GivenTable,
    LayerShape,
    Subject,
    vector_of,
)

common_laws(Trial(SLOT, subjects, run, awkward=awkward, door=True, problem=problem))

DENSE = (*CHEAP, "linear", "symmetric", "positive_definite")
_keeps = exempt_unless(
    lambda structure: traits(structure, StructureTraits).keeps_blocks,
    "keeps_blocks=False says that P is not made of the blocks' inverses alone",
)


@law(SLOT, "pairs are neighbours in one of the chains, each once.")
def pairs_adjacent(case: Case) -> None:
    for chains in (((0, 1, 2, 3),), ((0, 1), (2, 3)), ((3, 1, 2), (0,)), ((0,),), ()):
        near_by = [pair for chain in chains for pair in itertools.pairwise(chain)]
        pairs = [tuple(pair) for pair in case.component.pairs(chains)]
        strange = [pair for pair in pairs if pair not in near_by]
        if strange or len(set(pairs)) != len(pairs):
            told = f"pairs out of {near_by}, each once"
            raise Broken(f"the chains {chains}", told, f"{pairs}")


@law(SLOT, "P is linear and keeps the shapes.", needs=CHEAP)
def linear(case: Case) -> None:
    for subject in subjects(case):
        apply = inverse_of(case.component, subject).apply
        u, v = vector_of(subject["shapes"], 800), vector_of(subject["shapes"], 801)
        both = apply(u.scaled(2.0) - v.scaled(3.0))
        got, wanted = [tuple(m.shape) for m in both], list(subject["shapes"])
        if got != wanted:
            raise Broken(subject.where, f"matrices {wanted}", f"{got}")
        near(subject.where, "P(2u − 3v)", 2 * flat(apply(u)) - 3 * flat(apply(v)), flat(both))


@law(SLOT, "P is symmetric: ⟨u, Pv⟩ = ⟨Pu, v⟩.", needs=(*CHEAP, "linear"))
def symmetric(case: Case) -> None:
    for subject in subjects(case):
        p = matrix_in(case, subject)
        near(subject.where, "P as its transpose", p.t(), p)


@law(SLOT, "P is positive definite.", needs=(*CHEAP, "linear", "symmetric"))
def positive_definite(case: Case) -> None:
    for subject in (*subjects(case), *awkward(case)):
        p = matrix_in(case, subject)
        least = float(torch.linalg.eigvalsh((p + p.t()) / 2).min())
        if not least > 0:
            raise Broken(subject.where, "positive eigenvalues of P", f"{least:.3g}")


def _apart(case: Case) -> str | None:
    linked = bool(case.component.pairs(((0, 1, 2, 3),)))
    return _keeps(case) or ("it asks for pairs" if linked else None)


@law(SLOT, "A structure without pairs couples no layers.", needs=DENSE, applies=_apart)
def apart_without_links(case: Case) -> None:
    for subject in subjects(case):
        p = matrix_in(case, subject)
        parts = _parts(subject)
        for i, j in itertools.permutations(range(len(parts)), 2):
            found = float(p[parts[i], parts[j]].abs().max())
            if found:
                raise Broken(f"{subject.where}, layers {i} and {j}", "P = 0 there", f"{found:.3g}")


@law(
    SLOT,
    "Where nothing may be linked, P is each block's own damped inverse.",
    needs=(*DENSE, "apart_without_links"),
    applies=_keeps,
)
def single_layers_alone(case: Case) -> None:
    for shapes in (WIDE[:1], WIDE):
        chains = tuple((n,) for n in range(len(shapes)))
        subject = made(f"{len(shapes)} layers, none linked", shapes, chains, 60, seed=900)
        wanted = torch.block_diag(*[_own(subject, n).dense() for n in range(len(shapes))])
        got = matrix_of(inverse_of(case.component, subject), subject["shapes"])
        near(subject.where, "the blocks' own inverses", wanted.double(), got)


@law(
    SLOT,
    "P⁻¹ has the blocks' own damped curvature on its diagonal.",
    needs=(*DENSE, "single_layers_alone"),
    applies=_keeps,
)
def diagonal_blocks_kept(case: Case) -> None:
    for subject in subjects(case):
        f = torch.linalg.inv(matrix_in(case, subject))
        for n, part in enumerate(_parts(subject)):
            wanted = torch.linalg.inv(_own(subject, n).dense().double())
            near(f"{subject.where}, layer {n}", "its block", wanted, f[part, part], 1e-6)


def _links(case: Case) -> str | None:
    without = not case.component.pairs(((0, 1, 2, 3),))
    return _keeps(case) or ("it asks for no pairs" if without else None)


@law(
    SLOT,
    "At a link of two products of factors P⁻¹ has the product of the cross moments.",
    needs=(*DENSE, "pairs_adjacent", "diagonal_blocks_kept"),
    applies=_links,
)
def links_kept(case: Case) -> None:
    for subject in subjects(case):
        f = torch.linalg.inv(matrix_in(case, subject))
        parts = _parts(subject)
        table = table_of(case.component, subject)
        for (i, j), (a, g) in zip(table.links, table.crosses, strict=True):
            if _own(subject, i).factors() is None or _own(subject, j).factors() is None:
                continue
            wanted = torch.kron(a.contiguous(), g.contiguous())
            told = "Ā ⊗ G of the cross moments"
            near(f"{subject.where}, link {i}-{j}", told, wanted, f[parts[i], parts[j]], 1e-6)


@law(SLOT, "factorise and damped keep no reference into the moments.", needs=CHEAP)
def keeps_no_moments(case: Case) -> None:
    for subject in subjects(case):
        given = subject.fresh()
        found, part_states = factored(case.component, given)
        inverse = case.component.damped(found, part_states, given["strength"], None)

        def applied(inverse: Any = inverse, found: Any = found, part_states: Any = part_states,
                    given: Subject = given) -> tuple[Vec, Vec]:  # fmt: skip
            anew = case.component.damped(found, part_states, given["other"], None)
            return inverse.apply(given["vector"]), anew.apply(given["vector"])

        before = applied()
        for moments in given["moments"]:
            for tensor in moments.values():
                tensor.fill_(7.0)
        for a, g in given["crosses"].values():
            a.fill_(7.0)
            g.fill_(7.0)
        where = f"{subject.where}, after the moments changed"
        same_to_the_bit(where, "P as before", before, applied())


@dataclass(frozen=True)
class Counting(Diagonal):
    """Counts its factorisations in the part_state, and notes which part_states it is given."""

    seen: list[tuple[str, Any]] = field(default_factory=list, compare=False)

    def factorise(self, moments: Any, part_state: Any) -> tuple[Any, Any]:
        """One more."""
        self.seen.append(("factorise", dict(part_state)))
        found, _ = super().factorise(moments, part_state)
        return found, {**part_state, "count": part_state.get("count", 0) + 1}

    def damped(
        self, factored: Any, part_state: Any, strength: DampingStrength, previous: Any
    ) -> Any:
        """As ever."""
        self.seen.append(("damped", dict(part_state)))
        return super().damped(factored, part_state, strength, previous)


@law(
    SLOT,
    "Each block gets its own state, at factorise and at damped, and the state that its factorise "
    "makes is given back.",
    needs=CHEAP,
)
def states_handed_on(case: Case) -> None:
    plain = made("a chain of four blocks with part_states", WIDE, ((0, 1, 2, 3),), 60, seed=950)
    blocks = tuple(Counting() for _ in WIDE)
    part_states = tuple({"name": f"layer {n}", "count": 10 * n} for n in range(len(WIDE)))
    subject = Subject(plain.where, {**plain.values, "blocks": blocks, "part_states": part_states})
    found, after = factored(case.component, subject)
    case.component.damped(found, after, subject["strength"], None)
    told = [dict(part_state) for part_state in after]
    wanted = [{**part_state, "count": 10 * n + 1} for n, part_state in enumerate(part_states)]
    if told != wanted:
        raise Broken(subject.where, f"the part_states {wanted} after factorise", f"{told}")
    for n, block in enumerate(blocks):
        given = {"factorise": part_states[n], "damped": wanted[n]}
        for method, part_state in block.seen:
            if part_state != given[method]:
                where = f"{subject.where}, {method} of layer {n}"
                raise Broken(where, f"the part_state {given[method]}", f"{part_state}")


memos_handed_on = states_handed_on  # its former name


_joins = exempt_unless(
    lambda structure: traits(structure, StructureTraits).joined is not None, "it has no joined"
)


@law(
    SLOT,
    "Layers that are factorised and damped one by one, then joined, give what they give at once.",
    needs=(*CHEAP, "states_handed_on"),
    applies=_joins,
)
def joined_is_whole(case: Case) -> None:
    structure = case.component
    for subject in subjects(case):
        table, shapes, states = (
            table_of(structure, subject), subject["shapes"], subject["part_states"],
        )  # fmt: skip
        pieces = []
        for n, shape in enumerate(shapes):
            layer, own = (LayerShape(f"layer {n}", *shape),), GivenTable((table[n],), (), ())
            blocks = (subject["blocks"][n],)
            made, after = structure.factorise(layer, blocks, own, (states[n],))
            inverse = structure.damped(made, after, subject["strength"], None)
            pieces.append((made, tuple(after), inverse))
        whole = inverse_of(structure, subject).apply(subject["vector"])
        joined = structure.joined([inverse for _, _, inverse in pieces])
        where = f"{subject.where}, joined by layer"
        same_to_the_bit(where, "P of all layers at once", whole, joined.apply(subject["vector"]))
        factors = structure.joined([made for made, _, _ in pieces])
        after = tuple(state for _, own, _ in pieces for state in own)
        anew = structure.damped(factors, after, subject["other"], None).apply(subject["vector"])
        wanted = inverse_of(structure, subject, subject["other"]).apply(subject["vector"])
        same_to_the_bit(f"{where}, then damped", "P of all layers at once", wanted, anew)


def _earlier(subject: Subject) -> Subject:
    """The same layers before they have learnt: all second moments smaller."""
    moments = tuple({name: t / 4 for name, t in each.items()} for each in subject["moments"])
    crosses = {link: (a / 4, g / 4) for link, (a, g) in subject["crosses"].items()}
    return Subject(subject.where, {**subject.values, "moments": moments, "crosses": crosses})


@dataclass(frozen=True)
class ForeignPreconditioner:
    """A preconditioner of nobody's kind, as a swap of structures leaves it in use."""

    def apply(self, vector: Vec) -> Vec:
        """The vector."""
        return vector


@law(SLOT, "damped gives the same P, whatever was in use before.", needs=(*CHEAP, "linear"))
def previous_is_a_hint(case: Case) -> None:
    everything = subjects(case)
    for n, subject in enumerate(everything):
        found, part_states = factored(case.component, subject)
        at, v = subject["other"], subject["vector"]
        cold = flat(case.component.damped(found, part_states, at, None).apply(v))
        others = {
            "P of another γ": inverse_of(case.component, subject),
            "P of earlier moments": inverse_of(case.component, _earlier(subject), at),
            "P of another network": inverse_of(case.component, everything[n - 1]),
            "another structure's P": ForeignPreconditioner(),
        }
        for what, previous in others.items():
            where = f"{subject.where}, {what} in use"
            with hidden(where):
                warm = case.component.damped(found, part_states, at, previous).apply(v)
            near(where, "the result without one", cold, flat(warm), 1e-6)


@law(SLOT, "The factorisation and P are saved without pickle, and give the same.", needs=CHEAP)
def saved(case: Case) -> None:
    for subject in subjects(case):
        found, part_states = factored(case.component, subject)
        inverse = case.component.damped(found, part_states, subject["strength"], None)
        with hidden(f"{subject.where}, saved"):
            back = reread(
                {"factored": found, "part_states": tuple(part_states), "inverse": inverse}
            )
            again = case.component.damped(
                back["factored"], back["part_states"], subject["other"], None
            )
        v, told = subject["vector"], "the same P from what was saved"
        wanted = case.component.damped(found, part_states, subject["other"], None)
        same_to_the_bit(subject.where, told, inverse.apply(v), back["inverse"].apply(v))
        same_to_the_bit(subject.where, told, wanted.apply(v), again.apply(v))


Stranger = ForeignPreconditioner  # its former name
