"""Random sequences of swaps over all slots.

One sequence is a pure function of its seed: which network, how many steps, before which steps which
slots are swapped for what. It is played once and watched; then it is gone back in, saved, loaded,
cut short by failing steps, and must come out the same to the last bit.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch

import kfac_lab as kl
from invariants.grid import PARTS
from invariants.helpers import Unmultiplied, numbers, run_of, same, state_of
from kfac_lab.engine import commit
from kfac_lab.run import snapshots

#: besides every part of the grid: texts that name λ or γ, and the slots that the grid leaves out
TEXTS: dict[str, list[Any]] = {
    **PARTS,
    "damping": [*PARTS["damping"], "levenberg_marquardt(lam=2.0)", "constant(lam=0.5, gamma=0.7)"],
    "collective": ["single_process"],
}
REFUSED = (
    {"quadratic_model": "approximate_fisher", "block": Unmultiplied()},  # by the engine
    {"damping": "tied(lam=-1.0)"},
    {"momentum": "rescaled", "schedule": "periodic(T2=7, T3=5)"},
)


# --- a sequence, and what is seen while it is played --------------------------------------------


class Sequence(NamedTuple):
    """``swaps[k]`` are carried out, in order, between the steps k and k+1."""

    seed: int
    kind: str
    steps: int
    swaps: dict[int, list[dict[str, Any]]]
    back: int  # the step to go back to
    thin: bool  # whether only the first and the last snapshot are kept


def sequence(seed: int) -> Sequence:
    """The sequence of a seed."""
    chance = random.Random(seed)
    kind = chance.choice(["explicit", "explicit", "generic"])
    steps = chance.randint(5, 10)
    texts = TEXTS
    if kind == "generic":
        texts = {**TEXTS, "fallback": ["identity", "diagonal"]}
    swaps: dict[int, list[dict[str, Any]]] = {}
    for _ in range(chance.randint(2, 6)):
        slots = chance.sample(sorted(texts), chance.choice([1, 1, 2, 3]))
        parts = {slot: chance.choice(texts[slot]) for slot in slots}
        swaps.setdefault(chance.randrange(steps), []).append(parts)
    return Sequence(seed, kind, steps, swaps, chance.randint(0, steps), chance.random() < 0.5)


@dataclass
class Seen:
    """A run while a sequence is played on it: everything that persists, after each step."""

    images: dict[int, Any] = field(default_factory=dict)
    marks: list[tuple[int, dict[str, str], dict[str, str]]] = field(default_factory=list)


def image(run: kl.Run) -> dict[str, Any]:
    """All that persists but for the clock."""
    return {
        "stepper": state_of(run.stepper, time=False),
        "model": {k: v.clone() for k, v in run.problem.model.state_dict().items()},
        "numbers": numbers(run),
        "recipe": run.recipe.text(complete=True),
        "marks": [(m.step, dict(m.parts), dict(m.before), m.note) for m in run.history.marks],
    }


def start(what: Sequence) -> kl.Run:
    """A run before the first step of the sequence."""
    return run_of(what.kind, seed=what.seed)


def play(run: kl.Run, what: Sequence, seen: Seen | None = None, *, done: bool = False) -> Seen:
    """Goes on from the step where the run is; ``done``: the swaps at that step are in it already.

    With ``seen`` the run is looked at after every step and around every swap.
    """
    first, watched = run.step, seen is not None
    seen = seen or Seen()
    for k in range(first, what.steps + 1):
        for parts in what.swaps.get(k, ()) if k > first or not done else ():
            before, strength = kept(run), run.stepper.state_.strength
            texts = {slot: run.recipe.text_of(slot) for slot in parts}
            run.swap(**parts)
            if watched:
                same(kept(run, before), before)
                if "damping" not in parts:
                    same(run.stepper.state_.strength, strength)
                written = {slot: run.recipe.text_of(slot) for slot in parts}
                seen.marks.append((k, written, texts))
        if watched:
            seen.images[k] = image(run)
        if k < what.steps:
            run.step_once()
            if watched:
                sound(run)
    return seen


def kept(run: kl.Run, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """What no swap changes: k, θ, δ0, the batch norms' buffers, and the moments kept on."""
    engine = run.stepper
    moments = dict(engine.store.current) if engine.store is not None else {}
    if before is not None:  # others may come, and those that nobody wants any more may go
        moments = {k: moments.get(k, v) for k, v in before["moments"].items()}
    previous = engine.state_.previous
    return {
        "k": run.step,
        "records": len(run.history),
        "model": {k: v.clone() for k, v in run.problem.model.state_dict().items()},
        "δ0": None if previous is None else [m.clone() for m in previous.matrices],
        "moments": {k: v.clone() for k, v in moments.items()},
    }


def sound(run: kl.Run) -> None:
    """The step that was just made is whole: every number there is one, δ and θ are finite."""
    record = run.history.records[-1]
    assert record.step == run.step == len(run.history)
    for name in ("loss", "error", "alpha", "lam", "gamma", "predicted", "norm_squared", "slope"):
        assert math.isfinite(getattr(record, name)), (name, record)
    assert math.isfinite(record.rho) == record.due.lam or not run.stepper.parts.needs_rho
    delta = run.stepper.state_.previous
    assert delta is not None and all(bool(torch.isfinite(m).all()) for m in delta.matrices)
    assert all(bool(torch.isfinite(t).all()) for t in run.problem.model.state_dict().values())


# --- what every sequence is put through ---------------------------------------------------------


def through(what: Sequence) -> None:
    """Plays a sequence, watches it, goes back in it, fails in it, and compares to the last bit."""
    with pytest.MonkeyPatch.context() as patch:
        if what.thin:  # so that going back has swaps to replay
            patch.setattr(snapshots, "SNAPSHOT_BUDGET", 1)
        run = start(what)
        seen = play(run, what, Seen())
        assert [(m.step, dict(m.parts), dict(m.before)) for m in run.history.marks] == seen.marks
        assert run.step == what.steps
        refused(run, seen.images[what.steps])
        run.rewind(what.back)
        same(image(run), seen.images[what.back])
        with failing(run, what.seed, patch):
            play(run, what, done=True)
        same(image(run), seen.images[what.steps])


def refused(run: kl.Run, before: Any) -> None:
    """What cannot be is refused, and changes nothing."""
    for parts in REFUSED:
        with pytest.raises(kl.RecipeError):
            run.swap(**parts)
    same(image(run), before)


class Cut(Exception):
    """A step is cut short."""


class failing:
    """Every other step inside fails once, when all of it is done but for the commit."""

    def __init__(self, run: kl.Run, seed: int, patch: pytest.MonkeyPatch) -> None:
        self.run, self.patch = run, patch
        self.chance = random.Random(seed)

    def __enter__(self) -> None:
        settle, once, chance = commit.settled, self.run.step_once, self.chance
        cut = [False]

        def settled(*args: Any) -> Any:
            if cut[0]:
                cut[0] = False
                raise Cut
            return settle(*args)

        def step_once() -> Any:
            if chance.random() < 0.5:
                cut[0] = True
                with pytest.raises(Cut):
                    once()
            return once()

        self.patch.setattr(commit, "settled", settled)
        self.patch.setattr(self.run, "step_once", step_once)

    def __exit__(self, *_: Any) -> None:
        self.patch.undo()
