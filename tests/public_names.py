"""What the package offers by name: modules, their names, components, recipes, commands.

``python tests/public_names.py`` writes ``public_names.json`` anew, which is for a release alone: a
name that went away would go unnoticed.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import textwrap
from pathlib import Path
from typing import Any

import kfac_lab as kl
from kfac_lab.hooks.manager import Lab

RECORD = Path(__file__).with_suffix(".json")
#: text that a new plugin starts from
LEFT_OUT = ("kfac_lab.cli.template",)


def modules() -> list[str]:
    """Every module of the package."""
    names = ["kfac_lab"]
    for found in pkgutil.walk_packages(kl.__path__, "kfac_lab."):
        if not found.name.startswith(LEFT_OUT):
            names.append(found.name)
    return sorted(names)


def offered(module: str) -> list[str]:
    """``__all__``, or else what the module itself defines without an underscore."""
    made = importlib.import_module(module)
    if hasattr(made, "__all__"):
        return sorted(made.__all__)
    tree = ast.parse(Path(inspect.getsourcefile(made)).read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        names |= {t.id for t in targets if isinstance(t, ast.Name)}
    return sorted(name for name in names if not name.startswith("_"))


def members(name: str) -> list[str]:
    """The public methods, properties, fields and attributes of one of ``kl``'s classes."""
    found = getattr(kl, name)
    if not inspect.isclass(found):
        return []
    names: set[str] = set()
    for base in found.__mro__:
        if base.__module__.startswith("kfac_lab"):
            names |= {*vars(base), *inspect.get_annotations(base)}
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
            stored = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute))
            names |= {n.attr for n in stored if isinstance(n.ctx, ast.Store) and _self(n.value)}
    return sorted(n for n in names if not n.startswith("_"))


def _self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def commands() -> list[str]:
    """The commands of ``kfac-lab`` and their options."""
    from kfac_lab.cli import parser

    told = []
    for action in parser()._actions:
        for command, sub in (action.choices or {}).items() if action.nargs == "A..." else ():
            options = [o for a in sub._actions for o in a.option_strings or [a.dest]]
            told += [command, *(f"{command} {option}" for option in options)]
    return sorted(told)


def components(lab: Lab) -> dict[str, list[str]]:
    """slot → the names in the box, and what their fields are called."""
    found: dict[str, list[str]] = {}
    for entry in lab.registry.entries():
        if entry.slot != "recipe":
            signature = inspect.signature(entry.component)
            named = ", ".join(signature.parameters)
            found.setdefault(entry.slot, []).append(f"{entry.name}({named})")
    return {slot: sorted(names) for slot, names in sorted(found.items())}


def recipes(lab: Lab) -> dict[str, str]:
    """name → the registered text of each named recipe."""
    return {e.name: e.component for e in lab.registry.entries("recipe")}


def collected() -> dict[str, Any]:
    """All of it."""
    lab = Lab(entry_points=False)
    lab.load()
    return {
        "modules": {module: offered(module) for module in modules()},
        "members": {name: members(name) for name in sorted(kl.__all__)},
        "components": components(lab),
        "recipes": recipes(lab),
        "commands": commands(),
    }


if __name__ == "__main__":
    RECORD.write_text(json.dumps(collected(), indent=1, ensure_ascii=False) + "\n")
