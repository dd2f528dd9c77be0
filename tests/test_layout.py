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


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line, module, name) of every import in a file; `name` is "" for `import module`.

    Relative imports come resolved. Imports under `if TYPE_CHECKING:` load nothing and are left out.
    """
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
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
