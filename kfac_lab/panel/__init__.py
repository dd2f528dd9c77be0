"""The live panel for JupyterLab: `kl.Panel(run)`; ipywidgets is imported when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from kfac_lab.errors import KfacLabError

if TYPE_CHECKING:
    from kfac_lab.panel.panel import Panel
    from kfac_lab.panel.watching import Watch as watch

__all__ = ["Panel", "watch"]


def __getattr__(name: str) -> Any:
    if name in ("Panel", "watch"):
        for module in ("ipywidgets", "matplotlib"):
            if importlib.util.find_spec(module) is None:
                raise KfacLabError(f"the panel needs {module}: pip install 'kfac-lab[lab]'")
        if name == "watch":
            return importlib.import_module("kfac_lab.panel.watching").Watch
        return importlib.import_module("kfac_lab.panel.panel").Panel
    raise AttributeError(f"module 'kfac_lab.panel' has no attribute {name!r}")
