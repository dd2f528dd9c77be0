"""Small runs for a panel, some of them slow, failing, or without effect; and what each button does.

A check presses one button and asserts its effect. The negative control runs the same check on a
Run of which one method does nothing, and must fail.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from invariants.helpers import problem_of, recipe_of

import kfac_lab as kl
from kfac_lab.panel.controller import Controller

THREAD = "kfac_lab panel"


def run_of(kind: type[kl.Run] = kl.Run, **slots: Any) -> Any:
    """A run of 24 cases: a step takes a few milliseconds."""
    return kind(problem_of(), recipe_of(**slots), seed=0, device="cpu")


def drive(control: Controller) -> None:
    """Does all the work that there is, in this thread."""
    while control.busy:
        control.work()


class Slow(kl.Run):
    """Every step takes ``wait`` seconds more."""

    wait = 1.0

    def step_once(self) -> Any:
        time.sleep(self.wait)
        return super().step_once()


class Seen:
    """What a page has of a panel: the messages of its chart, put together as the module does."""

    def __init__(self, panel: Any) -> None:
        self.messages: list[dict[str, Any]] = []
        self.sizes: list[int] = []  # bytes of each message's arrays
        self.store: dict[str, np.ndarray] = {}
        self.spec: list[Any] = []
        self.words, self.pictures = "", 0
        self.hears: list[Callable[[], None]] = []
        panel.chart.send = self.take
        self.say = panel.heard
        self.say({"t": "hello"})

    def take(self, message: dict[str, Any], buffers: Any = None) -> None:
        buffers = [bytes(b) for b in buffers or []]
        json.dumps(message, allow_nan=False)
        self.messages.append(message)
        self.sizes.append(sum(map(len, buffers)))
        if message.get("all"):
            self.store = {}
        two = [*buffers[:2], b"", b""]
        numbers = [np.frombuffer(two[0], np.float64), np.frombuffer(two[1], np.float32)]
        for key, start, count, which in message.get("arrays", ()):
            old = self.store.get(key, np.zeros(0))
            assert start <= len(old), "a gap"
            new, numbers[which] = np.split(numbers[which], [count])
            self.store[key] = np.concatenate([old[:start], new])
        assert not any(map(len, numbers))
        for key in message.get("drop", ()):
            del self.store[key]
        self.spec = message.get("spec", self.spec)
        self.words = message.get("words", self.words)
        self.pictures += sum(b.startswith(b"\x89PNG") for b in buffers[2:])
        for hear in self.hears:
            hear()

    def points(self, run: str, name: str, against: str = "iteration", plot: int = 0) -> Any:
        """x and y of a run's series."""
        for axes in self.spec[plot]["axes"]:
            for part in axes["parts"]:
                if part["kind"] == "series" and (part["run"], part["name"]) == (run, name):
                    x = part["x"]["along"][against]
                    return self.store[x["$"]], self.store[part["y"]["$"]]
        raise AssertionError(f"no {name} of {run}")


# ---- what each button does -----------------------------------------------------------------------
# press(name, **arguments) presses a button and returns when all that it caused is done.

Press = Callable[..., Any]


def start(control: Controller, press: Press, folder: Path) -> None:
    press("Start", steps=3)
    assert control.run.step == 3 and control.state == "finished"


def pause(control: Controller, press: Press, folder: Path) -> None:
    control.boundary = lambda: control.press("Pause") if control.run.step == 2 else None
    press("Start", steps=6)
    assert control.run.step == 2 and control.state == "paused"
    control.boundary = lambda: None
    press("Start", steps=6)  # goes on to where it would have ended
    assert control.run.step == 6 and control.state == "finished"


def step(control: Controller, press: Press, folder: Path) -> None:
    press("Step")
    assert control.run.step == 1
    press("Step")
    assert control.run.step == 2


def stop(control: Controller, press: Press, folder: Path) -> None:
    control.boundary = lambda: control.press("Stop") if control.run.step == 2 else None
    press("Start", steps=6)
    assert control.run.step == 2 == len(control.run.history) and control.state == "stopped"
    control.boundary = lambda: None
    press("Start", steps=6)  # begins anew
    assert control.run.step == 8


def apply(control: Controller, press: Press, folder: Path) -> None:
    press("Start", steps=2)
    press("Apply", damping="constant(lam=0.5)")
    assert control.run.recipe.text_of("damping") == "constant(lam=0.5)"
    assert [(m.step, dict(m.parts)) for m in control.run.history.marks] == [
        (2, {"damping": "constant(lam=0.5)"})
    ]
    press("Start", steps=1)
    assert control.run.history["lam"][-1] == 0.5


def fork(control: Controller, press: Press, folder: Path) -> None:
    press("Start", steps=2)
    kept = control.run
    press("Fork")
    assert control.run is kept and len(control.runs) == 2
    other = list(control.runs.values())[-1]
    assert other is not kept and other.step == 2
    press("Start", steps=1)
    assert (kept.step, other.step) == (3, 2)


def rewind(control: Controller, press: Press, folder: Path) -> None:
    press("Start", steps=4)
    press("Rewind", step=2)
    assert control.run.step == 2 == len(control.run.history) and control.state == "paused"


def take_back(control: Controller, press: Press, folder: Path) -> None:
    press("Start", steps=2)
    press("Apply", momentum="rescaled")
    press("Start", steps=2)
    loss = list(control.run.history["loss"])
    press("Rewind", step=1)
    assert control.run.step == 1
    press("Take back")
    assert control.run.step == 4 and list(control.run.history["loss"]) == loss
    assert [m.step for m in control.run.history.marks] == [2]
    press("Start", steps=1)
    assert control.run.step == 5 and control.kept is None


def export(control: Controller, press: Press, folder: Path) -> None:
    press("Start", steps=2)
    press("Export", path=folder / "out")
    recipe = kl.Recipe.from_toml((folder / "out" / "recipe.toml").read_text())
    assert recipe == control.run.recipe
    assert len((folder / "out" / "history.csv").read_text().splitlines()) == 3
    assert "run.advance(2)" in (folder / "out" / "run.py").read_text()


def save(control: Controller, press: Press, folder: Path) -> None:
    press("Start", steps=2)
    press("Save", path=folder / "a.pt")
    assert (folder / "a.pt").is_file()
    assert kl.Run.load(folder / "a.pt", problem_of()).step == 2


def load(control: Controller, press: Press, folder: Path) -> None:
    press("Start", steps=2)
    before = control.run
    kl.Run.save(before, folder / "a.pt")
    press("Start", steps=1)
    press("Load", path=folder / "a.pt")
    assert control.run is not before and before in control.runs.values()
    assert control.run.step == 2 and before.step == 3
    same = zip(control.run.history["loss"], before.history["loss"], strict=False)
    assert all(a == b for a, b in same)
    theta = torch.nn.utils.parameters_to_vector(control.run.problem.model.parameters())
    assert not torch.equal(
        theta, torch.nn.utils.parameters_to_vector(before.problem.model.parameters())
    )


CHECKS = {
    "Start": start,
    "Pause": pause,
    "Step": step,
    "Stop": stop,
    "Apply": apply,
    "Fork": fork,
    "Rewind": rewind,
    "Take back": take_back,
    "Export": export,
    "Save": save,
    "Load": load,
}


# ---- runs on which a button has no effect --------------------------------------------------------


class NeverAdvances(kl.Run):
    def advance(self, *args: Any, **more: Any) -> Any:
        return self


class Deaf(kl.Run):
    """Hears no ``until``: neither Pause nor Stop ends it."""

    def advance(self, steps: Any = None, *, seconds: Any = None, until: Any = None) -> Any:
        return super().advance(steps, seconds=seconds, until=lambda record: until(record) and False)


class NeverSwaps(kl.Run):
    def swap(self, **parts: Any) -> Any:
        return self


class NeverForks(kl.Run):
    def fork(self) -> Any:
        return self


class NeverRewinds(kl.Run):
    def rewind(self, step: int, **options: Any) -> Any:
        return self


class NeverSaves(kl.Run):
    def save(self, path: Any) -> Any:
        return Path(path)


class NeverLoads(kl.Run):
    @classmethod
    def load(cls, path: Any, problem: Any = None, device: Any = None) -> Any:
        return cls(problem or problem_of(), recipe_of(), seed=0, device="cpu")


class Recorder(NeverAdvances, NeverSwaps, NeverForks, NeverRewinds, NeverSaves, NeverLoads):
    """Does nothing at all."""


WITHOUT_EFFECT = {
    "Start": NeverAdvances,
    "Pause": Deaf,
    "Step": NeverAdvances,
    "Stop": Deaf,
    "Apply": NeverSwaps,
    "Fork": NeverForks,
    "Rewind": NeverRewinds,
    "Take back": NeverRewinds,
    "Export": NeverAdvances,
    "Save": NeverSaves,
    "Load": NeverLoads,
}


def control_of(run=None) -> Controller:
    return Controller(run or run_of())


def pressing(control: Controller):
    def press(name, **arguments):
        control.press(name, **arguments)
        drive(control)

    return press


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


async def until(condition, patience: float = 30.0) -> None:
    """Waits on the loop, which stays free, until something is so."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        await asyncio.sleep(0.005)
