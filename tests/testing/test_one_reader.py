"""What a part needs and has is read by ``traits`` alone, never looked up with a default."""

import ast
from dataclasses import fields
from pathlib import Path

import kfac_lab
from kfac_lab.core import traits as module

ROOT = Path(kfac_lab.__file__).parents[1]
READER = ROOT / "kfac_lab" / "core" / "traits.py"
KINDS = [
    kind
    for name in module.__all__
    if isinstance(kind := getattr(module, name), type) and issubclass(kind, module.Traits)
]


def names() -> set[str]:
    """Every trait, and every attribute that said one before."""
    found = set()
    for known in (f for kind in KINDS for f in fields(kind)):
        found |= {known.name, *(known.metadata.get("old") or ())}
    return found


def lookups(source: str) -> list[tuple[int, str]]:
    """Line and name of each ``getattr`` with a default, and of each ``hasattr``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            name = node.args[1]
            asks = node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3)
            if asks and isinstance(name, ast.Constant):
                found.append((node.lineno, str(name.value)))
    return found


def test_no_trait_is_looked_up_elsewhere():
    packages = [ROOT / "kfac_lab", *ROOT.glob("plugins/*/kfac_lab_*")]
    asked = []
    for path in (p for package in packages for p in package.rglob("*.py") if p != READER):
        for line, name in lookups(path.read_text(encoding="utf-8")):
            if name in names():
                asked.append(f"{path.relative_to(ROOT)}:{line} {name}")
    assert asked == []


def test_the_finder_finds():
    assert lookups("getattr(x, 'a', 1); hasattr(x, 'b'); getattr(x, 'c'); f(x, 'd', 1)") == [
        (1, "a"),
        (1, "b"),
    ]
    assert {"grounded", "needs_rho", "low_rank", "retry", "inverses", "upper"} <= names()
    assert {"plot", "wants", "network", "state_"} <= names()  # of views, and of what they look at
