"""A law: one sentence that every component of a slot obeys, and how it is tried.

Every law is a function of one :class:`Case`; it returns None where the component obeys, and raises
:class:`Broken` where it does not. ``needs`` names the laws without which it makes no sense: where
one of those fails it is not tried, so that one fault is reported once.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kfac_lab.core.slots import BySlot, slot_name
from kfac_lab.errors import PluginError

__all__ = ["LAWS", "Broken", "Case", "Law", "LawError", "Report", "Result", "law", "laws_of"]


class LawError(PluginError, AssertionError):
    """A component breaks a law; ``report`` says which, on which input, and what was expected."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


def brief(message: str, most: int = 400) -> str:
    """The first line of a message, cut where it is very long: torch's go on for pages."""
    line = message.strip().partition("\n")[0]
    return line if len(line) <= most else f"{line[:most]}…"


class Broken(Exception):
    """What a law found: on which input, what was expected, what came."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        got = brief(got)
        super().__init__(f"on {where}: expected {expected}, got {got}")
        self.where, self.expected, self.got = where, expected, got


@dataclass(frozen=True, eq=False)
class Case:
    """What is tried: the component, its slot, and what its slot needs beside it.

    ``make`` gives another instance of the same class with the same fields. ``extra`` holds what
    only some slots know: ``module`` and ``inputs`` of a layer, ``targets`` of a likelihood.
    ``memo`` is for what one law has made and a later one of the same report goes on with.
    """

    component: Any
    slot: str
    make: Callable[[], Any]
    extra: Mapping[str, Any] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Law:
    """See the module's text. ``applies`` says None, or in one phrase why a case is exempt."""

    slot: str
    name: str
    says: str
    tries: Callable[[Case], None]
    needs: tuple[str, ...] = ()
    applies: Callable[[Case], str | None] = lambda case: None


@dataclass(frozen=True)
class Result:
    """How one law went: ``status`` is obeyed, broken, exempt or "not tried"."""

    slot: str
    law: str
    says: str
    status: str
    why: str = ""


@dataclass(frozen=True)
class Report:
    """All laws of one component, in order."""

    component: str
    slot: str
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()  # what is no fault, and may be put better

    @property
    def broken(self) -> tuple[str, ...]:
        """The names of the laws that it breaks."""
        return tuple(r.law for r in self.results if r.status == "broken")

    @property
    def passed(self) -> bool:
        """Whether every law that applies is obeyed."""
        return not self.broken

    def __str__(self) -> str:
        obeyed = sum(r.status == "obeyed" for r in self.results)
        count = f"{obeyed} law{'s' * (obeyed != 1)} obeyed"
        if self.passed:
            exempt = list(dict.fromkeys(r.why for r in self.results if r.status == "exempt"))
            without = f"; exempt, since {'; '.join(exempt)}" if exempt else ""
            told = f"{count}{without}" if obeyed else next(iter(exempt), "no laws")
            return "\n".join([f"{self.slot} {self.component}: {told}", *self._noted()])
        lines = [f"{self.slot} {self.component} breaks {len(self.broken)} of its laws ({count}):"]
        for r in self.results:
            if r.status == "broken":
                lines.append(f"  {r.law}: {r.says} But {r.why}")
        waiting = [r.law for r in self.results if r.status == "not tried"]
        if waiting:
            lines.append(f"  not tried because of that: {', '.join(waiting)}")
        return "\n".join([*lines, *self._noted()])

    def _noted(self) -> list[str]:
        return [f"  note: {note}" for note in self.notes]


#: slot → name → law, in the order of trying
LAWS: BySlot[dict[str, Law]] = BySlot()


def law(
    slot: str,
    says: str,
    *,
    needs: tuple[str, ...] = ("runs",),
    applies: Callable[[Case], str | None] | None = None,
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Makes a function of a Case the law of a slot; its name is the function's.

    Raises:
        ValueError: the slot has a law of this name already.
    """

    def take(function: Callable[[Case], None]) -> Callable[[Case], None]:
        name, own = function.__name__, slot_name(slot)
        of_slot = LAWS.setdefault(own, {})
        if name in of_slot:
            raise ValueError(f"the law {name!r} of {slot} is there already")
        wanted = () if name == "runs" else needs
        extra = {} if applies is None else {"applies": applies}
        of_slot[name] = Law(own, name, says, function, wanted, **extra)
        return function

    return take


def try_last(slot: str, name: str, *needs: str) -> None:
    """Has a law tried after all others of its slot so far, and only where ``needs`` are obeyed."""
    slot = slot_name(slot)
    one = LAWS[slot].pop(name)
    LAWS[slot][name] = replace(one, needs=(*one.needs, *needs))


def leave_out(slot: str, *names: str) -> None:
    """Takes out common laws that no component of the slot could break; no law needs them then."""
    slot = slot_name(slot)
    left = {name: one for name, one in LAWS[slot].items() if name not in names}
    LAWS[slot] = {
        name: replace(one, needs=tuple(n for n in one.needs if n not in names))
        for name, one in left.items()
    }


def laws_of(slot: str) -> tuple[Law, ...]:
    """The laws of a slot, in the order of trying."""
    return tuple(LAWS.get(slot, {}).values())


def tried(case: Case) -> Report:
    """Every law of the case's slot tried on it."""
    results: list[Result] = []
    failed: set[str] = set()
    for one in laws_of(case.slot):
        status, why = _try(one, case, failed)
        if status in ("broken", "not tried"):
            failed.add(one.name)
        results.append(Result(case.slot, one.name, one.says, status, why))
    return Report(type(case.component).__name__, case.slot, tuple(results))


def _try(one: Law, case: Case, failed: set[str]) -> tuple[str, str]:
    missing = [name for name in one.needs if name in failed]
    if missing:
        return "not tried", f"needs {', '.join(missing)}"
    try:
        exempt = one.applies(case)
        if exempt:
            return "exempt", exempt
        one.tries(case)
    except Broken as error:
        return "broken", str(error)
    except Exception as error:  # a component may raise anything
        told = brief(str(error)) or "without a message"
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        return "broken", f"it raised {type(error).__name__}: {told} ({where})"
    return "obeyed", ""
