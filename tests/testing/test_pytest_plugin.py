"""The fixtures for the tests of plugins, in a pytest session of their own."""

import os
import subprocess
import sys
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import warm

TREE = str(Path(__file__).resolve().parents[1])  # where the broken components stand
TESTS = """
import kfac_lab as kl
import pytest
import torch
from broken.damping import Sound, _Unbounded


def test_check(kfac_lab_check):
    assert kfac_lab_check(Sound()).passed
    with pytest.raises(kl.testing.LawError):
        kfac_lab_check(_Unbounded())


def test_problem(kfac_lab_problem):
    assert isinstance(kfac_lab_problem, kl.Problem) and kfac_lab_problem.available == 24


def test_lab(kfac_lab_lab):
    assert kfac_lab_lab is not kl.lab and "paper" in kfac_lab_lab.names("recipe")
    kfac_lab_lab.register("damping", "sound", Sound)
    assert "sound" not in kl.lab.names("damping")


def test_device(kfac_lab_device):
    assert torch.zeros(1, device=kfac_lab_device).device.type == kfac_lab_device.type
"""

LIGHT = """
import sys

HEAVY = {"torch", "kfac_lab", "matplotlib"} & set(sys.modules)  # collected before any other file


def test_nothing_heavy_is_imported():
    assert "kfac_lab_pytest" in sys.modules and not HEAVY
"""


def session(run, folder):
    """A session of pytest's in the folder, in a process that ``run`` makes."""
    path = os.pathsep.join([TREE, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    others = ("cacheprovider", "anyio", "hypothesispytest", "nbval", "xdist")
    done = run(
        [sys.executable, "-m", "pytest", "-q", *(f"-pno:{name}" for name in others), "."],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_nothing_heavy_is_imported_before_a_fixture_is_used(tmp_path):
    (tmp_path / "test_light.py").write_text(LIGHT)
    session(partial(subprocess.run, capture_output=True, text=True), tmp_path)


def test_the_fixtures_are_there(tmp_path):
    (tmp_path / "test_fixtures.py").write_text(TESTS)
    session(warm.run, tmp_path)


def test_pytest_finds_them_by_an_entry_point_and_each_says_what_it_is():
    (point,) = [p for p in entry_points(group="pytest11") if p.name == "kfac_lab"]
    found = point.load()
    for name in ("check", "problem", "lab", "device"):
        assert f"``kfac_lab_{name}``" in found.__doc__
        assert f"kfac_lab_{name}" in found.__all__ and hasattr(found, f"kfac_lab_{name}")
