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
from kfac_lab.panel.views.render import figure, save
from kfac_lab.panel.views.seen import Seen, seen
from kfac_lab.panel.views.spectra import Spectra
from kfac_lab.panel.views.strength import Strengths
from kfac_lab.panel.views.verbs import Verbs
from kfac_lab.panel.views.view import View, all_views

__all__ = ["Seen", "View", "all_views", "figure", "save", "seen"]


@hookimpl
def kfac_register_views(register: Any) -> None:
    """The views in the box, in the order in which a panel lists them."""
    register("iterations", ByIteration, summary="h and error by iteration", reference="section 13")
    register("seconds", BySeconds, summary="h and error by seconds", reference="section 13")
    register("damping", Strengths, summary="λ and γ", reference="section 5")
    register("coefficients", Coefficients, summary="α and μ", reference="section 6")
    register("ratio", Ratio, summary="ρ and its bands", reference="section 5.5")
    register(
        "reduction",
        Reduction,
        summary="predicted and actual decrease of h",
        reference="section 5.5",
    )
    register(
        "spectra", Spectra, summary="eigenvalues and condition of Ā, G", reference="section 5.3"
    )
    register("factors", HeatMaps, summary="Ā and G as pictures", reference="section 3.1")
    register(
        "inverse",
        InverseBlocks,
        summary="mean size of the inverse per pair of layers",
        reference="section 3",
    )
    register("verbs", Verbs, summary="time per verb", reference="section 8")
    register(
        "reconstructions",
        Reconstructions,
        summary="held-out images, reconstructed",
        reference="section 10.1",
    )
    register(
        "filters", Filters, summary="weights of the first layer as images", reference="section 1"
    )
