"""Structures that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from broken.common import Remembers, named, restless
from broken.half import after, but, common_half, refused
from broken.wrapping import unforwarding
from kfac_lab.core.state import DampingStrength
from kfac_lab.core.vector import Vec
from kfac_lab.paper.block_tridiagonal import BlockTridiagonal

__all__ = ["BROKEN", "Inverse", "Sound"]


@dataclass(frozen=True)
class Inverse:
    """The blocks' inverses side by side."""

    inverses: tuple[Any, ...]
    scale: float = 1.0
    more: Any = None

    def apply(self, vector: Vec) -> Vec:
        """Each layer for itself."""
        parts = [p.apply(v) for p, v in zip(self.inverses, vector, strict=True)]
        return Vec(parts).scaled(self.scale)


@dataclass(frozen=True)
class Sound:
    """Every layer for itself."""

    def pairs(self, chains: Sequence[Sequence[int]]) -> Sequence[tuple[int, int]]:
        """None."""
        return ()

    def factorise(
        self, layers: Sequence[Any], blocks: Sequence[Any], moments: Any, part_states: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        """Each block's own."""
        done = [b.factorise(moments[i], part_states[i]) for i, b in enumerate(blocks)]
        return (tuple(blocks), tuple(f for f, _ in done)), tuple(
            part_state for _, part_state in done
        )

    def damped(
        self, factored: Any, part_states: Sequence[Any], strength: DampingStrength, previous: Any
    ) -> Any:
        """Each block's own."""
        parts = zip(*factored, part_states, strict=True)
        inverses = tuple(
            block.damped(f, part_state, strength, None) for block, f, part_state in parts
        )
        return self.changed(Inverse(inverses), previous)

    def changed(self, inverse: Inverse, previous: Any) -> Any:
        """Where most of the broken ones differ."""
        return inverse


def _changing(change: Callable[[Inverse, Any], Any]) -> type:
    """Another inverse: of the sound one and the previous."""
    return but(Sound, changed=lambda self, answer, *given: change(*given))


def _applying(change: Callable[[Vec, Vec], Vec]) -> Callable[[], Any]:
    """A structure whose P differs: from what a sound one gives, and the vector."""

    def apply(self: Inverse, vector: Vec) -> Vec:
        return change(Inverse.apply(self, vector), vector)

    kind = named(__name__, Inverse, apply=apply)
    return _changing(lambda inverse, previous: kind(**vars(inverse)))


def _first(found: Vec, matrix: Tensor) -> Vec:
    """The vector with another first matrix."""
    return Vec([matrix, *list(found)[1:]])


@dataclass(frozen=True)
class _Forgets(Remembers, Sound):
    def changed(self, inverse: Inverse, previous: Any) -> Any:
        if len(inverse.inverses) != 3:
            return inverse
        self.kept.append(1)
        return replace(inverse, scale=1 + len(self.kept) / 100)


def _negative(found: Vec, vector: Vec) -> Vec:
    first = torch.zeros_like(vector[0])
    first[0, 0] = 1
    return _first(found, found[0] - 100 * first * vector[0])


def _coupled(found: Vec, vector: Vec) -> Vec:
    if len(found) == 1:
        return found
    a, b, *others = found
    first, second = torch.zeros_like(a), torch.zeros_like(b)
    first[0, 0] = vector[1][0, 0] / 1000
    second[0, 0] = vector[0][0, 0] / 1000
    return Vec([a + first, b + second, *others])


class _Scaled(Sound):
    """Where there are links, all is scaled."""

    def pairs(self, chains: Sequence[Sequence[int]]) -> Sequence[tuple[int, int]]:
        return tuple(pair for chain in chains for pair in itertools.pairwise(chain))

    def factorise(
        self, layers: Sequence[Any], blocks: Sequence[Any], moments: Any, part_states: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        found, part_states = super().factorise(layers, blocks, moments, part_states)
        return (found, 1.1 if moments.links else 1.0), part_states

    def damped(
        self, factored: Any, part_states: Sequence[Any], strength: DampingStrength, previous: Any
    ) -> Any:
        inverse = super().damped(factored[0], part_states, strength, previous)
        return replace(inverse, scale=factored[1])


class _Unlinked(BlockTridiagonal):
    """Asks for cross moments and makes nothing of them."""

    def factorise(
        self, layers: Sequence[Any], blocks: Sequence[Any], moments: Any, part_states: Sequence[Any]
    ) -> Any:
        found, after = super().factorise(layers, blocks, moments, part_states)
        cross = tuple((torch.zeros_like(a), torch.zeros_like(g)) for a, g in found.cross)
        return replace(found, cross=cross), after


class _Late(Sound):
    """Factorises again when it damps, from the moments as they are then."""

    def factorise(
        self, layers: Sequence[Any], blocks: Sequence[Any], moments: Any, part_states: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        _, after = super().factorise(layers, blocks, moments, part_states)
        kept = tuple(dict(moments[i]) for i in range(len(blocks)))
        return (tuple(blocks), kept, tuple(part_states)), after

    def damped(
        self, factored: Any, part_states: Sequence[Any], strength: DampingStrength, previous: Any
    ) -> Any:
        blocks, moments, before = factored
        done = [
            b.factorise(m, part_state)[0]
            for b, m, part_state in zip(blocks, moments, before, strict=True)
        ]
        return super().damped((blocks, tuple(done)), part_states, strength, previous)


class _JoinsScaled(Sound):
    """What it joins is a little larger."""

    def joined(self, values: Sequence[Any]) -> Any:
        if isinstance(values[0], Inverse):
            return Inverse(tuple(i for value in values for i in value.inverses), 1.01)
        blocks, factors = zip(*values, strict=True)
        return tuple(b for own in blocks for b in own), tuple(f for own in factors for f in own)


def _leans(inverse: Inverse, previous: Any) -> Inverse:
    alike = isinstance(previous, Inverse) and len(previous.inverses) == len(inverse.inverses)
    return replace(inverse, scale=1.01) if alike else inverse


def _unsaved(inverse: Inverse, previous: Any) -> Inverse:
    return replace(inverse, more=object()) if len(inverse.inverses) == 4 else inverse


def _restless() -> Any:
    more = restless(lambda found: found.scaled(1.0))
    return _applying(lambda found, v: more(found))()


BROKEN: dict[str, Callable[[], Any]] = {
    **common_half(Sound, "changed", lambda inverse, factor: replace(inverse, scale=factor)),
    "inputs_not_written": but(
        Sound, factorise=after(lambda found, *given: (found, given[2][0]["A"].mul_(0.5))[0])
    ),
    "dtype_follows": _applying(lambda found, v: Vec([m.double() for m in found])),
    "forwards_traits": unforwarding("structure", "block_diagonal"),
    "trains": but(Sound, changed=refused(lambda inverse, _: len(inverse.inverses) == 3)),
    "resumes": _Forgets,
    "replays": _restless,
    "pairs_adjacent": but(
        Sound, pairs=after(lambda _, chains: tuple((c[0], c[3]) for c in chains if len(c) > 3))
    ),
    "linear": _applying(lambda found, v: _first(found, found[0] * (1 + v[0] * v[0] / 100))),
    "symmetric": _applying(lambda found, v: _first(found, found[0] + v[0].roll(1, 0) / 100)),
    "positive_definite": _applying(_negative),
    "apart_without_links": _applying(_coupled),
    "single_layers_alone": _applying(lambda found, v: found.scaled(1.1)),
    "diagonal_blocks_kept": _Scaled,
    "links_kept": _Unlinked,
    "keeps_no_moments": _Late,
    "states_handed_on": but(
        Sound, factorise=after(lambda found, *given: (found[0], tuple(given[-1])))
    ),
    "joined_is_whole": _JoinsScaled,
    "previous_is_a_hint": _changing(_leans),
    "saved": _changing(_unsaved),
}
