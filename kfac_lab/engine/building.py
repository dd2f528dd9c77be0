"""A refresh that is spread over steps: begun on the moments of one, in use some steps later.

Of a schedule that spreads over n steps (``spread_over``) the step at which new factors are due
copies its moments when it commits, and makes no refresh. The n − 1 steps after it go on with the
inverse in use and build a share each: a structure that says how layers are ``joined`` is built
layer by layer, any other in one piece, by the last of them. That one takes the new inverse into
use, as a refresh does: it reads whether all of it could be built, tries the several γ where they
were due, and makes it anew of the same moments, by the ladder, where it could not.

Shares are built between two steps, of nothing that a step changes; so a program knows nothing of
them, and what a step prepares is committed with its share or not at all. A refresh at once, forced
or because the schedule says so, drops the one under way; another that falls due meanwhile is left
out. On CUDA all shares are begun with the first, on a side stream, and the last waits for them.
"""

from __future__ import annotations

import contextlib
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kfac_lab.core import linalg, trees
from kfac_lab.core.clock import Clock
from kfac_lab.core.moments import Table
from kfac_lab.core.state import Build, Due, State
from kfac_lab.core.traits import PreconditionerTraits, traits
from kfac_lab.engine.parts import Parts

if TYPE_CHECKING:
    from kfac_lab.engine.engine import Engine

__all__ = ["AT_ONCE", "Ready", "SpreadRefresh", "after", "shares", "staggered_at"]


@dataclass(frozen=True)
class Ready:
    """A refresh that has been built, for the step that takes it into use.

    ``inverses`` are one for each of the γ that were due when it began; ``sound`` is 1 where all
    could be built, 0-dim.
    """

    factored: Any
    inverses: tuple[Any, ...]
    gammas: tuple[Any, ...]
    sound: Tensor
    moments: Any
    block_states: tuple[Any, ...]


class SpreadRefresh(NamedTuple):
    """What a step does of a refresh that is spread: of the one ``build`` is, after its share.

    ``begins``: over how many steps the refresh that begins with it is spread, 1 where none does;
    ``gamma``: whether γ is due with that one.
    """

    build: Build | None = None
    ready: Ready | None = None
    begins: int = 1
    gamma: bool = False


AT_ONCE = SpreadRefresh()


def staggered_at(engine: Engine, due: Due, k: int, clock: Clock) -> tuple[Due, SpreadRefresh]:
    """What step k does of a refresh that is spread over steps, its share built; and what is due of
    the step itself.
    """
    state, build = engine.state_, engine.state_.build
    if state.forced or state.inverse is None or state.factored is None:
        return due, AT_ONCE
    over = engine.parts.declares("schedule").spread_over
    steps = 1 if not due.factors or over is None else int(over(k))
    if due.factors and steps <= 1:
        return due, AT_ONCE
    later = due._replace(factors=False, inverse=False, gamma=False)
    if build is None:
        return (
            (later, SpreadRefresh(None, None, steps, due.gamma)) if due.factors else (due, AT_ONCE)
        )
    with clock("invert"):
        grown = _grown(engine, build, k)
    if grown is None:  # it cannot be spread
        return due._replace(factors=True, inverse=True, gamma=build.gamma), AT_ONCE
    if k < build.ends:
        return later if due.factors else due, SpreadRefresh(grown)
    own = due._replace(factors=True, inverse=True, gamma=build.gamma)
    return own, SpreadRefresh(None, _ready(engine, grown), steps, due.gamma)


def after(engine: Engine, staggered: SpreadRefresh, new: State) -> State:
    """The state after a step, with the refresh that is under way or that begins with it."""
    if staggered.begins <= 1:
        same = new.build is staggered.build
        return new if same else replace(new, build=staggered.build)
    flags = Due(factors=True, inverse=True, gamma=staggered.gamma)
    named = engine.parts["damping"].candidates(new.strength, flags)
    named = named if engine.parts.rho_counts else named[:1]
    build = Build(
        begun=new.step,
        ends=new.step + staggered.begins - 1,
        gamma=staggered.gamma,
        strengths=tuple(map(engine._strength, named)),
        moments={key: value.clone() for key, value in new.moments.items()},
        block_states=new.block_states,
    )
    return replace(new, build=build)


@lru_cache(maxsize=64)
def shares(costs: tuple[float, ...], count: int) -> list[int]:
    """How many of some pieces, in their order, are built by the end of each of ``count`` steps.

    The dearest of the steps is as cheap as can be; the last ones get what is left.
    """

    def ends(most: float) -> list[int]:
        found, sum_ = [], 0.0
        for n, cost in enumerate(costs):
            if sum_ and sum_ + cost > most:
                found.append(n)
                sum_ = 0.0
            sum_ += cost
        return [*found, len(costs)]

    sums = {sum(costs[a:b]) for a in range(len(costs)) for b in range(a + 1, len(costs) + 1)}
    found = next(e for most in sorted(sums) if len(e := ends(most)) <= count)
    return [*found, *[len(costs)] * (count - len(found))]


def _pieces(engine: Engine) -> list[tuple[int, ...]]:
    """The layers of each piece: one, or all of them where the structure does not say ``joined``."""
    every = range(len(engine.network.layers))
    apart = engine.parts.declares("structure").joined is not None
    return [(i,) for i in every] if apart else [tuple(every)]


def _grown(engine: Engine, build: Build, k: int) -> Build | None:
    """The build with the share of step k, or None where it cannot be spread."""
    pieces, tries = _pieces(engine), len(build.strengths)
    costs = [
        sum(_cost(engine.parts, engine.network.layers[i], i) for i in piece)
        for piece in pieces
        for _ in range(tries)
    ]
    count = build.ends - build.begun
    if len(pieces) == 1 or engine.side is not None:
        first = 1 if engine.side is not None else count  # in one piece it is the last step's
        upto = len(costs) if k - build.begun >= first else 0
    else:
        upto = shares(tuple(costs), count)[min(k - build.begun, count) - 1]
    if upto == len(build.inverses):
        return build
    with torch.no_grad(), contextlib.nullcontext() if engine.side is None else engine.side():
        for unit in range(len(build.inverses), upto):
            piece, own = pieces[unit // tries], unit % tries
            found = copy_context().run(_built, engine, build, piece, own)
            if found is None:
                return None
            build = found
    return build


def _built(engine: Engine, build: Build, piece: tuple[int, ...], own: int) -> Build | None:
    """The build with one more inverse: of a piece, by strength ``own``."""
    parts, state = engine.parts, engine.state_
    structure, attempt = parts["structure"], linalg.Attempt()
    states = tuple(build.block_states[i] for i in piece)
    factored = build.factored
    with attempt:
        if own == 0:
            assert engine.store is not None
            table = _Some(Table(build.moments, engine.store.links), piece)
            layers = tuple(engine.network.layers[i] for i in piece)
            blocks = tuple(parts.blocks[i] for i in piece)
            made, new = structure.factorise(layers, blocks, table, states)
            if not all(map(_same, new, states)):
                engine.warnings.say(
                    "spread",
                    f"{' and '.join(sorted({type(b).__name__ for b in blocks}))}: a block's memory "
                    "changes when it is factorised, so that its refresh cannot be spread over "
                    "steps and is made at once",
                    stacklevel=9,
                )
                return None
            factored = (*factored, made)
        before = _part_of(state.inverse, piece, len(parts.blocks))
        inverse = structure.damped(factored[-1], states, build.strengths[own], before)
    flags = attempt.flags()
    one = torch.ones((), dtype=torch.float64, device=engine.device)
    sound = torch.stack([one, *(flag.to(torch.float64) for flag in flags)]).min()
    return replace(
        build,
        factored=factored,
        inverses=(*build.inverses, inverse),
        sound=(*build.sound, sound),
    )


def _ready(engine: Engine, build: Build) -> Ready:
    """What a step is given of a build that is complete."""
    if engine.side is not None:
        engine.side.wait()
    tries = len(build.strengths)
    inverses = [build.inverses[own::tries] for own in range(tries)]
    joined = engine.parts.declares("structure").joined
    return Ready(
        build.factored[0] if joined is None else joined(build.factored),
        tuple(each[0] if joined is None else joined(each) for each in inverses),
        tuple(strength.gamma for strength in build.strengths),
        torch.stack(build.sound).min(),
        build.moments,
        build.block_states,
    )


class _Some:
    """The moments of some layers."""

    def __init__(self, table: Table, layers: tuple[int, ...]) -> None:
        self._table, self._layers = table, layers
        self.links = table.links if len(layers) > 1 else ()

    def __getitem__(self, layer: int) -> Any:
        return self._table[self._layers[layer]]

    def cross(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        """Of all layers: their numbers are the same then."""
        return self._table.cross(i, j)


@dataclass(frozen=True)
class _Part:
    """The inverses in use of some layers, for blocks that start from them."""

    inverses: tuple[Any, ...]


def _part_of(inverse: Any, piece: tuple[int, ...], count: int) -> Any:
    if len(piece) == count:
        return inverse
    known = traits(inverse, PreconditionerTraits).inverses
    if known is None or len(known) != count:
        return None
    return _Part(tuple(known[i] for i in piece))


def _cost(parts: Parts, layer: Any, i: int) -> float:
    """Operations of a layer's inverse, up to a factor: the cubes of its dense factors' sides."""
    wanted = set(parts.blocks[i].wants())
    sides = {"A": layer.d_in, "G": layer.d_out}
    return float(sum(s**3 for name, s in sides.items() if name in wanted) + sum(sides.values()))


def _same(new: Any, old: Any) -> bool:
    """Whether a block's memory is what it was."""
    if new is old:
        return True
    mine, theirs = dict(trees.leaves(new)), dict(trees.leaves(old))
    return mine.keys() == theirs.keys() and all(
        value is theirs[path] or (not isinstance(value, Tensor) and value == theirs[path])
        for path, value in mine.items()
    )
