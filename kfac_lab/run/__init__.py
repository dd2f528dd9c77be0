"""A training run: what people hold.

``run`` is the Run itself; beside it stand what it is made of: the methods (``methods``), swaps
(``swapping``), the states to go back to (``snapshots``), scores (``evaluation``, ``tables``) and
files (``saving``, ``autosave``).
"""

from __future__ import annotations

from kfac_lab.run.device import choose_device
from kfac_lab.run.evaluation import CHUNK
from kfac_lab.run.methods import Kfac, kfac_register_methods
from kfac_lab.run.report import told
from kfac_lab.run.run import Run
from kfac_lab.run.saving import warn_elsewhere, where
from kfac_lab.run.snapshots import SNAPSHOT_BUDGET, SNAPSHOT_EVERY
from kfac_lab.run.swapping import SwapPlan, carried_out, planned
from kfac_lab.run.tables import Coverage, Score

__all__ = [
    "CHUNK",
    "SNAPSHOT_BUDGET",
    "SNAPSHOT_EVERY",
    "Coverage",
    "Kfac",
    "Run",
    "Score",
    "SwapPlan",
    "carried_out",
    "choose_device",
    "kfac_register_methods",
    "planned",
    "told",
    "warn_elsewhere",
    "where",
]
