"""``kfac-lab components`` and ``kfac-lab plugins``; the handbook's tables come from here too."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from kfac_lab.cli.terminal import LiveLines, paint, table
from kfac_lab.core import files
from kfac_lab.core.parameters import Description, cited, describe, did_you_mean
from kfac_lab.errors import KfacLabError, RecipeError
from kfac_lab.hooks import lab
from kfac_lab.hooks.manager import Plugin
from kfac_lab.hooks.registry import FAMILIES, Entry

__all__ = ["BEGIN", "END", "between", "components", "markdown", "plugins"]

BEGIN, END = "<!-- components:begin -->", "<!-- components:end -->"


def components(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    entries = _entries(options.slot)
    if options.into is not None:
        page = options.into.read_text(encoding="utf-8")
        files.write(options.into, between(page, markdown(entries), options.into))
        print(f"wrote {options.into}")
    elif options.markdown:
        print(markdown(entries))
    else:
        LiveLines().say("\n".join(_listing(entries)))
    return 0


def _entries(slot: str | None) -> list[Entry]:
    if slot is not None and slot not in FAMILIES:
        raise RecipeError(
            f"there is no slot {slot!r}{did_you_mean(slot, FAMILIES)}; "
            f"there are {', '.join(FAMILIES)}"
        )
    return lab.components(slot)


def _parameters(entry: Entry) -> Sequence[Description]:
    """What its text can name; problems and views are made by functions, recipes are text."""
    return () if entry.slot in ("problem", "recipe", "view") else describe(entry.component)


# --- in the terminal ------------------------------------------------------------------------------


def _listing(entries: Sequence[Entry]) -> list[str]:
    lines: list[str] = []
    width = max(40, shutil.get_terminal_size((100, 24)).columns or 100)
    for slot in dict.fromkeys(entry.slot for entry in entries):
        lines += ["", paint(slot, bold=True)]
        for entry in (each for each in entries if each.slot == slot):
            name = lab.registry.written(entry)
            tail = ", ".join(part for part in (entry.reference, entry.owner) if part)
            told = f"  {name}  {entry.summary}  [{tail}]"
            shown = textwrap.fill(told, width, subsequent_indent="      ")
            lines.append(shown.replace(name, paint(name, 33), 1))
            rows = [
                [
                    f"      {known.name}",
                    known.symbol,
                    "required" if known.required else f"= {_value(known.default)}",
                    _allowed(known),
                    cited(known.section),
                    known.help,
                ]
                for known in _parameters(entry)
            ]
            lines += table(rows, left=6) if rows else []
    return lines[1:]


def _value(value: object) -> str:
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
        return f"{value:.1f}"
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _allowed(known: Description) -> str:
    """What a parameter may be: its choices, its bounds, or its kind."""
    if known.choices is not None:
        told = " | ".join(_value(choice) for choice in known.choices)
    elif known.low is not None and known.high is not None:
        told = f"{known.low:g} … {known.high:g}"
    elif known.low is not None:
        told = f"≥ {known.low:g}"
    elif known.high is not None:
        told = f"≤ {known.high:g}"
    else:
        told = {"bool": "True | False"}.get(known.kind, "")
    return f"{told} or None".removeprefix(" or ") if known.optional and told else told


# --- in a page ------------------------------------------------------------------------------------


def markdown(entries: Sequence[Entry]) -> str:
    """The entries as one Markdown table; parameters as ``name`` symbol = default (range)."""
    lines = [
        "| slot | name | what | parameters (symbol = default, range) | section | from |",
        "|---|---|---|---|---|---|",
    ]
    before = ""
    for entry in entries:
        slot = "" if entry.slot == before else f"**{entry.slot}**"
        before = entry.slot
        cells = [
            slot,
            f"`{lab.registry.written(entry)}`",
            _escaped(entry.summary),
            "<br>".join(_written(known) for known in _parameters(entry)),
            _escaped(entry.reference.removeprefix("section ").removeprefix("§")),
            entry.owner,
        ]
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    return "\n".join(lines)


def _written(known: Description) -> str:
    symbol = f" {_escaped(known.symbol)}" if known.symbol else ""
    default = "" if known.required else f" = {_escaped(_value(known.default))}"
    allowed = _allowed(known)
    return f"`{known.name}`{symbol}{default}" + (f" ({_escaped(allowed)})" if allowed else "")


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ").replace("*", "\\*").replace("<", "&lt;")


def between(page: str, inside: str, path: Path | str = "the page") -> str:
    """The page with ``inside`` between its two comments.

    Raises:
        KfacLabError: it does not have both, once and in order.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in tail or END in tail:
        raise KfacLabError(f"{path} needs the lines {BEGIN} and {END}, once each, in this order")
    return f"{head}{BEGIN}\n{inside}\n{END}{tail}"


# --- plugins --------------------------------------------------------------------------------------


def plugins(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code: 1 where ``--why`` names one that failed."""
    if options.why is not None:
        plugin = lab.plugin(options.why)
        LiveLines().say("\n".join(_why(plugin)))
        return int(plugin.status == "FAILED")
    rows = [["plugin", "version", "status", "import", "brings"]]
    for plugin in lab.plugins():
        slots = [f"{slot} {len(names)}" for slot, names in plugin.slots.items()]
        took = "" if plugin.seconds is None else f"{plugin.seconds:.2f} s"
        brings = ", ".join([*slots, *plugin.hooks])
        rows.append([plugin.qualified, plugin.version, plugin.status, took, brings])
    lines = table(rows, left=len(rows[0]))
    for plugin in lab.plugins():
        if plugin.why:
            lines.append(f"{plugin.qualified}: {plugin.why}")
    LiveLines().say("\n".join(lines))
    return 0


def _why(plugin: Plugin) -> list[str]:
    lines = [f"{plugin.qualified} {plugin.version}: {plugin.status}"]
    if plugin.seconds is not None:
        lines.append(f"took {plugin.seconds:.2f} s to import and register")
    lines += plugin.notes + plugin.collisions
    lines += [f"{slot}: {', '.join(names)}" for slot, names in plugin.slots.items()]
    if plugin.hooks:
        lines.append(f"hooks: {', '.join(plugin.hooks)}")
    if plugin.traceback:
        lines += ["", plugin.traceback.rstrip()]
    return lines
