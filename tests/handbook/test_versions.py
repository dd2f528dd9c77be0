"""One version for six distributions, and one place where it stands."""

import re

import kfac_lab as kl

from .conftest import ROOT

PROJECTS = (ROOT, *sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml")))


def test_every_distribution_takes_the_packages_version():
    assert len(PROJECTS) == 6
    for project in PROJECTS:
        text = (project / "pyproject.toml").read_text(encoding="utf-8")
        assert 'dynamic = ["version"]' in text and not re.search(r"^version =", text, re.M), project
        (path,) = re.findall(r'\[tool\.hatch\.version\]\npath = "(.+)"', text)
        assert (project / path).resolve() == ROOT / "kfac_lab" / "__init__.py"


def test_what_the_others_ask_of_the_package_is_there():
    now = tuple(map(int, kl.__version__.split(".")[:2]))
    for project in PROJECTS[1:]:
        text = (project / "pyproject.toml").read_text(encoding="utf-8")
        (asked,) = re.findall(r'"kfac-lab>=(\d+)\.(\d+)"', text)
        assert tuple(map(int, asked)) <= now
