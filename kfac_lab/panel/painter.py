"""What a panel has to show, as a message to the page: new points, the status, the list of runs."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kfac_lab.errors import KfacLabError
from kfac_lab.hooks.manager import BUILTIN_OWNER
from kfac_lab.panel import compare, views
from kfac_lab.panel.bands import banded
from kfac_lab.panel.status import Status
from kfac_lab.panel.views.style import style_of
from kfac_lab.panel.wire import SentPicture, Wire, words
from kfac_lab.plots import Plot

__all__ = ["Painted", "Painter"]

INTERVAL = 0.125  # seconds between two looks, at least
HEAVY = 0.1  # of the time, at most, goes into views that look into a run or are drawn here
RARELY = 2.0  # seconds between two of these at the most, while they are open
SPOKEN = 2.0  # seconds between two texts
WAIT = 3.0  # seconds for which the page's module is waited for
PICTURE = 1.0  # seconds between two pictures where it does not come

DASHES = ("-", "--", ":", "-.", "- -", "..", "-..")


class Painted(NamedTuple):
    """What is handed to the loop to show."""

    message: dict[str, Any]
    buffers: list[Any]
    status: Status
    summary: str | None = None
    png: bytes | None = None
    cost: float = 0.0  # the processor's seconds that what is light took


class Painter:
    """Looks at the runs of a controller and says what is new.

    Attributes:
        view: the view that is open; set by the panel.
        heard: the page's module has answered.
        sent: how many messages there were.
    """

    def __init__(self, control: Any, module: bool, wait: float) -> None:
        self.control = control
        self.view: Any = None
        self.heard = False
        self.wait = wait
        self.module = module  # there is one to wait for
        self.others: Callable[[], list[dict[str, Any]]] = list
        self._wire = Wire()
        self._lock = threading.Lock()
        self.sent = 0
        self._begun = math.inf  # when the page was first waited for
        self._heavy: list[tuple[str, Plot | SentPicture]] = []
        self._heavy_of: Any = None
        self._next_heavy = self._next_words = self._next_picture = self._next_whole = 0.0
        self._runs: Any = None
        self._outbox: deque[Painted] = deque()
        self._forgotten = False  # the page has lost what it had

    def waiting(self) -> Iterator[Painted]:
        """What was painted and not yet shown, in the order in which the page has to have it."""
        while self._outbox:
            yield self._outbox.popleft()

    # --- painting -------------------------------------------------------------------------------

    def lost(self) -> None:
        """What was painted may not have arrived: the next message holds everything."""
        self._forgotten = True

    def hello(self) -> None:
        """The page has loaded, perhaps again: it has nothing yet."""
        self.heard = True
        self.lost()

    def paint(self, *, between: bool = False, last: bool = False) -> Painted | None:
        """What is new since the last time.

        ``between``: not at a step boundary, so no look into the run itself, and None where a
        painting is under way. ``last``: nothing comes after it, so that nothing may wait.
        """
        if between and self._lock.locked():
            return None
        with (
            self._lock
        ):  # which an interrupt leaves free, as no acquire and release of our own does
            return self._painted(between, last)

    def _painted(self, between: bool, last: bool) -> Painted:
        try:
            start, begun = time.monotonic(), time.thread_time()
            if self._forgotten:
                self._forgotten = False
                self._wire.forget()
                self._runs, self._next_words = None, 0.0
            if last:
                self._next_heavy = self._next_words = self._next_picture = 0.0
            if not self.heard and self.control.state == "running":
                self._begun = min(self._begun, start)
            message: dict[str, Any] = {"t": "up"}
            buffers: list[Any] = []
            status = self.control.status()
            spent = time.thread_time()
            plots = self._plots(between)
            heavy = time.thread_time() - spent if self.heavy else 0.0
            if plots is not None:
                if not self.heard and self._alone() and start >= self._next_whole:
                    self._next_whole = start + PICTURE
                    self._wire.forget()  # nobody can answer while a cell runs: all of it again
                new, buffers = self._wire.message(plots)
                message |= new
            message["view"] = self.view.name
            if message.get("all"):
                self._runs = None
            runs = self._listed()
            if runs != self._runs:
                message["runs"] = self._runs = runs
            message["status"] = self._status(status)
            summary = None
            if plots is not None and start >= self._next_words:
                self._next_words = start + SPOKEN
                summary = message["words"] = self._told(words(plots))
            spent = time.thread_time()
            png = self._fallback(between, start)
            heavy += time.thread_time() - spent
            self.sent += 1
            message["n"] = self.sent
            cost = time.thread_time() - begun - heavy
            painted = Painted(message, buffers, status, summary, png, cost)
            self._outbox.append(painted)
            return painted
        except BaseException:  # an interrupt of the cell, say: what the wire notes was not sent
            self.lost()
            raise

    def picture(self) -> bytes:
        """The open view as PNG."""
        return views.figure(self.view, *self._drawn())[0]

    def _drawn(self) -> tuple[dict[str, Any], Any]:
        """The runs of the current one's problem, and what was seen of that."""
        run = self.control.run
        shown = self._shown().get(self._problem(run)) or {self.control.label: run}
        return compare.histories(shown), views.seen(run, self.view.wants)

    def _alone(self) -> bool:
        return self.module and time.monotonic() - self._begun > self.wait

    def _fallback(self, between: bool, now: float) -> bytes | None:
        waited = now - self._begun > self.wait or not self.module
        if self.heard or between or not waited or now < self._next_picture:
            return None
        self._next_picture = now + PICTURE
        return self.picture()

    def _told(self, text: str) -> str:
        view = self.view
        return text if view.owner == BUILTIN_OWNER else f"{text} (A view of {view.owner}.)"

    # --- plots ----------------------------------------------------------------------------------

    @property
    def heavy(self) -> bool:
        """Whether the open view is dear: it looks into the run, or is drawn here."""
        return bool(self.view.heavy)

    def _plots(self, between: bool) -> list[tuple[str, Plot | SentPicture]] | None:
        """The open view's plots; None where they are dear and not due."""
        if not self.heavy:
            return self._made(None)
        now = time.monotonic()
        key = (self.view, self.control.label)
        waits = between and bool(self.view.wants)  # for a step boundary
        if waits or (now < self._next_heavy and key == self._heavy_of):
            fresh = self._heavy_of == key
            return self._heavy if fresh and not self._wire.begun else None
        self._heavy = self._made(now)
        self._heavy_of = key
        took = time.monotonic() - now
        self._next_heavy = now + min(max(took / HEAVY, INTERVAL), RARELY)
        return self._heavy

    def _made(self, heavy: float | None) -> list[tuple[str, Plot | SentPicture]]:
        control, view = self.control, self.view
        run = control.run
        seen = views.facts(run) if heavy is None else views.seen(run, view.wants)
        several = self._shown()
        mine = self._problem(run)
        if heavy is not None:  # what is dear is made of the current run's problem alone
            several = {mine: several.get(mine, {control.label: run})}
        made: list[tuple[str, Plot | SentPicture]] = []
        for problem, runs in several.items():
            heading = problem if len(several) > 1 else ""
            histories = {label: each.history for label, each in runs.items()}
            try:
                if view.plot is None:
                    copies = compare.histories(runs)
                    png, told = views.figure(view, copies, seen)
                    made.append((heading, SentPicture(view.title, png, told)))
                else:
                    look = seen if problem == mine else None
                    made.append((heading, self._with_bands(view.plot(histories, look))))
            except Exception as error:
                png, told = views.failure(view, error)
                made.append((heading, SentPicture(view.title, png, told)))
        return made

    def _with_bands(self, plot: Plot) -> Plot:
        groups = {label: item.group for label, item in self.control.roster.items() if item.group}
        return banded(plot, groups)

    def _shown(self) -> dict[str, dict[str, Any]]:
        """Problem → label → run, hidden ones too: the page hides them."""
        found: dict[str, dict[str, Any]] = {}
        for label, item in self.control.roster.items():
            found.setdefault(self._problem(item.run), {})[label] = item.run
        return found

    @staticmethod
    def _problem(run: Any) -> str:
        return str(run.problem.title)

    # --- runs and status ------------------------------------------------------------------------

    def _listed(self) -> list[dict[str, Any]]:
        control, out = self.control, []
        for label, item in control.roster.items():
            run = item.run
            look = style_of(item.order)
            out.append(
                {
                    "label": label,
                    "colour": look.colour,
                    "dash": DASHES[item.order % len(DASHES)],
                    "hidden": item.hidden,
                    "group": item.group,
                    "thin": bool(item.group),
                    "trains": (item.trains or label == control.label) if control.manages else None,
                    "current": label == control.label,
                    "recipe": control.word(run),
                    "about": item.failed or control.about(run),
                    "from": item.shared,
                    "size": _size(run),
                    "rewinds": control.manages,
                    "manages": control.manages,
                    "step": 0,
                    "state": "",
                    "error": None,
                }
            )
        return out

    def _status(self, status: Status) -> dict[str, Any]:
        control = self.control
        goal, run = control.goal, control.run
        told: dict[str, Any] = {
            "label": control.label,
            **{k: _plain(v) for k, v in status._asdict().items()},
            "ago": time.monotonic() - control.since,
            "each": _each(run),
            "nudges": control.manages or control.swaps,
            "others": self.others(),
            "runs": [],
        }
        if goal is not None and goal.ends:
            _, step, seconds = next((e for e in goal.ends if e[0] is run), goal.ends[0])
            begun = goal.begun.get(id(run), (0, 0.0))
            told |= {"goal": step, "begun": begun[0], "limit": seconds, "began": begun[1]}
        for label, item in control.roster.items():
            last = item.run.history.tail(1)
            error = _plain(last[-1].error) if last else None
            told["runs"].append([label, item.run.step, control.state_of(label), error])
        return told


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _each(run: Any) -> float:
    """Seconds of a step, the mean of the last few."""
    last = run.history.tail(6)
    if not last:
        return 0.0
    before = last[0].seconds if len(last) > 1 else 0.0
    mean = (last[-1].seconds - before) / max(len(last) - 1, 1)
    return float(mean) if math.isfinite(mean) else 0.0


def _size(run: Any) -> int | None:
    """Cases in the training set."""
    try:
        found = run.problem.available
    except (KfacLabError, AttributeError):
        return None
    return int(found) if found else None
