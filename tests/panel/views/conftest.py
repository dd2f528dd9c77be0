"""Real small runs, and figures that nobody looks at."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

import kfac_lab as kl
from kfac_lab.history import History

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kfac_lab.panel.views import Seen, View, all_views, seen


@dataclass(frozen=True)
class Runs:
    """Digits, 60 steps each: K-FAC with three swaps and evaluations, K-FAC plain, and Adam."""

    swapped: kl.Run
    plain: kl.Run
    adam: kl.Run


@pytest.fixture(scope="session")
def runs() -> Runs:
    paper = kl.Recipe.named("paper").replace(batch="constant(size=500)")
    swapped = kl.Run("digits", recipe=paper, seed=0)
    swapped.advance(30)
    swapped.evaluate("train")
    swapped.swap(structure="block_tridiagonal")
    swapped.advance(12)
    swapped.swap(damping="constant(lam=0.01, gamma=0.1)")
    swapped.advance(6)
    swapped.swap(damping="levenberg_marquardt(lam=5.0, lower=0.3, upper=0.8)")
    swapped.advance(12)
    swapped.evaluate("train")
    swapped.evaluate("test")
    plain = kl.Run("digits", recipe=paper, seed=1).advance(60)
    adam = kl.Run("digits", recipe="adam", seed=0).advance(60)
    return Runs(swapped, plain, adam)


@pytest.fixture(scope="session")
def glance(runs: Runs) -> Seen:
    """What is to be seen of the run with swaps."""
    return seen(runs.swapped)


@pytest.fixture(scope="session")
def views() -> dict[str, View]:
    """The registered views by name."""
    return {view.name: view for view in all_views(kl.lab)}


Draw = Callable[..., list[Axes]]


@pytest.fixture
def drawn(views: dict[str, View]) -> Draw:
    """The axes of a view, drawn on a Figure of its own."""

    def draw(view: str | View, histories: Mapping[str, History], glance: Any = None) -> list[Axes]:
        figure = Figure()
        figure.set_size_inches(8.8, 3.9)
        (views[view] if isinstance(view, str) else view).draw(figure, histories, glance)
        return figure.axes

    return draw
