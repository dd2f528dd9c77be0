"""Random sequences of swaps over all slots: nothing breaks, nothing is lost, all of it replays.

One sequence is a pure function of its seed: which network, how many steps, before which steps which
slots are swapped for what. It is played once and watched; then it is gone back in, saved, loaded,
cut short by failing steps, and must come out the same to the last bit.
"""

from __future__ import annotations

import math
import os
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import warm

import kfac_lab as kl
from invariants.grid import PARTS
from invariants.helpers import Unmultiplied, amend, numbers, problem_of, run_of, same, state_of
from kfac_lab.core.state import DampingStrength
from kfac_lab.engine import Engine, commit
from kfac_lab.paper import damping
from kfac_lab.run import rewinding, snapshots

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SEQUENCES, SOAK = 200, 2000
TESTS = Path(__file__).resolve().parents[1]
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

        def settled(engine: Engine, *args: Any) -> Any:
            if cut[0]:
                cut[0] = False
                raise Cut
            return settle(engine, *args)

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


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_a_random_sequence_of_swaps(seed: int) -> None:
    through(sequence(seed))


@pytest.mark.soak
@pytest.mark.parametrize("hundred", range(SEQUENCES // 100, SOAK // 100))
def test_many_more_of_them(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * (hundred + 1)):
        try:
            through(sequence(seed))
        except BaseException:
            print(f"sequence {seed}: {sequence(seed)}")
            raise


def test_the_sequences_go_through_every_slot_and_every_part() -> None:
    met = {
        (slot, str(value))
        for seed in range(SEQUENCES)
        for many in sequence(seed).swaps.values()
        for parts in many
        for slot, value in parts.items()
    }
    assert met >= {(slot, str(text)) for slot, texts in TEXTS.items() for text in texts}
    assert {("fallback", "identity"), ("fallback", "diagonal")} <= met
    assert {slot for slot, _ in met} == {*kl.Recipe.named("paper")} - {"method"} | {"fallback"}


# --- saved in the middle ------------------------------------------------------------------------


def middle(what: Sequence) -> int:
    """A step with swaps before it, where there is one."""
    return max((k for k in what.swaps if k < what.steps), default=what.steps // 2)


@pytest.mark.parametrize("seed", range(0, SEQUENCES, 8))
def test_a_run_saved_after_swaps_goes_on_bit_for_bit(seed: int, tmp_path: Path) -> None:
    what = sequence(seed)
    run = start(what)
    play(run, what._replace(steps=middle(what)))
    path = run.save(tmp_path / "run.pt")
    play(run, what, done=True)
    other = kl.Run.load(path, problem=problem_of(what.kind), device="cpu")
    play(other, what, done=True)
    same(image(other), image(run))


@pytest.mark.parametrize("seed", [3, 11])
def test_also_in_a_new_process(seed: int, tmp_path: Path) -> None:
    what = sequence(seed)
    run = start(what)
    play(run, what._replace(steps=middle(what)))
    path = run.save(tmp_path / "run.pt")
    play(run, what, done=True)
    code = f"from invariants.test_random_swaps import go_on; go_on({seed}, {str(path)!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    done = warm.run([sys.executable, "-W", "ignore", "-c", code], env=environment)
    assert done.returncode == 0, done.stderr
    there = torch.load(path.with_suffix(".end"), weights_only=True)
    same(there, plain(image(run)))


def go_on(seed: int, path: str) -> None:
    """Run by the new process: loads, plays the rest, and leaves what came of it."""
    torch.set_num_threads(1)
    what = sequence(seed)
    run = kl.Run.load(path, problem=problem_of(what.kind), device="cpu")
    play(run, what, done=True)
    torch.save(plain(image(run)), Path(path).with_suffix(".end"))


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """Without what only this process knows how to read back."""
    return {"stepper": found["stepper"], "model": found["model"], "recipe": found["recipe"]}


# --- would it be noticed? -----------------------------------------------------------------------


class Counting(damping.LevenbergMarquardt):
    """λ falls by the number of adaptations, which its state counts: in place, or as it must be."""

    in_place = True

    def init(self, problem: Any) -> Any:
        strength, _ = super().init(problem)
        return strength, {"count": torch.ones((), dtype=torch.float64)}

    def adapt(self, strength: DampingStrength, part_state: Any, record: Any) -> Any:
        count = part_state["count"].add_(1) if self.in_place else part_state["count"] + 1
        return strength._replace(lam=strength.lam / count), {"count": count}


class Careful(Counting):
    """The same without the mistake."""

    in_place = False


def swept(seeds: Iterable[int] = range(25)) -> None:
    for seed in seeds:
        through(sequence(seed))


@pytest.mark.parametrize("rule", [Counting, Careful])
def test_a_part_state_written_in_place_is_noticed(
    rule: type[Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    kl.lab.load()
    kl.lab.register("damping", "counting", rule)
    monkeypatch.setitem(TEXTS, "damping", ["counting"])
    try:
        if rule is Careful:
            swept(range(10))
        else:
            with pytest.raises(AssertionError, match="they differ"):
                swept()
    finally:
        kl.lab.registry.discard("notebook", "")


def _forgets_previous(engine: Engine, *args: Any) -> None:
    SWAP(engine, *args)
    amend(engine, previous=None)


def _forgets_moments(engine: Engine, *args: Any) -> None:
    SWAP(engine, *args)
    if engine.store is not None:
        for value in engine.store.current.values():
            value.mul_(0.5)


def _forgets_lambda(engine: Engine, *args: Any) -> None:
    SWAP(engine, *args)
    amend(engine, strength=engine._strength(engine.parts["damping"].init(engine.problem)[0]))


def _restarts(engine: Engine, *args: Any) -> None:
    SWAP(engine, *args)
    amend(engine, step=0)


SWAP = Engine.swap


@pytest.mark.parametrize("wrong", [_forgets_previous, _forgets_moments, _forgets_lambda, _restarts])
def test_a_swap_that_loses_something_is_noticed(
    wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "swap", wrong)
    with pytest.raises(AssertionError):
        swept()


def test_a_replay_without_its_swaps_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(stepper: Any, recipe: Any, mark: Any) -> Any:
        return recipe

    monkeypatch.setattr(rewinding, "replayed_swap", without)
    with pytest.raises(AssertionError):
        swept()


def test_a_state_that_lacks_a_memo_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    state = Engine.state

    def lacking(engine: Engine, **options: Any) -> Any:
        now = engine.state_
        amend(engine, part_states={**now.part_states, "damping": {}}, previous=None)
        try:
            return state(engine, **options)
        finally:
            amend(engine, **vars(now))

    monkeypatch.setattr(Engine, "state", lacking)
    with pytest.raises(AssertionError):
        swept()


def test_the_tangents_path_survives_going_back() -> None:
    """The path is found where the model asks for tangents, and conjugate gradients use it after."""
    run = run_of("generic").advance(2)
    run.swap(quadratic_model="approximate_fisher", momentum="conjugate_gradient(steps=3)").advance(
        2
    )
    before = run.stepper.passes.tangent_path, image(run)
    run.rewind(3).advance(1)
    assert run.stepper.passes.tangent_path == before[0]
    same(image(run), before[1])
