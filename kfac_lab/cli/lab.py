"""``kfac-lab lab``: JupyterLab, open on the tour."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from kfac_lab.errors import KfacLabError

__all__ = ["TOUR", "lab", "tour"]

TOUR = "01_tour.ipynb"


def lab(options: argparse.Namespace) -> int:
    """Opens JupyterLab on the tour; what stands behind ``--`` is JupyterLab's."""
    for module in ("jupyterlab", "ipywidgets", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            raise KfacLabError(f"the lab needs {module}: pip install 'kfac-lab[lab]'")
    path = tour(Path.cwd())
    print(f"opening {path}", flush=True)
    more = [option for option in options.more if option != "--"]
    try:
        return subprocess.call([sys.executable, "-m", "jupyterlab", str(path), *more])
    except KeyboardInterrupt:  # JupyterLab got it too and has asked what it asks
        return 0


def tour(folder: Path) -> Path:
    """The tour: as it stands in a checkout, else a copy in the folder, made where none is there.

    Raises:
        KfacLabError: this installation has no tour.
    """
    here = Path(__file__).resolve()
    checkout = here.parents[2] / "notebooks" / TOUR
    if checkout.is_file() and (here.parents[2] / "pyproject.toml").is_file():
        return checkout
    packaged, copy = here.parent / "notebooks" / TOUR, folder / TOUR
    if not copy.exists():
        if not packaged.is_file():
            raise KfacLabError(f"this installation has no {TOUR}: install kfac-lab again")
        shutil.copyfile(packaged, copy)
    return copy
