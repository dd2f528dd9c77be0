"""The paper's figures for notebooks: block matrices, curves and images; drawn without pyplot.

Each function returns a :class:`Picture`, which a notebook cell shows when it is the cell's value.
"""

from __future__ import annotations

from kfac_lab.panel.figures.curves import curves, panels
from kfac_lab.panel.figures.picture import Picture
from kfac_lab.panel.figures.sheets import images, matrices
from kfac_lab.panel.figures.words import chain, table

__all__ = ["Picture", "chain", "curves", "images", "matrices", "panels", "table"]
