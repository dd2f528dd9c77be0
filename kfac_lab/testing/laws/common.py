"""What a component of any slot must do; ``common_laws`` makes these laws for one slot.

* ``runs``: every method answers on ordinary inputs.
* ``finite``: what comes back is finite, on awkward inputs too.
* ``deterministic``: the same inputs give the same result, bit for bit.
* ``instances_share_nothing``: what one instance does is not seen by another.
* ``inputs_not_written``: arguments and part_states are left as they were.
* ``global_state_kept``: the global generator, the default dtype and the grad mode stay.
* ``dtype_follows``: float32 in, float32 out, and float64 likewise; scalars are float64.
* ``no_host_read``: nothing is read from the device, or on a refresh through ``linalg.host`` alone.
* ``device_follows``: on the meta device everything stays there.
* ``forwards_traits``: a part that wraps another of its slot forwards what binds it.
* ``round_trip``: text, TOML and JSON give an equal component back.
* ``trains``: some steps in its slot, the others the paper's, with finite numbers.
* ``replays``: a step that is replayed from its recording is the step (``replays.py``).
* ``resumes``: saved without pickle and loaded half way, the run goes on bit for bit.

A slot says how it is tried by a :class:`Trial`.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kfac_lab.core import parameters
from kfac_lab.core.problem import Problem
from kfac_lab.core.traits import SLOT_TRAITS
from kfac_lab.engine import Engine
from kfac_lab.engine.programs import Programs
from kfac_lab.errors import RecipeError
from kfac_lab.hooks.recipe import Recipe
from kfac_lab.testing.attaching import built_ins, engine_for, first_memo, first_state, own_lab
from kfac_lab.testing.judging import exempt_unless, hidden, near, same_to_the_bit, scale_of
from kfac_lab.testing.keep import kept
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.replays import ONE_GAMMA, WENT_ON, Attached, replaying_law
from kfac_lab.testing.laws.wrapping import forwarding_law
from kfac_lab.testing.reads import Mixed, Read, no_reads, on_meta
from kfac_lab.testing.subjects import Subject, tiny_problem
from kfac_lab.testing.trees import InputWatch, tensors

__all__ = [
    "CHEAP",
    "Trial",
    "common_laws",
    "engine_for",
    "exempt_unless",
    "first_memo",
    "first_state",
    "hidden",
    "near",
    "own_lab",
    "same_to_the_bit",
    "scale_of",
]

#: what every law of a slot's own needs
CHEAP = ("runs", "finite", "deterministic", "inputs_not_written")

Run = Callable[[Any, Subject, InputWatch], Mapping[str, Any]]
STEPS = 6


@dataclass(frozen=True)
class Trial:
    """How the components of a slot are tried.

    Args:
        slot: its name.
        subjects: the ordinary inputs of a case, float64.
        run: calls every method of the component on one subject and returns the results by name;
            what it hands over that must not be written into it passes through the Watch.
        awkward: inputs on which the result need only be finite: no moments yet, one case, ….
        refresh: calls what may read through ``linalg.host`` where ``run`` may not; None: nothing.
        double: results that are float64 whatever the inputs are (the scalars of a step).
        loose: results whose dtype and device are free (made for tests and plots only).
        any_dtype: results whose dtype alone is free (what a part_state holds).
        door: whether ``linalg.host`` may be used (refresh steps).
        dtypes: whether the slot sees tensors of the model's dtype at all.
        device: whether the slot sees tensors on the model's device at all.
        recipe: whether a recipe can name it: it has a text form.
        problem: what it trains on, or None where its slot has laws of its own for that.
        parts: the other parts that it trains with, where the paper's do not do.
        engine: makes the engine of a case with a component, and other parts by their slots, where
            ``problem`` and ``parts`` do not.
    """

    slot: str
    subjects: Callable[[Case], Sequence[Subject]]
    run: Run
    awkward: Callable[[Case], Sequence[Subject]] = lambda case: ()
    refresh: Run | None = None
    double: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()
    any_dtype: tuple[str, ...] = ()
    door: bool = False
    dtypes: bool = True
    device: bool = True
    recipe: bool = True
    problem: Callable[[Case], Problem] | None = lambda case: tiny_problem()
    parts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    engine: Attached | None = None


def common_laws(trial: Trial) -> None:
    """Makes the laws of this file for the trial's slot; call it first in the slot's file."""
    slot, whole = trial.slot, _whole(trial)

    @law(slot, "Its methods answer on ordinary inputs.")
    def runs(case: Case) -> None:
        for subject in trial.subjects(case):
            with hidden(f"its methods on {subject.where}"):
                whole(case.component, subject.fresh(), InputWatch())

    @law(slot, "What comes back is finite, also for awkward inputs.")
    def finite(case: Case) -> None:
        for subject in (*trial.subjects(case), *trial.awkward(case)):
            for name, value in whole(case.component, subject.fresh(), InputWatch()).items():
                for path, tensor in tensors(value):
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                        got = f"{float(tensor[~torch.isfinite(tensor)][0])}"
                        raise Broken(subject.where, f"finite numbers in {name}{path}", got)

    @law(slot, "The same inputs give the same result, bit for bit.", needs=("runs",))
    def deterministic(case: Case) -> None:
        for subject in trial.subjects(case):
            first = whole(case.component, subject.fresh(), InputWatch())
            again = whole(case.component, subject.fresh(), InputWatch())
            same_to_the_bit(subject.where, "the same result twice", first, again)

    @law(slot, "What one instance does is not seen by another.", needs=("runs", "deterministic"))
    def instances_share_nothing(case: Case) -> None:
        for subject in trial.subjects(case):
            first = whole(case.component, subject.fresh(), InputWatch())
            other = whole(case.make(), subject.fresh(), InputWatch())
            again = whole(case.component, subject.fresh(), InputWatch())
            same_to_the_bit(subject.where, "the same result from another instance", first, other)
            same_to_the_bit(subject.where, "the result it gave before", first, again)

    @law(slot, "It writes into nothing that it is given: arguments and part_states stay.")
    def inputs_not_written(case: Case) -> None:
        for subject in trial.subjects(case):
            given, watch = subject.fresh(), InputWatch()
            watch(given.values, "")
            whole(case.component, given, watch)
            written = watch.written()
            if written is not None:
                raise Broken(f"{subject.where}, {written[0]}", *written[1:])

    @law(slot, "The global generator, the default dtype and the grad mode stay as they are.")
    def global_state_kept(case: Case) -> None:
        for subject in trial.subjects(case):
            with kept() as changed:
                whole(case.component, subject.fresh(), InputWatch())
                what = changed()
            if what:
                raise Broken(subject.where, f"{what} as before", "another")

    if trial.dtypes:

        @law(slot, "float32 in, float32 out, and float64 likewise; a step's scalars are float64.")
        def dtype_follows(case: Case) -> None:
            for subject in trial.subjects(case):
                for dtype in (torch.float32, torch.float64):
                    given = subject.to(dtype=dtype)
                    for name, value in whole(case.component, given, InputWatch()).items():
                        wanted = torch.float64 if name in trial.double else dtype
                        _check_dtype(trial, given.where, name, value, wanted)

    if trial.device:

        @law(slot, _door_says(trial.door))
        def no_host_read(case: Case) -> None:
            for subject in _ends(trial.subjects(case)):
                given = subject.fresh()
                try:
                    with no_reads(trial.door):
                        trial.run(case.component, given, InputWatch())
                    if trial.refresh is not None:
                        with no_reads(True):
                            trial.refresh(case.component, given, InputWatch())
                except Read as error:
                    raise Broken(subject.where, "no read on the host", f"{error}") from None

        @law(
            slot,
            "On the meta device every result is meta: no tensor of another device is mixed in.",
            needs=("runs", "no_host_read"),
        )
        def device_follows(case: Case) -> None:
            for subject in _ends(trial.subjects(case)):
                given = subject.to(device="meta")
                try:
                    with on_meta():
                        results = whole(case.component, given, InputWatch())
                except (Mixed, RuntimeError) as error:
                    raise Broken(given.where, "one device", str(error)) from None
                for name, value in results.items():
                    for path, tensor in tensors(value) if name not in trial.loose else ():
                        if not tensor.is_meta:
                            got = f"it on {tensor.device.type}"
                            raise Broken(given.where, f"{name}{path} on meta", got)

    if slot in SLOT_TRAITS:
        forwarding_law(slot)

    if trial.recipe:

        @law(slot, "Text, TOML and JSON give an equal component back.", needs=())
        def round_trip(case: Case) -> None:
            _round_trip(case)

    made = _maker(trial)
    if made is not None:
        attached = made
        cheap = (*CHEAP, *(("dtype_follows",) if trial.dtypes else ()))

        @law(slot, "It trains in its slot, with finite numbers.", needs=cheap)
        def trains(case: Case) -> None:
            where = f"{STEPS} steps with the paper's other parts"
            with hidden(where):
                engine = attached(case, case.component)
                losses = [float(engine.step().loss) for _ in range(STEPS)]
            bad = [k for k, loss in enumerate(losses, 1) if not abs(loss) < float("inf")]
            if bad:
                raise Broken(where, "finite losses", f"{losses[bad[0] - 1]} at step {bad[0]}")

        @law(
            slot,
            "Saved without pickle and loaded half way, the run goes on bit for bit.",
            needs=("trains", "instances_share_nothing"),
        )
        def resumes(case: Case) -> None:
            _resumes(case, attached)

        replaying_law(slot, attached, cheap)


def _whole(trial: Trial) -> Run:
    """All that a trial calls, as one."""
    refresh = trial.refresh
    if refresh is None:
        return trial.run

    def run(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
        return {**trial.run(component, subject, watch), **refresh(component, subject, watch)}

    return run


def _maker(trial: Trial) -> Attached | None:
    problem = trial.problem
    if trial.engine is not None or problem is None:
        return trial.engine

    def attached(case: Case, component: Any, **parts: Any) -> Engine:
        return engine_for(case, problem(case), component, {**trial.parts, **parts})

    return attached


def _resumes(case: Case, attached: Attached) -> None:
    half = STEPS // 2
    engine = case.memo[WENT_ON] = attached(case, case.make(), **ONE_GAMMA)
    engine.programs = Programs(False, engine.device)
    for _ in range(half):
        engine.step()
    file = io.BytesIO()
    with hidden(f"the state after {half} steps, which has to be saved"):
        torch.save(engine.state(), file)
    for _ in range(half):
        engine.step()
    file.seek(0)
    with hidden(f"the state after {half} steps, loaded without pickle"):
        other = attached(case, case.make(), **ONE_GAMMA)
        other.load(torch.load(file, weights_only=True))
        for _ in range(half):
            other.step()
    states = [_timeless(e.state()["tree"]) for e in (engine, other)]
    same_to_the_bit(f"{half} steps after loading", "the state of a run that went on", *states)


def _timeless(tree: Any) -> Any:
    """A saved state but for its clock."""
    if isinstance(tree, dict):
        return {key: _timeless(value) for key, value in tree.items() if key != "seconds"}
    if isinstance(tree, (list, tuple)):
        kept = [value for value in tree if not (isinstance(value, list) and value[:1] == _CLOCK)]
        return [_timeless(value) for value in kept]
    return tree


_CLOCK = ["seconds"]  # a pair of a saved dict


def _round_trip(case: Case) -> None:
    component, slot = case.component, case.slot
    where = f"{component!r}"
    if not dataclasses.is_dataclass(component) or isinstance(component, type):
        raise Broken(where, "a dataclass, whose fields are its text", "a class that is none")
    lab = built_ins()
    if lab.registry.of_component(slot, component) is None:
        lab = own_lab()
        lab.load()
        lab.register(slot, "tried", type(component))
    try:
        recipe = Recipe(lab=lab, **{slot: component})
        wanted = parameters.text(component, "it", complete=True)
        for complete in (False, True):
            for form in ("text", "toml", "json"):
                write = recipe.text if form == "text" else getattr(recipe, f"to_{form}")
                told = write(complete=complete)
                back = getattr(Recipe, f"from_{form}")(told, lab=lab)[slot]
                got = parameters.text(back, "it", complete=True)
                if type(back) is not type(component) or got != wanted:
                    raise Broken(where, f"{wanted} from its {form}", got)
    except RecipeError as error:
        raise Broken(where, "a text that can be read back", f"the error: {error}") from None


def _ends(subjects: Sequence[Subject]) -> Sequence[Subject]:
    """The first and the last: what is slow needs no more of them."""
    return subjects[:1] if len(subjects) == 1 else (subjects[0], subjects[-1])


def _check_dtype(trial: Trial, where: str, name: str, value: Any, wanted: torch.dtype) -> None:
    if name in trial.loose or name in trial.any_dtype:
        return
    for path, tensor in tensors(value):
        if tensor.is_floating_point() and tensor.dtype != wanted:
            kinds = [str(t).removeprefix("torch.") for t in (wanted, tensor.dtype)]
            raise Broken(where, f"{name}{path} in {kinds[0]}", kinds[1])


def _door_says(door: bool) -> str:
    if door:
        return "It reads a number on the host through linalg.host alone."
    return "It reads no number on the host."
