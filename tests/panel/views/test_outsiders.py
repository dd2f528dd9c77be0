"""Views from plugins and cells: the hook's own form, the richer one, and broken ones."""

import dataclasses
import types

import numpy as np
import pytest

import kfac_lab as kl
from kfac_lab.hooks import Lab
from kfac_lab.panel import views as box
from kfac_lab.panel.views import all_views, figure


@dataclasses.dataclass(frozen=True)
class Gain:
    """How much of the predicted decrease each judged step got: ρ against the step."""

    log: bool = False

    def draw(self, axes, history):
        axes.plot(history["step"], history["rho"], ".")
        axes.set_xlabel("step")
        axes.set_ylabel("ρ")
        axes.set_yscale("log" if self.log else "linear")


@dataclasses.dataclass(frozen=True)
class Broken:
    """A view that fails."""

    def draw(self, axes, history):
        raise ZeroDivisionError("by $ero_")


@dataclasses.dataclass(frozen=True)
class Illegible:
    """Draws, but with a text that matplotlib cannot set: the renderer fails."""

    def draw(self, axes, history):
        axes.set_title(r"$\frac{$")


@dataclasses.dataclass(frozen=True)
class Needy:
    """A view with an argument that nobody gives."""

    column: str

    def draw(self, axes, history): ...


@dataclasses.dataclass(frozen=True)
class Rich:
    """Two axes and what was seen."""

    title = "Rich"
    wants = ("filters",)

    def plot(self, runs, seen):
        two = kl.plots.Axes(()), kl.plots.Axes(())
        return kl.plots.Plot("Rich", two, words=f"Rich: {len(runs)} runs, {seen.units} units.")


OUTSIDERS = {
    "gain": Gain,
    "broken": Broken,
    "illegible": Illegible,
    "needy": Needy,
    "rich": Rich,
}


def plugin(**registered):
    module = types.ModuleType("outsider")

    @kl.hookimpl
    def kfac_register_views(register):
        for name, component in registered.items():
            register(name, component)

    module.kfac_register_views = kfac_register_views
    return module


@pytest.fixture
def lab():
    """The box's views and an outsider's."""
    lab = Lab(builtins=(box,), entry_points=False)
    lab.load_module(plugin(**OUTSIDERS), "outsider")
    return lab


def find(lab, name):
    (found,) = [view for view in all_views(lab) if view.name == name]
    return found


def test_outsiders_stand_behind_the_boxs_own(lab) -> None:
    names = [view.name for view in all_views(lab)]
    assert names[0] == "iterations" and names[12:] == list(OUTSIDERS)
    assert find(lab, "gain").owner == "outsider"
    assert find(lab, "gain").title.startswith("How much of the predicted decrease")


def test_the_hooks_own_example_is_drawn_for_every_run(lab, runs, drawn) -> None:
    view = find(lab, "gain")
    histories = {"a": runs.swapped.history, "b": runs.plain.history}
    (axes,) = drawn(view, histories)
    for label, history in histories.items():
        (line,) = [x for x in axes.get_lines() if x.get_label() == label]
        expected = [float(r.rho) for r in history.records]
        np.testing.assert_array_equal(line.get_ydata(), expected)
    marks = [x.get_xdata()[0] for x in axes.get_lines() if x.get_gid() == "mark"]
    assert marks == [30, 42, 48]
    png, text = figure(view, histories)
    known = [float(r.rho) for r in runs.plain.history.records if float(r.rho) == float(r.rho)]
    assert (
        f"b: {len(known)} points from {known[0]:.4g} to {known[-1]:.4g} "
        f"(lowest {min(known):.4g}, highest {max(known):.4g})"
    ) in text
    assert "ρ against step" in text and png.startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [0, 1])
def test_the_hooks_own_example_draws_a_beginning(lab, runs, count) -> None:
    history = runs.plain.history.copy()
    history.truncate(count)
    assert "failed" not in figure(find(lab, "gain"), {"a": history})[1]


def test_an_outsiders_long_line_is_thinned(lab, drawn) -> None:
    history = box.series.History()
    for k in range(1, 9001):
        history.append(kl.StepRecord(step=k, rho=float(k % 97) if k % 2 else float("nan")))
    (axes,) = drawn(find(lab, "gain"), {"a": history})
    assert 500 < len(axes.get_lines()[0].get_xdata()) <= box.series.POINTS
    assert "a: 4500 points" in find(lab, "gain").summary({"a": history}, None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "ZeroDivisionError: by $ero_"),
        ("illegible", "ValueError"),
        ("needy", "needy needs column"),
    ],
)
def test_a_view_that_fails_says_so_and_leaves_the_others_alone(lab, runs, name, reason) -> None:
    histories = {"a": runs.plain.history}
    before = figure(find(lab, "gain"), histories)
    png, text = figure(find(lab, name), histories)
    assert text.startswith(f"The view '{name}' failed: ") and reason in text
    assert png.startswith(b"\x89PNG")
    assert figure(find(lab, "gain"), histories) == before


def test_a_text_that_fails_leaves_the_picture(runs) -> None:
    class Mute(Rich):
        wants = ()

        def plot(self, runs, seen):
            def words():
                raise RuntimeError("speechless")

            return kl.plots.Plot("Mute", (kl.plots.Axes(()),), words=words)

    lab = Lab(builtins=(), entry_points=False)
    lab.load_module(plugin(mute=Mute), "outsider")
    png, text = figure(find(lab, "mute"), {"a": runs.plain.history})
    assert png.startswith(b"\x89PNG") and text == "The view 'mute' failed: RuntimeError: speechless"


def test_the_richer_form_gets_all_runs_and_what_it_wants(lab, runs, drawn) -> None:
    view = find(lab, "rich")
    glance = box.seen(runs.plain, view.wants)
    assert len(drawn(view, {"a": runs.plain.history}, glance)) == 2
    assert figure(view, {"a": runs.plain.history}, glance)[1] == "Rich: 1 runs, 32 units."


@pytest.mark.parametrize(
    ("component", "why"),
    [
        (
            type("Nothing", (), {}),
            "has no plot(runs, seen) that answers with data, and no draw(axes, history)",
        ),
        (
            type("Greedy", (Rich,), {"wants": ("everything",)}),
            "wants 'everything'; there are factors",
        ),
    ],
)
def test_what_is_no_view_says_why(component, why, runs) -> None:
    lab = Lab(builtins=(), entry_points=False)
    lab.load_module(plugin(odd=component), "outsider")
    (view,) = all_views(lab)
    assert why in figure(view, {"a": runs.plain.history})[1]


def test_a_view_from_a_cell_appears_at_once() -> None:
    lab = Lab(builtins=(box,), entry_points=False)
    assert len(all_views(lab)) == 12
    lab.register("view", "gain", Gain)
    assert [view.name for view in all_views(lab)][12:] == ["gain"]


def test_a_name_that_is_taken_twice_is_written_in_full(runs) -> None:
    lab = Lab(builtins=(box,), entry_points=False)
    lab.load_module(plugin(ratio=Gain), "outsider")
    names = [view.name for view in all_views(lab)]
    assert {"kfac-lab/ratio", "outsider/ratio"} <= set(names) and "ratio" not in names
    assert "ρ against step" in figure(find(lab, "outsider/ratio"), {"a": runs.plain.history})[1]
