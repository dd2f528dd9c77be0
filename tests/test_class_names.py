"""A class's name says which one it is: no two of the package share one."""

import ast
from collections import defaultdict
from pathlib import Path

import kfac_lab

PACKAGE = Path(kfac_lab.__file__).parent


def classes(source: str) -> list[str]:
    return [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def test_no_two_classes_of_the_package_share_a_name():
    places = defaultdict(list)
    for file in PACKAGE.rglob("*.py"):
        if "template" in file.parts:  # a new plugin's own
            continue
        for name in classes(file.read_text(encoding="utf-8")):
            places[name].append(str(file.relative_to(PACKAGE)))
    assert len(places) > 300
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_classes_in_functions_and_classes_count_too():
    assert classes("class A:\n    class B: pass\ndef f():\n    class C: pass\n") == ["A", "B", "C"]
