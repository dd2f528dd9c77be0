"""Live views of a run: each a function of its History, or of what was seen between two steps.

::

    views = all_views(kl.lab)                       # the box's own, and what plugins registered
    glance = seen(run, views[0].wants)              # on the training side, between two steps
    png, text = figure(views[0], {"run": run.history}, glance)      # in any thread
    save(views[0], {"run": run.history}, glance, "progress.svg")

The box's own are entries of the slot ``view`` like any outsider's; see ``view.py`` for the two
forms that a component may have. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from typing import Any

from kfac_lab.hooks import hookimpl
from kfac_lab.panel.views.coefficients import Coefficients
from kfac_lab.panel.views.filters import Filters
from kfac_lab.panel.views.heat_maps import HeatMaps
from kfac_lab.panel.views.inverse import InverseBlocks
from kfac_lab.panel.views.progress import ByIteration, BySeconds
from kfac_lab.panel.views.ratio import Ratio
from kfac_lab.panel.views.reconstructions import Reconstructions
from kfac_lab.panel.views.reduction import Reduction
from kfac_lab.panel.views.render import failure, figure, save
from kfac_lab.panel.views.seen import Seen, facts, seen
from kfac_lab.panel.views.spectra import Spectra
from kfac_lab.panel.views.strength import Strengths
from kfac_lab.panel.views.verbs import Verbs
from kfac_lab.panel.views.view import View, all_views

__all__ = [
    "Seen",
    "View",
    "all_views",
    "draw",
    "facts",
    "failure",
    "figure",
    "save",
    "seen",
]


@hookimpl
def kfac_register_views(register: Any) -> None:
    """The views in the box, in the order in which a panel lists them."""
    for name, component, summary, reference in (
        ("iterations", ByIteration, "h and error by iteration", "section 13"),
        ("seconds", BySeconds, "h and error by seconds", "section 13"),
        ("damping", Strengths, "λ and γ", "section 6"),
        ("coefficients", Coefficients, "α and μ", "section 7"),
        ("ratio", Ratio, "ρ and its bands", "section 6.5"),
        ("reduction", Reduction, "predicted and actual decrease of h", "section 6.5"),
        ("spectra", Spectra, "eigenvalues and condition of Ā and G", "section 6.3"),
        ("factors", HeatMaps, "Ā and G as pictures", "section 5"),
        ("inverse", InverseBlocks, "size of the inverse per pair of layers", "section 4.1"),
        ("verbs", Verbs, "time per verb", "section 8"),
        ("reconstructions", Reconstructions, "held-out images, reconstructed", "section 13"),
        ("filters", Filters, "weights of the first layer as images", "section 2.1"),
    ):
        register(name, component, summary=summary, reference=reference)
