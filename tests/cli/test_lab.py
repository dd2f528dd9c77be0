"""``kfac-lab lab``: which notebook it opens, and what it hands to JupyterLab."""

import sys
from pathlib import Path

import pytest

from kfac_lab.cli import lab as module
from kfac_lab.cli import main
from kfac_lab.errors import KfacLabError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As in site-packages: the module somewhere else, with a packaged tour beside it."""
    home = tmp_path / "site-packages" / "kfac_lab" / "cli"
    (home / "notebooks").mkdir(parents=True)
    (home / "notebooks" / module.TOUR).write_text("the tour")
    monkeypatch.setattr(module, "__file__", str(home / "lab.py"))
    return home


def test_a_checkout_opens_its_own_tour(tmp_path: Path) -> None:
    assert module.tour(tmp_path) == ROOT / "notebooks" / module.TOUR
    assert list(tmp_path.iterdir()) == []


def test_an_installation_copies_the_tour_once(installed: Path, tmp_path: Path) -> None:
    path = module.tour(tmp_path)
    assert path == tmp_path / module.TOUR and path.read_text() == "the tour"
    path.write_text("with my own cells")
    assert module.tour(tmp_path).read_text() == "with my own cells"


def test_an_installation_without_a_tour_says_so(installed: Path, tmp_path: Path) -> None:
    (installed / "notebooks" / module.TOUR).unlink()
    with pytest.raises(KfacLabError, match="install kfac-lab again"):
        module.tour(tmp_path)


def test_jupyterlab_gets_the_notebook_and_the_options(monkeypatch, tmp_path: Path) -> None:
    calls = []
    monkeypatch.setattr(module.subprocess, "call", lambda command: calls.append(command) or 0)
    monkeypatch.chdir(tmp_path)
    assert main(["lab", "--", "--no-browser", "--port=9999"]) == 0
    tour = str(ROOT / "notebooks" / module.TOUR)
    assert calls == [[sys.executable, "-m", "jupyterlab", tour, "--no-browser", "--port=9999"]]


def test_without_jupyterlab_a_sentence(monkeypatch, capsys) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert main(["lab"]) == 2
    assert "the lab needs jupyterlab: pip install" in capsys.readouterr().err


def test_the_tour_is_packaged() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'"notebooks/{module.TOUR}"' in text and '"notebooks" = "kfac_lab/cli/notebooks"' in text
