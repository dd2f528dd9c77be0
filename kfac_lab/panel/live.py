"""Training on the kernel's event loop: a task that awaits a thread, so that no cell ever waits.

The task starts one thread for as long as there is work, and none is left when there is none. The
thread trains and paints; only the loop touches widgets. What the thread has to show is handed over
at most eight times a second, and not again before the loop has shown it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any

from kfac_lab.errors import KfacLabError
from kfac_lab.panel.controller import Controller
from kfac_lab.panel.pace import INTERVAL, Pace
from kfac_lab.run import Run

__all__ = ["INTERVAL", "Live"]

TICK = 0.25  # seconds between two looks at the interrupt


class Live:
    """The live task of a panel. ``await live`` waits for the end and raises what the run raised.

    Args:
        controller: whose :meth:`~kfac_lab.panel.controller.Controller.work` is done.
        paint: called in the thread, at a step boundary; what it returns goes to ``show``. Its
            ``cost`` is the seconds that count here; what is dearer paces itself.
        show: called on the loop with what was painted.
        changed: called on the loop where the controller's state or message changed.
        leave: called on the loop, once, where a run has ended: leaves ordinary output behind.
    """

    def __init__(
        self,
        controller: Controller,
        paint: Callable[..., Any],
        show: Callable[[Any], None],
        changed: Callable[[], None],
        leave: Callable[[bool], None],
    ) -> None:
        self.controller = controller
        self._paint, self._show, self._changed, self._leave = paint, show, changed, leave
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shown = True  # what was painted last has arrived
        self._pace = Pace()
        self._awaited = 0
        self._told: tuple[str, Any] = ("", None)  # which run and its last step output has told of
        controller.wake, controller.boundary = self.wake, self._boundary
        controller.changed, controller.acted = self._tell, self._soon

    # --- for those who wait ---------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the task is there: steps or commands are under way."""
        return self._task is not None and not self._task.done()

    async def wait(self) -> Run:
        """Waits until nothing is under way and returns the current run.

        An interrupt of the kernel while a cell waits, as any cancelling, stops the run at its next
        step boundary.

        Raises:
            BaseException: what a step or a command raised, until the next button is pressed.
        """
        self._awaited += 1
        try:
            while self._task is not None and not self._task.done():
                await asyncio.shield(self._task)
        except asyncio.CancelledError:
            self.controller.stop()
            raise asyncio.CancelledError(
                "interrupted: the run stops at its next step boundary, and everything is kept"
            ) from None
        finally:
            self._awaited -= 1
        if self._awaited == 0:
            self._leave_behind(here=True)
        if self.controller.error is not None:
            raise self.controller.error
        return self.controller.run

    def __await__(self) -> Generator[Any, None, Run]:
        return self.wait().__await__()

    def close(self) -> None:
        """Shows nothing any more; the thread ends at its step boundary."""
        self._show, self._changed, self._leave = _ignore, _ignore, _ignore

    # --- the loop's side ------------------------------------------------------------------------

    def wake(self) -> None:
        """Sees to it that the task runs.

        Raises:
            KfacLabError: no event loop runs in this thread.
        """
        if self.running:
            return
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise KfacLabError(
                "the panel trains on the event loop of a notebook's kernel, and none runs here: "
                "use run.advance(…)"
            ) from None
        self._task = self._loop.create_task(self._drive(), name="kfac_lab panel")

    async def _drive(self) -> None:
        loop = asyncio.get_running_loop()
        _LIVE.add(self)
        try:
            while self.controller.busy:
                done: asyncio.Future[Any] = loop.create_future()
                thread = threading.Thread(
                    target=self._work, args=(loop, done), name="kfac_lab panel"
                )
                thread.start()
                while not done.done():
                    _listen()
                    await asyncio.wait({done}, timeout=TICK)
                thread.join()  # it has nothing left to do
                self._shown = True
                if done.result() is not None:
                    self._show(done.result())
        finally:
            _LIVE.discard(self)
            _unlisten()
            if self.controller.busy:  # cancelled: the thread ends at its step boundary
                self.controller.stop()
        if not self._awaited:
            self._leave_behind(here=False)

    def _leave_behind(self, *, here: bool) -> None:
        """Ordinary output, once, for a run that has ended with steps that nothing told of."""
        control = self.controller
        records = control.run.history.records
        if control.state not in ("finished", "stopped", "error") or not records:
            return
        label, last = self._told
        if label != control.label or last is not records[-1]:  # a step that is redone is another
            self._told = (control.label, records[-1])
            self._leave(here)

    def _arrived(self, painted: Any) -> None:
        try:
            self._show(painted)
        finally:
            self._shown = True

    # --- the thread's side ----------------------------------------------------------------------

    def _work(self, loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any]) -> None:
        self._pace.soon()
        with _heard(self.controller.warn):
            self.controller.work()
            painted = self._seen(lambda: self._paint(last=True))
        _call(loop, lambda: None if done.done() else done.set_result(painted))

    def _seen(self, look: Callable[..., Any]) -> Any:
        """What there is to show; where it cannot be made, None, and the error is the message."""
        try:
            return look()
        except BaseException as error:  # also what would end the kernel's loop: SystemExit
            self.controller.failed(error)
            return None

    def _boundary(self) -> None:
        """After each step: shows what it is time for, if the loop has kept up."""
        now = time.monotonic()
        if not self._shown or self._loop is None or not self._pace.due(now):
            return
        seen = self._seen(self._paint)
        self._pace.painted(now, 0.0 if seen is None else seen.cost)
        if seen is None:
            return
        self._shown = False
        _call(self._loop, lambda: self._arrived(seen))

    def _soon(self) -> None:
        """Commands have been carried out: their effect is painted, however long painting takes."""
        self._pace.soon()

    def _tell(self) -> None:
        """The controller has changed; the loop shows it, at once where this is the loop."""
        if self._loop is None or not self.running or _is_running_here(self._loop):
            self._changed()
        else:
            _call(self._loop, self._changed)
        if not (self.running or self._awaited) and self._loop and _is_running_here(self._loop):
            self._leave_behind(here=False)  # a Stop after a Pause


def _ignore(*arguments: Any) -> None:
    return None


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the kernel ends
        loop.call_soon_threadsafe(function)


# --- the interrupt ------------------------------------------------------------------------------
# While a cell runs, the kernel turns an interrupt into an exception in that cell; between cells it
# ignores it. There, and only there, the live panels listen: an interrupt is a Stop.

_LIVE: weakref.WeakSet[Live] = weakref.WeakSet()


def _listen() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupted)


def _unlisten() -> None:
    if threading.current_thread() is not threading.main_thread() or _LIVE:
        return
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupted(number: int, frame: Any) -> None:
    for live in list(_LIVE):
        if live._loop is not None:
            _call(live._loop, live.controller.stop)


# --- warnings -----------------------------------------------------------------------------------
# The thread has no cell that its stderr would belong to: its warnings are the panel's to show.

_hearers: dict[int, Callable[[str], None]] = {}
_hearing = threading.Lock()
_before: Any = None


@contextlib.contextmanager
def _heard(tell: Callable[[str], None]) -> Iterator[None]:
    """This thread's warnings go to ``tell``; those of other threads go where they went."""
    global _before
    with _hearing:
        if not _hearers:
            _before, warnings.showwarning = warnings.showwarning, _show_warning
        _hearers[threading.get_ident()] = tell
    try:
        yield
    finally:
        with _hearing:
            del _hearers[threading.get_ident()]
            if not _hearers and warnings.showwarning is _show_warning:
                warnings.showwarning = _before


def _show_warning(message: Any, category: Any, *more: Any, **named: Any) -> None:
    tell = _hearers.get(threading.get_ident())
    if tell is not None:
        tell(str(message))
    else:
        _before(message, category, *more, **named)
