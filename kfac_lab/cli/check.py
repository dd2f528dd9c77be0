"""``kfac-lab check``: the laws of the conformance kit, tried on a plugin or on one component."""

from __future__ import annotations

import argparse
import importlib
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from kfac_lab.cli.terminal import LiveLines, paint, table
from kfac_lab.core.parameters import build, did_you_mean
from kfac_lab.errors import PluginError
from kfac_lab.testing import Report, report
from kfac_lab.testing.law import LAWS
from kfac_lab.testing.plugin import installed, plugin_reports

__all__ = ["check"]

_MARKS = {"obeyed": "obeyed", "broken": "BROKEN", "exempt": "exempt", "not tried": "not tried"}
_COLOURS = {"broken": 160, "obeyed": 34}


def check(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code: 1 where a law is broken."""
    live = LiveLines()
    if options.laws:
        live.say("\n".join(_laws(_width())))
        return 0
    names = list(options.names) or [source.qualified for source in installed()]
    if not names:
        live.say(
            "no plugin is installed: name a module, or try what is in the box: "
            "kfac-lab check kfac-lab"
        )
        return 0
    reports: list[Report] = []
    for name in names:
        for found in _reports(name):
            reports.append(found)
            live.draw([f"{found.slot} {found.component}"])
            if options.verbose:
                live.say("\n".join(_verbose(found)))
    live.draw([])
    live.say("\n".join(_table(reports)))
    broken = [found for found in reports if not found.passed]
    for found in broken if not options.verbose else ():
        live.say(f"\n{found}")
    count = len(reports)
    all_obey = f"all {count} obey their laws" if count > 1 else "it obeys its laws"
    live.say(f"\n{len(broken)} of {count} broke a law" if broken else f"\n{all_obey}")
    return int(bool(broken))


# --- what to try ----------------------------------------------------------------------------------


def _reports(name: str) -> Iterator[Report]:
    """A plugin with all that it brings; or one component, of ``module:Class``."""
    module, colon, attribute = name.partition(":")
    if not colon:
        yield from plugin_reports(name)
        return
    target = _imported(module)
    known = [each for each in dir(target) if not each.startswith("_")]
    found: Any = getattr(target, attribute, None)
    if found is None:
        raise PluginError(
            f"{module} has no {attribute!r}{did_you_mean(attribute, known)}: write "
            "module:Class, the class of a component"
        )
    yield report(build(found, {}) if isinstance(found, type) else found)


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PluginError(f"{module!r} cannot be imported: {error}") from None


# --- what is shown --------------------------------------------------------------------------------


def _table(reports: Sequence[Report]) -> list[str]:
    rows = [["slot", "component", "obeyed", "broken", "exempt", "not tried"]]
    for found in reports:
        statuses = [result.status for result in found.results]
        counts = [str(statuses.count(status)) for status in _MARKS]
        if found.broken:
            counts[1] = paint(counts[1], _COLOURS["broken"], bold=True)
        rows.append([found.slot, found.component, *counts])
    return table(rows, left=2)


def _verbose(found: Report) -> list[str]:
    lines = [paint(f"{found.slot} {found.component}", bold=True)]
    for result in found.results:
        mark = paint(f"{_MARKS[result.status]:9}", _COLOURS.get(result.status))
        told = f"  {mark}  {result.law}: {result.says}"
        if result.why:
            told += f" ({result.why})" if result.status != "broken" else f" But {result.why}"
        lines += textwrap.wrap(told, max(60, _width()), subsequent_indent=" " * 13)
    return [*lines, *(f"  note       {note}" for note in found.notes)]


def _laws(width: int) -> list[str]:
    lines: list[str] = []
    for slot, laws in LAWS.items():
        lines += ["", paint(slot, bold=True)]
        for one in laws.values():
            told = f"  {one.name}: {one.says}"
            lines += textwrap.wrap(told, width, subsequent_indent="      ")
    return lines[1:]


def _width() -> int:
    return max(40, shutil.get_terminal_size((100, 24)).columns or 100)
