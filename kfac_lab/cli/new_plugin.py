"""``kfac-lab new-plugin``: a distribution that installs, registers and passes its tests at once.

The component comes from a module of ``template/``, one per slot; there they are ordinary modules,
which the package's own checks read. The files around it are texts with $-placeholders.
"""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import os
import re
import shutil
from pathlib import Path
from string import Template

from kfac_lab.core.parameters import did_you_mean
from kfac_lab.errors import PluginError
from kfac_lab.hooks import lab

__all__ = ["SLOTS", "files", "new_plugin", "write"]

TEMPLATE = Path(__file__).parent / "template"

#: the slots that there is a component for, and the built-in part that the README swaps it for
SLOTS = {
    "damping": "levenberg_marquardt",
    "block": "kronecker",
    "estimator": "sampled",
    "momentum": "optimal",
    "schedule": "periodic",
    "batch": "exponential",
    "average": "polyak",
    "view": "iterations",
}

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_REGISTER = re.compile(r'register\("(?P<part>\w+)", \w+, summary="(?P<summary>[^"]*)"')


def new_plugin(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    folder = write(options.name, options.slot, options.into)
    print(
        f"wrote {folder}; next:\n\n  pip install -e '{folder}[test]'\n"
        f"  kfac-lab check {options.name}\n  pytest {folder}"
    )
    return 0


def write(name: str, slot: str, into: Path) -> Path:
    """Writes the distribution ``name`` as a folder in ``into``; whole or not at all.

    Raises:
        PluginError: a name that none can have or that somebody has, a slot that there is nothing
            for, a folder that is not empty; nothing is written then.
    """
    contents = files(name, slot)
    _check_free(name, slot)
    folder = into / name
    if not into.is_dir():
        raise PluginError(f"{into} is no folder to put {name} into")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PluginError(f"{folder} is there already and is not empty")
    temporary = into / f".{name}.{os.getpid()}"
    try:
        for path, text in contents.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8", newline="\n")
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def files(name: str, slot: str = "damping") -> dict[str, str]:
    """The distribution's files: path → text.

    Raises:
        PluginError: a name that no distribution or package can have, or an unknown slot.
    """
    if slot not in SLOTS:
        raise PluginError(
            f"new-plugin has nothing to begin a {slot!r} with{did_you_mean(slot, SLOTS)}; it has "
            f"{', '.join(SLOTS)}"
        )
    package, part = _names(name)
    module = _text(f"{slot}.py")
    registered = _REGISTER.search(module)
    assert registered is not None, f"template/{slot}.py registers nothing"
    start, end = registered.span("part")
    values = {
        "name": name,
        "package": package,
        "part": part,
        "slot": slot,
        "summary": registered["summary"],
        "builtin": SLOTS[slot],
    }

    def filled(path: str) -> str:
        own = path.replace(".", f"_{slot}.", 1)  # a slot that no recipe has needs other words
        return Template(_text(own if (TEMPLATE / own).is_file() else path)).substitute(values)

    return {
        ".gitignore": _text("gitignore.in"),
        "README.md": filled("README.md.in"),
        "pyproject.toml": filled("pyproject.toml.in"),
        f"{package}/__init__.py": module[:start] + part + module[end:],
        f"{package}/py.typed": "",
        f"tests/test_{part}.py": filled("test_plugin.py.in"),
    }


def _text(path: str) -> str:
    return (TEMPLATE / path).read_text(encoding="utf-8")


def _names(name: str) -> tuple[str, str]:
    """The package of a distribution, and the name of its component."""
    if not _NAME.fullmatch(name):
        raise PluginError(
            f"{name!r} cannot be a distribution's name: it is made of letters, digits, '-', '_' "
            "and '.', and begins and ends with a letter or a digit"
        )
    package = _normal(name)
    if not package.isidentifier() or keyword.iskeyword(package):
        raise PluginError(
            f"{name!r} would be the package {package!r}, which Python cannot import; choose a name "
            "that begins with a letter and is no word of the language"
        )
    part = package.removeprefix("kfac_lab_")
    return package, part if part.isidentifier() and not keyword.iskeyword(part) else package


def _normal(name: str) -> str:
    """What two spellings of one distribution's name have in common; its package."""
    return re.sub(r"[-_.]+", "_", name).lower()


def _check_free(name: str, slot: str) -> None:
    """Nobody must have the distribution's, the package's or the component's name already."""
    package, part = _names(name)
    for plugin in lab.plugins():
        if _normal(name) in map(_normal, (plugin.name, plugin.distribution)):
            raise PluginError(
                f"the plugin {plugin.qualified} is installed and has the name {name!r} already; "
                "choose another name"
            )
    if importlib.util.find_spec(package) is not None:
        raise PluginError(f"there is a module {package!r} already; choose another name")
    if (slot, part) in lab.registry:
        taken = lab.entry(slot, part)
        raise PluginError(
            f"the {slot} {part!r} is registered by {taken.owner} already; choose another name"
        )
