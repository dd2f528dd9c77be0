"""Fixtures for the tests of plugins; pytest finds them wherever kfac_lab is installed.

    def test_my_damping(kfac_lab_check):
        kfac_lab_check(Mine(lam=3.0))

* ``kfac_lab_check``: ``kfac_lab.testing.check``; LawError where a component breaks a law.
* ``kfac_lab_problem``: a tiny seeded Problem, made anew for each test: 24 cases, 7-5-4-3 units.
* ``kfac_lab_lab``: a Lab of its own with the built-ins and the installed plugins.
* ``kfac_lab_device``: each device that torch has here, one test for each.

This module stands beside the package and not in it, since every pytest session here imports it, and
the package imports torch: that waits until a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from kfac_lab import Problem
    from kfac_lab.hooks import Lab
    from kfac_lab.testing import Report

__all__ = ["kfac_lab_check", "kfac_lab_device", "kfac_lab_lab", "kfac_lab_problem"]


@pytest.fixture
def kfac_lab_check() -> Callable[..., Report]:
    """``kfac_lab.testing.check``: tries every law of a component's slot on it."""
    from kfac_lab.testing import check

    return check


@pytest.fixture
def kfac_lab_problem() -> Problem:
    """A tiny seeded problem: 24 cases, a network of 7-5-4-3 units, Bernoulli outputs, float32."""
    import torch

    from kfac_lab.testing.subjects import tiny_problem

    with torch.random.fork_rng(devices=[]):
        return tiny_problem()


@pytest.fixture
def kfac_lab_lab() -> Lab:
    """A Lab with the built-ins and the installed plugins; what a test registers stays in it."""
    from kfac_lab.hooks import Lab

    return Lab()


@pytest.fixture
def kfac_lab_device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that torch has here: the CPU, and CUDA where it is."""
    import torch

    return torch.device(request.param)


def pytest_generate_tests(metafunc: Any) -> None:
    """A test that takes ``kfac_lab_device`` runs once on each device."""
    if "kfac_lab_device" in metafunc.fixturenames:
        import torch

        devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
        metafunc.parametrize("kfac_lab_device", devices, indirect=True)
