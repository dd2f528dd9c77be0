"""The live panel for JupyterLab: `kl.Panel(run)`; ipywidgets is imported when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from kfac_lab.errors import KfacLabError

if TYPE_CHECKING:
    from kfac_lab.panel.panel import Panel

__all__ = ["Panel"]


def __getattr__(name: str) -> Any:
    if name == "Panel":
        for module in ("ipywidgets", "matplotlib"):
            if importlib.util.find_spec(module) is None:
                raise KfacLabError(f"the panel needs {module}: pip install 'kfac-lab[lab]'")
        return importlib.import_module("kfac_lab.panel.panel").Panel
    raise AttributeError(f"module 'kfac_lab.panel' has no attribute {name!r}")
