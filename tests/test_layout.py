"""The house rules of import: who may import whom, and what an import may load.

The contracts in pyproject.toml say who must not import whom; here stand the allow-lists, the weight
of `import kfac_lab`, and what no file of the tree may contain.
"""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kfac_lab.errors

ROOT = Path(__file__).resolve().parents[1]
STDLIB = sys.stdlib_module_names


# ---- allow-lists ---------------------------------------------------------------------------------


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path, forwarded: bool = True) -> Iterator[tuple[int, str, str]]:
    """Yield (line, module, name) of every import in a file; `name` is "" for `import module`.

    Relative imports come resolved. Imports under `if TYPE_CHECKING:` load nothing and are left out;
    without ``forwarded`` also those of functions called ``__getattr__``.
    """
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        if isinstance(node, ast.FunctionDef) and node.name == "__getattr__" and not forwarded:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, module, alias.name) for alias in node.names)
        todo += ast.iter_child_nodes(node)


def inside(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def strangers(folder: str, allowed: set[str]) -> list[str]:
    """Return the imports of a folder that are neither allowed nor the standard library's."""
    return [
        f"{path.relative_to(ROOT)}:{line} imports {module} {name}".rstrip()
        for path in python_files(folder)
        for line, module, name in imports(path)
        if module.partition(".")[0] not in STDLIB
        and not inside(module, allowed)
        and not (name and inside(f"{module}.{name}", allowed))
    ]


def test_core_imports_only_torch_and_errors() -> None:
    assert python_files("kfac_lab/core")
    assert strangers("kfac_lab/core", {"torch", "kfac_lab.core", "kfac_lab.errors"}) == []


def test_paper_imports_only_core_and_hookimpl() -> None:
    assert python_files("kfac_lab/paper")
    homes = ("kfac_lab", "kfac_lab.hooks", "kfac_lab.hooks.specs")
    hookimpl = {f"{home}.hookimpl" for home in homes}
    core = {"torch", "kfac_lab.core", "kfac_lab.errors", "kfac_lab.paper"}
    assert strangers("kfac_lab/paper", core | hookimpl) == []


PLUGINS = sorted(p.parent for p in (ROOT / "plugins").glob("*/pyproject.toml"))
# what is open to outsiders
OPEN = (
    "hookimpl",
    "lab",
    "traits",
    "DampingStrength",
    "StepRecord",
    "Due",
    "Vec",
    "errors",
    "core",
)
OPEN += ("history", "plots")


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.name)
def test_plugins_import_only_what_outsiders_may(plugin: Path) -> None:
    """Core and what ``kl.…`` offers; never the engine, the run or the hooks' insides."""
    package = plugin / plugin.name.replace("-", "_")
    assert python_files(str(package.relative_to(ROOT)))
    allowed = {"torch", package.name, *(f"kfac_lab.{name}" for name in OPEN)}
    allowed |= {f"kfac_lab.{name}" for name in kfac_lab.errors.__all__}
    found = strangers(str(package.relative_to(ROOT)), allowed)
    assert [x for x in found if not x.endswith("imports kfac_lab")] == []  # import kfac_lab as kl
    for path in python_files(str(package.relative_to(ROOT))):
        used = set(re.findall(r"\bkl\.(\w+)", path.read_text(encoding="utf-8")))
        public = set(OPEN) | set(kfac_lab.errors.__all__)
        assert used <= public, f"{path.name} uses kl.{', kl.'.join(sorted(used - public))}"


def test_oracles_import_only_torch_and_numpy() -> None:
    """An oracle that used the code under test would agree with its mistakes."""
    assert python_files("tests/oracles")
    allowed = {"torch", "numpy", "pytest", "oracles", "tests.oracles"}
    assert strangers("tests/oracles", allowed) == []


def test_the_import_reader_sees_through_every_form(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "pkg" / "sub" / "mod.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import a.b\n"
        "from . import c\n"
        "from ..d import e\n"
        "def f():\n    import g\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import h\n"
    )
    found = {(module, name) for _, module, name in imports(path)}
    assert found == {
        ("a.b", ""),
        ("pkg.sub", "c"),
        ("pkg.d", "e"),
        ("g", ""),
        ("typing", "TYPE_CHECKING"),
    }
    assert len(strangers("pkg", {"pkg"})) == 2


# ---- no import circles ---------------------------------------------------------------------------


def modules_in(folder: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in python_files(folder):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def circles(modules: dict[str, Path]) -> list[list[str]]:
    """The groups of modules that import one another, at the top or inside a function."""
    graph = {}
    for name, path in modules.items():
        # a module's own __getattr__ hands on a name of old: nothing in the module needs it
        told = {
            f"{base}.{what}" if f"{base}.{what}" in modules else base
            for _, base, what in imports(path, forwarded=False)
        }
        graph[name] = {other for other in told if other in modules and other != name}
    reach = {name: set(graph[name]) for name in graph}
    changed = True
    while changed:
        changed = False
        for seen in reach.values():
            more = set().union(*(reach[other] for other in seen)) - seen if seen else set()
            changed |= bool(more)
            seen |= more
    groups = {frozenset(o for o in reach[n] if n in reach[o]) for n in reach if n in reach[n]}
    return sorted(sorted(group) for group in groups)


@pytest.mark.parametrize(
    "folder", ["kfac_lab", *(f"plugins/{p.name}/{p.name.replace('-', '_')}" for p in PLUGINS)]
)
def test_no_import_circles(folder: str) -> None:
    """A module that imports its own package is in one: the package imports the module."""
    assert modules_in(folder)
    assert circles(modules_in(folder)) == []


def test_a_circle_is_found_in_every_form(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    texts = {
        "__init__": "",
        "a": "from pkg import b\n",
        "b": "def later():\n    from pkg.c import x\n",
        "c": "from . import a\n",
        "low": "import torch\n",
        "sub/__init__": "from pkg.sub.own import f\n",
        "sub/own": "from pkg import low, sub\n",
        "old": "def __getattr__(name):\n    from pkg.new import moved\n    return moved\n",
        "new": "import pkg.old\n",
    }
    for name, text in texts.items():
        path = tmp_path / "pkg" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    wrong = [["pkg.a", "pkg.b", "pkg.c"], ["pkg.sub", "pkg.sub.own"]]
    assert circles(modules_in("pkg")) == wrong


# ---- one idea a file -----------------------------------------------------------------------------

LONGEST = 400  # lines


def longer(paths: list[Path]) -> list[str]:
    """The Python files that are longer than a file may be, with their lines."""
    counted = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in paths}
    return [f"{p.relative_to(ROOT)}: {n} lines" for p, n in counted.items() if n > LONGEST]


def test_no_file_is_long() -> None:
    paths = [path for path in tracked_files() if path.suffix == ".py"]
    assert len(paths) > 500
    assert longer(paths) == []


def test_a_long_file_is_noticed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for lines in (LONGEST, LONGEST + 1):
        (tmp_path / f"of_{lines}.py").write_text("x = 1\n" * lines)
    assert longer(sorted(tmp_path.glob("*.py"))) == ["of_401.py: 401 lines"]


# ---- what ARCHITECTURE.md says is so -------------------------------------------------------------


def named_files(text: str) -> list[tuple[str, Path | None]]:
    """Every file in backquotes and where it is: named from the root, the package or a folder.

    A bare name is looked for in the folders that its line names before it.
    """
    found = []
    for line in text.splitlines():
        folders = [ROOT, ROOT / "kfac_lab", ROOT / "tests"]
        for name in re.findall(r"`([\w./-]+)`", line):
            if name.endswith("/"):
                folders.append(ROOT / "kfac_lab" / name)
            elif re.search(r"\.(py|js|json|md|toml)$", name):
                there = [f / name for f in folders if (f / name).is_file()]
                found.append((name, there[-1] if there else None))
                if there and "/" in name:
                    folders.append(there[-1].parent)
    return found


def test_every_file_that_architecture_names_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = named_files(text)
    assert len(named) > 100
    assert [name for name, path in named if path is None] == []


def test_architecture_describes_every_folder() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    folders = {path.parent for path in python_files("kfac_lab")} - {ROOT / "kfac_lab"}
    said = {f"{folder.relative_to(ROOT / 'kfac_lab')}/" for folder in folders}
    assert said - set(re.findall(r"`([\w/]+/)`", text)) == set()


def test_every_file_of_engine_run_and_optim_is_named() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    text += (ROOT / "kfac_lab/engine/__init__.py").read_text(encoding="utf-8")
    files = [p for f in ("engine", "run", "optim") for p in (ROOT / "kfac_lab" / f).glob("*.py")]
    names = [p.stem for p in files if p.stem != "__init__"]
    assert [n for n in names if not re.search(rf"\b{n}(\.py`|  )", text)] == []


def test_a_file_that_is_not_there_is_noticed() -> None:
    named = dict(named_files("`core/` has `state.py`, `gone.py`\n`engine/step.py`, `swap.py`"))
    assert [name for name, path in named.items() if path is None] == ["gone.py"]
    assert named["state.py"] == ROOT / "kfac_lab/core/state.py"


# ---- what `import kfac_lab` loads ----------------------------------------------------------------


def loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh interpreter holds after running `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_import_is_light() -> None:
    loaded = loaded_by("import kfac_lab")
    assert "kfac_lab" in loaded
    heavy = {"matplotlib", "ipywidgets", "IPython", "jupyterlab", "sklearn", "pandas", "pytest"}
    assert loaded & heavy == set()


@pytest.mark.usefixtures("third_party_plugins")
def test_import_loads_no_third_party_plugin(tmp_path: Path, monkeypatch) -> None:
    """A plugin that is installed, and allowed, still waits for the first use of a name."""
    (tmp_path / "kfac_lab_bystander.py").write_text("")
    info = tmp_path / "kfac_lab_bystander-1.0.dist-info"
    info.mkdir()
    named = "Metadata-Version: 2.1\nName: kfac-lab-bystander\nVersion: 1.0\n"
    (info / "METADATA").write_text(named)
    (info / "entry_points.txt").write_text("[kfac_lab]\nbystander = kfac_lab_bystander\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "kfac_lab_bystander" not in loaded_by("import kfac_lab")
    entry = "import importlib.metadata as m; [e.load() for e in m.entry_points(group='kfac_lab')]"
    assert "kfac_lab_bystander" in loaded_by(entry), "the bystander was not installed well enough"


def test_package_is_typed() -> None:
    found = importlib.util.find_spec("kfac_lab")
    assert found is not None and found.origin is not None
    assert (Path(found.origin).parent / "py.typed").is_file()


# ---- what no file may contain --------------------------------------------------------------------

# Put together here, so that this file does not contain what it looks for.
MACHINE = ["/" + name + "/" for name in ("work", "farm", "root")]
HOSTS = [
    ".".join(parts)
    for parts in (
        ("files", "pythonhosted"),
        ("pypi", "org"),
        ("registry", "npmjs"),
        ("deb", "debian"),
        ("download", "pytorch"),
        ("conda", "anaconda"),
    )
]


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout: the tracked tree is unknown")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_machine_path_and_no_registry_host() -> None:
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" not in content:
            text = content.decode("utf-8", errors="replace")
            found += [(str(path.relative_to(ROOT)), n) for n in MACHINE + HOSTS if n in text]
    assert found == []


def test_ci_constraints_pin_torch() -> None:
    lines = (ROOT / ".ci/constraints.txt").read_text().split()
    assert [line for line in lines if line.startswith("torch==")]


# ---- the Makefile --------------------------------------------------------------------------------


def dry_run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["make", "-n", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_demo_passes_seconds_through() -> None:
    assert "kfac-lab demo --seconds 5" in dry_run("demo", "SECONDS=5")
    assert "kfac-lab demo --seconds 5" in dry_run("demo", SECONDS="5")
    assert "--seconds" not in dry_run("demo")


def test_make_names_the_python_it_cannot_use(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "lint", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "needs Python 3.10 or newer" in done.stderr
