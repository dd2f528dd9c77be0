"""``kfac-lab new-plugin``: what it writes works at once, and what it refuses leaves no trace."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import warm
from torch import Tensor

import kfac_lab as kl
from kfac_lab.cli import parser
from kfac_lab.cli.new_plugin import SLOTS, TEMPLATE, files, write
from kfac_lab.cli.template.damping import TrustRegion
from kfac_lab.hooks.registry import SLOTS as ALL

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "plugins" / "kfac-lab-example"
#: what the example has besides
MORE = {"LICENSE", "trust_region.ipynb"}
LEFT_BEHIND = {"__pycache__", ".pytest_cache", ".ipynb_checkpoints"}


# --- what it writes -----------------------------------------------------------------------------


def test_the_example_is_what_the_command_writes() -> None:
    tracked = {
        path.relative_to(EXAMPLE).as_posix(): path.read_bytes()
        for path in EXAMPLE.rglob("*")
        if path.is_file() and not LEFT_BEHIND & {*path.parts}
    }
    emitted = {name: text.encode() for name, text in files("kfac-lab-example").items()}
    emitted["pyproject.toml"] = of_this_checkout(emitted["pyproject.toml"])
    assert {name: tracked[name] for name in tracked if name not in MORE} == emitted
    assert set(tracked) - set(emitted) == MORE


def of_this_checkout(project: bytes) -> bytes:
    """The example has the version of the checkout, as the five others have."""
    own, ours = b'version = "0.1.0"\n', b'dynamic = ["version"]\n'
    wheel = b"[tool.hatch.build.targets.wheel]\n"
    place = b'[tool.hatch.version]\npath = "../../kfac_lab/__init__.py"\n\n'
    assert project.count(own) == project.count(wheel) == 1
    return project.replace(own, ours).replace(wheel, place + wheel)


def test_there_is_a_template_for_each_slot_named() -> None:
    modules = {path.stem for path in TEMPLATE.glob("*.py")} - {"__init__"}
    assert modules == set(SLOTS) and modules <= {*ALL, "view"}
    for slot, builtin in SLOTS.items():
        assert builtin in kl.lab.names(slot)


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One distribution for each slot, installed: on the path, with its metadata."""
    folder = tmp_path_factory.mktemp("new")
    for slot in SLOTS:
        made = write(f"kfac-lab-my.{slot}", slot, folder)
        project = tomllib.loads((made / "pyproject.toml").read_text())["project"]
        info = made / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        points = project["entry-points"]["kfac_lab"].items()
        lines = "".join(f"{name} = {module}\n" for name, module in points)
        (info / "entry_points.txt").write_text(f"[kfac_lab]\n{lines}")
    return folder


def _process(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process that has the distributions, and no other plugins."""
    path = [str(folder / f"kfac-lab-my.{slot}") for slot in SLOTS]
    names = ",".join(f"kfac-lab-my.{slot}" for slot in SLOTS)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*path, str(ROOT)]),
        "KFAC_LAB_PLUGINS": names,
        "OMP_NUM_THREADS": "1",
    }
    words = (sys.executable, "-W", "error::UserWarning", *words)
    return warm.run(words, folder, environment)


def test_each_passes_its_own_tests_at_once(seven: Path) -> None:
    done = _process(
        seven, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{3 * len(SLOTS)} passed" in done.stdout


def test_each_is_listed_without_a_remark(seven: Path) -> None:
    code = "import sys; from kfac_lab.cli import main; sys.exit(main())"
    done = _process(seven, "-c", code, "plugins")
    assert done.returncode == 0, done.stderr
    for slot in SLOTS:
        (row,) = [line for line in done.stdout.splitlines() if f"my.{slot}/" in line]
        assert row.split()[1:3] == ["0.1.0", "loaded"] and f"{slot} 1" in row


def test_each_is_tidy(seven: Path) -> None:
    words = [sys.executable, "-m", "ruff"]
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache", str(seven)]
    for how in (["check"], ["format", "--check"]):
        done = subprocess.run([*words, *how, *config], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_says_what_is_next(command, tmp_path: Path) -> None:
    done = command("new-plugin", "kfac-lab-mine", "--into", tmp_path, "--slot", "block")
    assert done.code == 0 and f"pip install -e '{tmp_path}/kfac-lab-mine[test]'" in done.out
    made = tmp_path / "kfac-lab-mine"
    written = {
        p.relative_to(made).as_posix(): p.read_text() for p in made.rglob("*") if p.is_file()
    }
    assert written == files("kfac-lab-mine", "block")
    assert [p.name for p in tmp_path.iterdir()] == ["kfac-lab-mine"]


def test_an_empty_folder_is_filled(command, tmp_path: Path) -> None:
    (tmp_path / "kfac-lab-mine").mkdir()
    assert command("new-plugin", "kfac-lab-mine", "--into", tmp_path).code == 0
    assert (tmp_path / "kfac-lab-mine" / "pyproject.toml").is_file()


def test_the_readmes_commands_are_commands() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.partition("#")[0] for line in page.splitlines() if line.startswith("kfac-lab ")]
    assert any(line.startswith("kfac-lab new-plugin ") for line in lines)
    for line in lines:
        assert parser().parse_args(shlex.split(line)[1:]).run


def test_the_readmes_own_plugin_obeys_the_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (source,) = [text for text in page.split("```python\n") if "class Gliding" in text]
    module = types.ModuleType("gliding")
    monkeypatch.setitem(sys.modules, "gliding", module)  # a dataclass looks its module up
    exec(source.partition("```")[0], module.__dict__)
    assert kl.testing.check(module.Gliding()).passed


# --- what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["my plugin"], "'my plugin' cannot be a distribution's name"),
        (["-mine-"], None),
        (["mine-"], "'mine-' cannot be a distribution's name"),
        (["../mine"], "'../mine' cannot be a distribution's name"),
        ([""], "'' cannot be a distribution's name"),
        (["3d-damping"], "would be the package '3d_damping', which Python cannot import"),
        (["lambda"], "would be the package 'lambda', which Python cannot import"),
        (["torch"], "there is a module 'torch' already"),
        (["kfac-lab"], "the plugin kfac-lab/paper is installed and has the name 'kfac-lab'"),
        (["KFAC_Lab"], "the plugin kfac-lab/paper is installed and has the name 'KFAC_Lab'"),
        (["kfac-lab-tied"], "the damping 'tied' is registered by kfac-lab already"),
        (["kfac-lab-mine", "--slot", "dumping"], "'dumping' with (did you mean 'damping'?)"),
        (["kfac-lab-full"], "kfac-lab-full is there already and is not empty"),
        (["kfac-lab-file"], "kfac-lab-file is there already and is not empty"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(
    command, tmp_path: Path, words: list[str], says: str | None
) -> None:
    (tmp_path / "kfac-lab-full").mkdir()
    (tmp_path / "kfac-lab-full" / "mine.txt").write_text("mine")
    (tmp_path / "kfac-lab-file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    if says is None:  # argparse takes it for an option
        with pytest.raises(SystemExit, match="2"):
            command("new-plugin", *words, "--into", tmp_path)
    else:
        done = command("new-plugin", *words, "--into", tmp_path)
        assert done.code == 2 and done.out == ""
        assert says in done.err and len(done.err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_not_there(command, tmp_path: Path) -> None:
    done = command("new-plugin", "kfac-lab-mine", "--into", tmp_path / "nowhere")
    assert done.code == 2 and "is no folder to put kfac-lab-mine into" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_installed_and_one_that_collides_by_slot(command, tmp_path: Path) -> None:
    lab = kl.lab
    plugin = type("Plugin", (), {"__name__": "p"})()
    lab.load_module(plugin, "somebody", distribution="kfac-lab-somebody")
    try:
        done = command("new-plugin", "kfac_lab.somebody", "--into", tmp_path)
        assert "kfac-lab-somebody/somebody is installed" in done.err
    finally:
        lab.unload("somebody")
    # the damping 'periodic' is nobody's; the schedule is
    assert command("new-plugin", "kfac-lab-periodic", "--into", tmp_path).code == 0
    done = command("new-plugin", "periodic", "--into", tmp_path, "--slot", "schedule")
    assert "the schedule 'periodic' is registered by kfac-lab already" in done.err


def test_writing_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text, count = Path.write_text, []

    def failing(path: Path, *args: object, **options: object) -> int:
        count.append(path)
        if len(count) == 3:
            raise OSError("no space left on device")
        return write_text(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", failing)
    with pytest.raises(OSError, match="no space"):
        write("kfac-lab-mine", "damping", tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- the trust region ---------------------------------------------------------------------------


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def adapted(
    rho: float, length: float, radius: float = 2.0, lam: float = 8.0
) -> tuple[float, float]:
    """λ and r after a step of this length that kept ρ of its promise."""
    record = kl.StepRecord(
        step=5,
        rho=number(rho),
        actual=number(-rho),
        norm_squared=number(length**2),
    )
    strength = kl.DampingStrength(number(8.0), number(8.0**0.5), number(0.0))
    new, part_state = TrustRegion().adapt(strength, {"radius": number(radius)}, record)
    assert float(new.gamma) == pytest.approx(float(new.lam) ** 0.5)
    return float(new.lam), float(part_state["radius"])


@pytest.mark.parametrize(
    ("rho", "length", "expected"),
    [
        (0.5, 2.0, (8.0, 2.0)),  # as promised, at the radius: nothing moves
        (0.5, 3.0, (12.0, 2.0)),  # too long: λ grows by as much
        (0.5, 1.0, (4.0, 2.0)),  # short of it: λ falls
        (0.5, 100.0, (16.0, 2.0)),  # at most by a factor of two
        (0.9, 2.0, (4.0, 4.0)),  # a good step: the radius doubles, λ follows
        (0.9, 0.5, (4.0, 2.0)),  # a good short one: the radius is wide enough
        (0.1, 2.0, (16.0, 1.0)),  # a bad step: half of its length
        (0.1, 0.5, (16.0, 0.25)),  # also of a short one, where the radius was too wide
        (-1.0, 2.0, (16.0, 1.0)),
        (float("nan"), 2.0, (16.0, 1.0)),
        (0.9, 0.0, (8.0, 2.0)),  # no step at all says nothing
    ],
)
def test_the_radius_goes_by_rho_and_lambda_by_the_radius(
    rho: float, length: float, expected: tuple[float, float]
) -> None:
    assert adapted(rho, length) == pytest.approx(expected)


def test_the_first_radius_is_the_first_steps_length() -> None:
    assert adapted(0.5, 3.0, radius=float("nan")) == (8.0, 3.0)


def test_uphill_is_bad_whatever_rho_says() -> None:
    """M itself may promise an increase, and then ρ is positive."""
    record = kl.StepRecord(5, rho=number(1.0), actual=number(0.1), norm_squared=number(4.0))
    strength = kl.DampingStrength(number(8.0), number(1.0), number(0.0))
    new, part_state = TrustRegion().adapt(strength, {"radius": number(2.0)}, record)
    assert (float(new.lam), float(part_state["radius"])) == (16.0, 1.0)


def test_lambda_holds_the_steps_length_on_a_quadratic() -> None:
    """‖(A + λI)⁻¹b‖ = r has one solution λ ≥ 0, and where the radius stays λ finds it."""
    a = torch.diag(torch.tensor([10.0, 1.0, 0.1], dtype=torch.float64))
    b = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    rule, eta = TrustRegion(lam=100.0), number(0.0)
    strength = kl.DampingStrength(number(100.0), number(10.0), eta)
    part_state = {"radius": number(1.5)}
    for step in range(60):
        delta = torch.linalg.solve(a + strength.lam * torch.eye(3, dtype=torch.float64), -b)
        record = kl.StepRecord(
            step, rho=number(0.5), actual=number(-1.0), norm_squared=delta.dot(delta)
        )
        strength, part_state = rule.adapt(strength, part_state, record)
    assert float(delta.norm()) == pytest.approx(1.5, rel=1e-6)
    assert float(strength.lam) > 0 and float(part_state["radius"]) == 1.5


def test_bounds_in_their_order() -> None:
    with pytest.raises(kl.RecipeError, match="must not be above upper"):
        kl.lab.register("damping", "region_tried", TrustRegion)
        try:
            kl.lab.component("damping", "region_tried(lower=0.8)")
        finally:
            kl.lab.registry.discard("notebook", "")
