"""Engine: a network, a recipe's parts and a State, and what can be done with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import checkpoint, linalg
from kfac_lab.core.accelerators import accelerator
from kfac_lab.core.capture import CoverageRow, Network
from kfac_lab.core.clock import Clock
from kfac_lab.core.moments import MomentLayout
from kfac_lab.core.passes import Passes, Unseen, WatchedPasses
from kfac_lab.core.precision import Precision
from kfac_lab.core.problem import Drawn, Problem
from kfac_lab.core.state import GATED, Bound, DampingStrength, Signals, State, StepRecord
from kfac_lab.core.vector import Vec
from kfac_lab.core.watch import ModelWatch
from kfac_lab.engine import boundary, opening, rebind, step, swap
from kfac_lab.engine.coverage import coverage_of
from kfac_lab.engine.held import Held, Holder
from kfac_lab.engine.parts import Parts, number, parts_of, strength_of
from kfac_lab.engine.programs import Programs, wanted
from kfac_lab.errors import CheckpointError, RecipeError

__all__ = ["Engine", "Held", "attach"]


def attach(problem: Problem, recipe: Any, seed: int, **options: Any) -> Engine:
    """A K-FAC stepper for ``problem``: claims its layers and checks the recipe against it.

    ``recipe`` gives a component per slot (``recipe["damping"]``), a block per layer
    (``recipe.block_for(path, module)``), and claims layers (``recipe.claim(module, path)``).

    Raises:
        CoverageError: parameters without a layer and without a fallback.
        RecipeError: the recipe cannot work on this problem.
    """
    return Engine(problem, recipe, seed, **options)


class Engine(Holder):
    """See :func:`attach`. ``step`` makes one step, ``state`` and ``load`` save and restore it."""

    def __init__(
        self,
        problem: Problem,
        recipe: Any,
        seed: int,
        *,
        lr: float = 1.0,
        chunk: int = 5000,
        tf32: bool = False,
        leave: Sequence[str] = (),
        unseen: Sequence[str] = (),
        graphs: bool | str = "auto",
        precision: Precision | str | None = None,
    ) -> None:
        self.precision = Precision.of(precision)
        self.problem, self.tf32, self._chunk = problem, bool(tf32), chunk
        self.graphs = graphs
        self.leave = tuple(leave)
        self.unseen = tuple(unseen)  # layers whose rows do not see every use of them
        self._former: rebind.Former | None = None  # of before a rebind
        self._open(recipe, int(seed), float(lr))
        if problem.inputs is not None and problem.targets is not None:
            self.bind(problem.inputs, problem.targets)

    def _open(self, recipe: Any, seed: int, lr: float) -> None:
        """The network's layers, and the state before the first step."""
        problem, fallback = self.problem, recipe.fallback is not None
        self.network = Network.of(problem.model, recipe.claim, fallback, self.leave, self.unseen)
        self._watch = ModelWatch(problem.model)
        self.passes = Passes(
            self.network,
            problem.likelihood,
            problem.l2,
            lambda: self.held.place,
            self._chunk,
            problem.outputs,
            seen=problem.inputs is not None,
        )
        self.warnings = boundary.Warnings()
        parts = self.check(recipe)
        theta = self._theta
        self.device = theta[0].device
        self.precision.check(self.device, self.network.dtype)
        self.passes.precision = self.precision
        # Where a read costs nothing a step looks at its flag itself; elsewhere the flag gates the
        # commit and is looked at with the next read.
        self._reads_are_free = self.device.type == "cpu"
        self.programs = Programs(wanted(self.graphs, self.device), self.device)
        if parts.processes > 1:  # every process starts where the first one does
            buffers = problem.model.buffers()
            parts["collective"].broadcast_([*theta, *(b.detach() for b in buffers)], 0)
        there = accelerator(self.device)
        self.side = None if there is None else there.side(self.device)  # for spread refreshes
        self.held = Held(parts, opening.first_state(parts, problem, theta), seed, lr)

    def completed(self, state: State) -> State:
        """A state of old as one of today: what it lacks begins, and its numbers are tensors."""
        fresh = opening.first_state(self.parts, self.problem, self._theta)
        part_states = {**fresh.part_states, **state.part_states}
        for slot, memory in part_states.items():  # a part may remember more by now
            begins = fresh.part_states.get(slot)
            if isinstance(memory, dict) and isinstance(begins, Mapping):
                lacking = {key: begins[key] for key in begins if key not in memory}
                part_states[slot] = {**memory, **lacking}
        numbers: dict[str, Any] = {
            name: number(value, self.device)
            for name in GATED
            if isinstance(value := getattr(state, name), (int, float))
        }
        return replace(state, part_states=part_states, **numbers)

    @property
    def _theta(self) -> list[Tensor]:
        return [t.detach() for t in self.network.tensors]

    def _strength(self, strength: DampingStrength) -> DampingStrength:
        return strength_of(strength, self.problem.l2, self.device)

    @property
    def _looks(self) -> bool:
        """Whether a step may look at its own flags at no cost, and goes by them in Python."""
        return self._reads_are_free and not self.programs.on

    # --- before the first step, and between two -------------------------------------------------

    def check(self, recipe: Any) -> Parts:
        """The parts of a recipe for this problem; nothing changes.

        Raises:
            RecipeError: the recipe cannot work on this problem.
        """
        return parts_of(recipe, self.problem, self.network, self.passes)

    def bind(self, inputs: Tensor, targets: Tensor) -> None:
        """Finds firing order, chains and the tangent path on some cases; opens the store.

        Layers whose rows do not see every use of them go to the fallback, where there is one.
        """
        bound = None
        while bound is None:  # those that are never called are told before the others
            try:
                bound = self.passes.probe(inputs, targets, self.parts.needs_tangents)
            except Unseen as unseen:
                further = tuple(path for path in unseen.paths if path not in self.unseen)
                if self.recipe.fallback is None or self.held.layout is not None or not further:
                    raise
                rebind.rebound(self, (*self.unseen, *further))
        bound = bound._replace(unseen=self.unseen)
        layout, state = self.held.layout, replace(self.held.state, bound=bound)
        if layout is None:
            layout = self.layout_of(self.parts, bound)
            store = layout.opened()
            if self._former is not None:
                store = rebind.inherited(layout, self.network, self._former)
            state = replace(state, moments=store.current, ages=store.ages)
        self.held = replace(self.held, layout=layout, state=state)

    def unchanged(self) -> None:
        """The model is the one that was taken: parameters, their types, what is trained, modules.

        Raises:
            RecipeError: it is not; nothing has changed.
        """
        change = self._watch.change()
        if change is not None:
            raise RecipeError(
                f"{change} since the model was taken: rebind() of the KFAC or Preconditioner goes "
                "on with the model as it is, and keeps the moments of what stayed"
            )

    def rebind(self) -> None:
        """Takes the model as it is now; see ``engine.rebind``.

        Raises:
            CoverageError, RecipeError: it cannot be taken; nothing has changed then.
        """
        rebind.rebound(self, self.unseen)

    def lacks_tangents(self, parts: Parts) -> bool:
        """Whether a model that needs products J·v has no path for them yet."""
        return self.passes.tangent_path == "unknown" and parts.needs_tangents

    def layout_of(self, parts: Parts, bound: Bound) -> MomentLayout:
        """Memory for the moments that the blocks and the structure of ``parts`` want."""
        wants = [tuple(b.wants()) for b in parts.blocks]
        links = [
            (i, j)
            for i, j in parts["structure"].pairs(bound.chains)
            if {"A", "G"} <= set(wants[i]) and {"A", "G"} <= set(wants[j])
        ]
        like = torch.empty((), dtype=self.network.dtype, device=self.device)
        return MomentLayout(self.network.layers, wants, links, like)

    def swap(self, recipe: Any, named: Mapping[str, set[str]]) -> None:
        """Takes the parts of ``recipe`` from the next step on; see ``engine.swap``.

        Raises:
            RecipeError: the new recipe cannot work on this problem; nothing has changed then.
        """
        self.read([])  # counts begin anew, where steps nobody has looked at do not count
        self.held = swap.swapped(self, recipe, named)

    def read(self, tensors: Sequence[Tensor]) -> list[float]:
        """One host read of 0-dim tensors; steps that were skipped come to light with it.

        Nothing is raised here, so that whoever looks (a save, a fork, a step that refreshes) gets
        what it asked for: the next step tells of them before it does anything.
        """
        seen = boundary.examined(self.state_, tensors)
        if seen.state is not self.state_:
            skipped = (*self.held.skipped, *seen.skipped)
            self.held = replace(self.held, state=seen.state, skipped=skipped)
        for k in seen.exploded:
            self.warnings.unguarded(k)
        return seen.values

    def tell(self, loop: bool = False) -> None:
        """Raises for the steps that were skipped, once; ``loop``: of a loop of somebody's own.

        Raises:
            NumericalError: there are some; its ``skipped`` has them, and the engine goes on from
                here as if they had not been.
        """
        skipped = self.held.skipped
        if skipped:
            self.held = replace(self.held, skipped=())
            raise boundary.skipped_error(skipped, loop)

    # --- the step -------------------------------------------------------------------------------

    def step(self) -> StepRecord:
        """One step on a batch drawn by the recipe's ``batch``."""
        self.unchanged()
        self.tell()
        k = self.state_.step + 1
        size = self.parts["batch"].size(k, self.problem.available)
        clock = Clock()
        with clock("sample"):
            drawn = self.passes.share(
                self.problem.draw(k, size, self.seed, self.passes.function.whole)
            )
        return self.step_on(drawn, clock)

    def step_on(self, drawn: Drawn, clock: Clock | None = None) -> StepRecord:
        """One step on a given batch.

        Raises:
            NumericalError: something was not finite, or no inverse could be built, or on an
                accelerator was not finite in a step before; the step has not happened.
        """
        self.tell()
        with linalg.precision(self.tf32):
            return step.whole(self, drawn, clock or Clock())

    @property
    def observes_next(self) -> bool:
        """Whether the next step will ask for statistics."""
        state = self.state_
        due, _ = self.parts["schedule"].due(
            state.step + 1, state.part_states["schedule"], Signals()
        )
        return bool(due.stats)

    def skip(self, batch: int) -> None:
        """Goes on to the next k without a step: of a batch of so many cases that is left out."""
        state = replace(self.state_, step=self.state_.step + 1)
        record = StepRecord(step=state.step, seconds=state.seconds, batch=batch, skipped=1.0)
        self.held = replace(self.held, state=state, record=record)

    def precondition(
        self, gradient: Vec, drawn: Drawn | None, seen: WatchedPasses | None = None
    ) -> tuple[Vec, StepRecord]:
        """P∇h for a gradient that somebody else computed; θ and the buffers stay as they are.

        Observes and inverts as a step does, where due, and counts as one. ``drawn`` may be None
        where no statistics are due; of its targets only an estimator that uses labels takes notice.
        ``seen`` are rows of S1 that the caller's own passes have given: then there is none of ours.

        Raises:
            RecipeError: statistics are due and there is no batch.
            NumericalError: as for :meth:`step_on`.
        """
        self.tell(loop=True)
        with linalg.precision(self.tf32):
            return step.preconditioned(self, gradient, drawn, seen, Clock())

    # --- saving ---------------------------------------------------------------------------------

    def state(self, *, parameters: bool = True) -> dict[str, Any]:
        """Everything needed to go on bit for bit: θ, buffers, moments, inverses, states, counts.

        Without ``parameters`` θ and the buffers are left out, for whoever keeps them elsewhere.
        """
        if self._former is not None and self.store is None:
            raise CheckpointError(
                "after rebind() the moments wait for the first batch: make a step before saving"
            )
        self.read([])
        if self.side is not None:
            self.side.wait()
        return checkpoint.saved(self, parameters=parameters)

    def load(self, state: dict[str, Any], *, parameters: bool = True) -> None:
        """Restores what :meth:`state` gave, for the same problem and recipe.

        Raises:
            CheckpointError: the state belongs to another network or another format, or is damaged;
                nothing has changed then.
        """
        checkpoint.restore(self, state, parameters=parameters)

    # --- reading --------------------------------------------------------------------------------

    @property
    def programs_told(self) -> str | None:
        """A line on what is replayed and what is not; None where nothing is recorded."""
        return self.programs.told() if self.programs.on else None

    def coverage(self) -> list[CoverageRow]:
        """One row per parameter: layer, block, who claimed it, chain, tangent path."""
        return coverage_of(self.network, self.passes, self.parts)

    def average(self) -> Sequence[Tensor] | None:
        """θ̄, in the order of ``network.names``; None where there is none."""
        read: Sequence[Tensor] | None = self.parts["average"].read(
            self.state_.part_states["average"]
        )
        return read

    @property
    def names(self) -> tuple[str, ...]:
        """The trained parameters' names, in the order of ``average``."""
        return self.network.names
