"""Faults at every line: an exception is raised where a line of the package is about to run.

An operation is first run once to see which lines it comes by. Then, for each of them, it is run on
an object in the same state and cut off there; what it leaves must be the state of before or that of
after, and going on from it must give the numbers that an undisturbed object gives.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import kfac_lab as kl
from kfac_lab.core import archive
from kfac_lab.core.linalg import attempt

PACKAGE = str(Path(kl.__file__).parent)
Place = tuple[str, int]


def lines_of(operation: Callable[[Any], Any], subject: Any) -> list[Place]:
    """File and line of all that ``operation`` runs in the package, each once, in order."""
    seen: dict[Place, None] = {}

    def local(frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            seen[frame.f_code.co_filename, frame.f_lineno] = None
        return local

    def trace(frame: Any, event: str, argument: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        operation(subject)
    finally:
        sys.settrace(before)
    return list(seen)


def cut_off(
    operation: Callable[[Any], Any], subject: Any, place: Place, fault: type[BaseException]
) -> bool:
    """Runs ``operation`` and raises ``fault`` where it comes by ``place`` first; whether it was
    raised and came out."""
    raised = []

    def local(frame: Any, event: str, argument: Any) -> Any:
        if event == "line" and not raised and frame.f_lineno == place[1]:
            raised.append(True)
            sys.settrace(None)
            raise fault("a fault")
        return local

    def trace(frame: Any, event: str, argument: Any) -> Any:
        return local if not raised and frame.f_code.co_filename == place[0] else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        operation(subject)
    except (fault, kl.KfacLabError):  # a reader may name a fault of its own line in its words
        return bool(raised)
    finally:
        sys.settrace(before)
    return False


def surroundings() -> dict[str, Any]:
    """What an operation may set for a while in the process."""
    return {
        "handler": signal.getsignal(signal.SIGINT),
        "random": archive.digest(torch.get_rng_state()),
        "gradients": torch.is_grad_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "attempt": attempt._ATTEMPT.get(),  # left open, no factorisation is looked at any more
        "label": attempt._LABEL.get(),
    }


def free(lock: Any) -> bool:
    """Whether another thread could take a lock."""
    found = []

    def take() -> None:
        found.append(lock.acquire(blocking=False))
        if found[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return bool(found[0])


def tensors(tree: Any) -> dict[str, str]:
    return {name: archive.digest(t.detach().cpu()) for name, t in archive.tensors(tree)}


def image(thing: Any) -> dict[str, Any]:
    """All that a Run, a KFAC or a Preconditioner is, times left out."""
    if isinstance(thing, kl.Run):
        model, state, history = thing.problem.model, thing.stepper.state(), thing.history
        more: dict[str, Any] = {
            "recipe": thing.recipe.text(),
            "of the stepper": thing.stepper.recipe.text()
            if hasattr(thing.stepper, "recipe")
            else "",
            "queue": list(thing._queue),
            "step": thing.step,
            "earliest": thing.earliest,
            "locked": not free(thing._lock),
        }
    else:
        model, state = thing.model, thing._engine.state()
        history = thing.history if isinstance(thing, kl.KFAC) else None
        more = {
            "recipe": thing._engine.recipe.text(),
            "gradients": tensors({n: p.grad for n, p in model.named_parameters()}),
            "step": thing.step_count,
        }
    if history is not None:
        skip = ("seconds",)
        rows = {
            name: list(map(repr, history[name])) for name in kl.history.COLUMNS if name not in skip
        }
        more |= {"rows": rows, "marks": list(history.marks), "scores": len(history.evaluations)}
    return {
        **more,
        "state": tensors(state),
        "model": tensors(dict(model.state_dict())),
        "modes": [m.training for m in model.modules()],
    }


@dataclass
class Tally:
    """What came of the faults of one operation."""

    lines: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    torn: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))
        return f"{self.lines} lines: {told}"


@dataclass(frozen=True)
class Known:
    """An operation, and all that an undisturbed object gives: the same for every fault."""

    make: Callable[[], Any]
    operation: Callable[[Any], Any]
    go_on: Callable[[Any], Any]
    look: Callable[[Any], Any]
    lines: list[Place]
    states: dict[str, Any]
    later: dict[str, Any]


def known(
    make: Callable[[], Any],
    operation: Callable[[Any], Any],
    go_on: Callable[[Any], Any],
    look: Callable[[Any], Any] = image,
) -> Known:
    """What ``operation`` leaves undone and done, what comes of going on from either, its lines."""
    before, after = make(), make()
    operation(after)
    states = {"before": look(before), "after": look(after)}
    go_on(before)
    go_on(after)
    later = {"before": look(before), "after": look(after)}
    return Known(make, operation, go_on, look, lines_of(operation, make()), states, later)


def struck(it: Known, subject: Any, place: Place, fault: type[BaseException], tally: Tally) -> bool:
    """Whether the fault was raised; what it leaves set in the process goes into the tally."""
    around = surroundings()
    if not cut_off(it.operation, subject, place, fault):
        return False
    left = surroundings()
    changed = [key for key in around if left[key] != around[key]]
    if changed == ["handler"]:  # left behind, it delivers the next signal and goes
        signal.signal(signal.SIGINT, around["handler"])
        tally.counts["handler left, which heals"] += 1
    elif changed:
        tally.torn.append(f"{named(place)}: left {changed} changed")
    return True


def stands(it: Known, subject: Any, name: str, tally: Tally) -> list[str]:
    """Which of the states the object is in; that it is in neither goes into the tally."""
    states, found = it.states, it.look(subject)
    where = [when for when, state in states.items() if state == found]
    if not where:
        near = min(states, key=lambda when: sum(found[k] != states[when][k] for k in found))
        keys = [k for k in found if found[k] != states[near][k]]
        tally.torn.append(f"{name}: neither; beside {near} it differs in {keys}")
    return where


def goes_on(it: Known, subject: Any, where: list[str], name: str, tally: Tally) -> None:
    """Goes on; other numbers than those of an undisturbed object go into the tally."""
    it.go_on(subject)
    if it.look(subject) not in [it.later[when] for when in where]:
        tally.torn.append(f"{name}: {where[0]}, and then other numbers")


def named(place: Place) -> str:
    """The file within the package, and the line."""
    return f"{Path(place[0]).relative_to(PACKAGE)}:{place[1]}"


def attacked(
    it: Known, fault: type[BaseException], every: int = 1, first: int = 0, again: bool = False
) -> Tally:
    """Cuts the operation off at every line (or every so many, from the ``first``).

    Each line with a new object, or with ``again`` the same one for as long as faults leave it as
    it was before and it comes by the lines: what it has been through shows when it goes on.
    """
    tally, one, where = Tally(), None, [""]
    for place in it.lines[first::every]:
        tally.lines += 1
        subject = it.make() if one is None else one
        raised = struck(it, subject, place, fault, tally)
        if not raised and one is not None:  # a line of an object's first time: it has been through
            goes_on(it, subject, ["after"], f"before {named(place)}", tally)
            subject = it.make()
            raised = struck(it, subject, place, fault, tally)
        one = None
        if not raised:
            tally.counts["not raised"] += 1  # a line that another run does not come by
            continue
        where = stands(it, subject, named(place), tally)
        if not where:
            continue
        tally.counts[where[0]] += 1
        if again and "before" in where:
            one = subject
        else:
            goes_on(it, subject, where, named(place), tally)
    if one is not None:
        goes_on(it, one, where, "after the last line", tally)
    return tally
