"""Widgets from declared fields: which, with which label, and exactly which value."""

import dataclasses
import math

import ipywidgets as widgets
import pytest
from invariants.helpers import recipe_of
from ipywidgets.widgets.widget import _instances

import kfac_lab as kl
from kfac_lab.core.parameters import describe, parameter
from kfac_lab.hooks import lab
from kfac_lab.hooks.registry import SLOTS
from kfac_lab.panel.controls import Control, labels, tooltip
from kfac_lab.panel.slots import RULES, Slot

PARTS = [slot for slot in SLOTS if slot != "method"]
EVERY = [(slot, name) for slot in PARTS for name in lab.names(slot)]


@dataclasses.dataclass(frozen=True)
class Many:
    """One field of each kind."""

    strength: float = parameter(
        0.3, symbol="σ", section="6", low=1e-3, high=10.0, log=True, help="how strong"
    )
    share: float = parameter(0.123456789, symbol="τ", low=0.0, high=1.0)
    ceiling: float = parameter(math.inf, low=0.0)
    free: float = 2.5
    count: int = parameter(3, low=1, high=9)
    period: int = parameter(20, low=1)
    sure: bool = True
    kind: str = parameter("soft", choices=("soft", "hard"))
    word: str = "plain"
    pair: tuple[int, int] = (1, 2)
    perhaps: float | None = parameter(None, low=0.0, log=True)
    maybe: int | None = 4

    def init(self, problem):
        return kl.DampingStrength(1.0, 1.0), {}

    def candidates(self, strength, due):
        return (strength,)

    def adapt(self, strength, part_state, record):
        return strength, part_state


@pytest.fixture
def many():
    lab.register("damping", "many", Many, summary="many fields")
    yield "many"
    lab.registry.discard("notebook", "")


def slot_of(text: str, slot: str = "damping") -> Slot:
    row = Slot(slot, lab)
    row.show(recipe_of(**{slot: text}))
    return row


# ---- which widget --------------------------------------------------------------------------------


def test_the_widget_follows_the_field(many) -> None:
    controls = slot_of(many).controls
    kinds = {name: type(control.inputs[0]) for name, control in controls.items()}
    assert kinds == {
        "strength": widgets.FloatLogSlider,
        "share": widgets.FloatSlider,
        "ceiling": widgets.Text,
        "free": widgets.FloatText,
        "count": widgets.IntSlider,
        "period": widgets.BoundedIntText,
        "sure": widgets.Checkbox,
        "kind": widgets.Dropdown,
        "word": widgets.Text,
        "pair": widgets.Text,
        "perhaps": widgets.FloatLogSlider,
        "maybe": widgets.IntText,
    }
    assert set(controls["kind"].inputs[0].options) == {("soft", "soft"), ("hard", "hard")}
    slider = controls["strength"].inputs[0]
    assert 1e-3 <= 10**slider.min and 10**slider.max <= 10.0 * (1 + 1e-9)
    assert 10**slider.min < 2e-3 and 10**slider.max > 8.0
    assert [len(controls[name].inputs) for name in ("perhaps", "maybe", "free")] == [3, 2, 1]


def test_sliders_stand_on_their_grid(many) -> None:
    """A browser rounds to the grid, and would show 158 for 150."""
    for text in (many, "levenberg_marquardt(lam=150)", "many(strength=0.00734, share=0.77)"):
        for control in slot_of(text).controls.values():
            slider = control.inputs[0]
            if isinstance(slider, widgets.FloatLogSlider):
                steps = (math.log10(slider.value) - slider.min) / slider.step
            elif isinstance(slider, widgets.FloatSlider):
                steps = (slider.value - slider.min) / slider.step
            else:
                continue
            assert abs(steps - round(steps)) < 1e-6, control.field.name
            assert slider.min < slider.max


def test_labels_are_symbols_and_tooltips_say_the_rest(many) -> None:
    controls = slot_of(many).controls
    assert controls["strength"].inputs[0].description == "σ"
    assert controls["free"].inputs[0].description == "free"
    told = controls["strength"].inputs[0].tooltip
    for part in ("strength", "σ", "section 6", "how strong", "at least 0.001", "at most 10"):
        assert part in told
    twice = labels(describe(type(lab.component("damping", "scheduled"))))
    assert twice == {"lam": "λ lam", "lam_end": "λ lam_end", "steps": "steps"}


@pytest.mark.parametrize(("slot", "name"), EVERY)
def test_every_registered_component_has_controls(slot: str, name: str) -> None:
    fields = describe(lab.entry(slot, name).component)
    required = [field.name for field in fields if field.required]
    row = Slot(slot, lab)
    row.show(kl.Recipe.named("paper"))
    row.choice.value = name
    assert list(row.controls) == [field.name for field in fields]
    for control in row.controls.values():
        assert control.inputs[0].description
        for widget in control.inputs:
            assert widget.tooltip
        assert control.field.name in tooltip(control.field)
        assert not control.touched
    if not required:
        made = lab.component(slot, row.text())
        assert made == lab.component(slot, name)
    assert row.choice.description == slot and name in row.choice.tooltip


# ---- the text ------------------------------------------------------------------------------------


def test_untouched_is_untouched(many) -> None:
    for text in (many, "many(perhaps=0.25, maybe=None, strength=0.0123456789)", "tied(lam=10)"):
        row = slot_of(text)
        assert not row.touched
        assert not any(control.touched for control in row.controls.values())
        component = recipe_of(damping=text)["damping"]
        for name, control in row.controls.items():
            assert control.value == getattr(component, name), name


def test_what_a_browser_sends_back_is_no_choice() -> None:
    row = slot_of("levenberg_marquardt(lam=150)")
    for name in ("lam", "omega1"):
        row.controls[name].inputs[0].value *= 1 + 1e-15
    assert not row.touched and row.controls["lam"].value == 150


@pytest.mark.parametrize("typed", [0.01, 0.0123456789, 0.12345678901234566, 150.0001, 3.0, 0.0])
def test_what_is_typed_beside_a_slider_is_kept_to_its_last_digit(typed: float) -> None:
    row = slot_of("levenberg_marquardt(lam=150)")
    slider, box = row.controls["lam"].inputs
    box.value = typed
    assert row.controls["lam"].value == typed
    if typed:
        assert abs(math.log10(slider.value / typed)) < 0.026
        exponent = round((math.log10(typed) - slider.min) / slider.step) * slider.step + slider.min
        slider.value = 10**exponent  # the browser's answer: the grid point beside it
        assert row.controls["lam"].value == typed and box.value == typed
    assert row.text().startswith(f"levenberg_marquardt(lam={typed}")


@pytest.mark.parametrize("typed", [1e12, 1e-12])
def test_what_is_typed_beyond_the_ends_of_a_slider_is_kept(typed: float) -> None:
    row = slot_of("levenberg_marquardt(lam=150)")
    slider, box = row.controls["lam"].inputs
    box.value = typed
    end = slider.max if typed > 1 else slider.min
    assert math.isclose(slider.value, 10**end, rel_tol=1e-9)
    slider.value = 10**end * (1 + 1e-12)  # the browser's answer
    assert box.value == typed == row.controls["lam"].value
    slider.value = 10 ** (end - math.copysign(slider.step, math.log10(typed)))
    assert 1e-4 < box.value < 1.5e8


def test_a_slider_that_is_moved_back_is_where_it_was() -> None:
    row = slot_of("levenberg_marquardt(lam=0.0123456789)")
    for name in ("lam", "omega1"):
        slider, box = row.controls[name].inputs
        begin, given = slider.value, box.value
        slider.value = begin * 1.3 if name == "lam" else begin + 2 * slider.step
        assert box.value != given and row.touched
        slider.value = begin * (1 + 1e-15)
        assert box.value == given and not row.touched


def test_a_slider_that_is_moved_moves_its_box() -> None:
    row = slot_of("levenberg_marquardt(lam=150)")
    slider, box = row.controls["lam"].inputs
    slider.value = 10 ** (math.log10(150) + slider.step)
    assert box.value == 168.3 == row.controls["lam"].value
    slider.value = 150
    assert box.value == 150 and not row.touched
    slider, box = row.controls["omega1"].inputs
    slider.value += slider.step
    assert row.controls["omega1"].value == box.value == float(f"{slider.value:.4g}")


def test_a_box_keeps_to_the_bounds_of_its_field(many) -> None:
    row = slot_of(many)
    row.controls["strength"].inputs[1].value = 1e9
    assert row.controls["strength"].value == 10


def test_text_names_what_was_moved(many) -> None:
    row = slot_of(many)
    row.controls["strength"].value = 0.1 + 0.2
    row.controls["kind"].value = "hard"
    row.controls["pair"].value = (3, 4)
    row.controls["sure"].value = False
    row.controls["ceiling"].value = 7.0
    row.controls["perhaps"].value = 0.5
    row.controls["maybe"].value = None
    assert row.touched
    made = lab.component("damping", row.text())
    assert made == Many(
        0.1 + 0.2, kind="hard", pair=(3, 4), sure=False, ceiling=7, perhaps=0.5, maybe=None
    )


def test_lambda_and_gamma_are_named_only_where_they_were_moved() -> None:
    """A swap keeps the run's λ and γ unless its text names them."""
    row = slot_of("levenberg_marquardt(lam=10, gamma=0.5, omega1=0.5)")
    row.controls["omega2"].value = 0.25
    text = row.text()
    assert "lam=" not in text and "gamma=" not in text
    assert "omega1=0.5" in text and "omega2=0.25" in text  # the others stay as they are
    row.controls["lam"].value = 3.0
    assert "lam=3.0" in row.text() and "gamma" not in row.text()
    row.choice.value = "tied"
    assert row.text() == "tied"
    assert slot_of("tied(lam=10)").text() == "tied"
    told = [row.controls[name].inputs[0].tooltip for name in ("lam",)]
    assert all("the run keeps its lam" in one for one in told)


def test_zero_on_a_logarithmic_slider_stays_zero() -> None:
    row = slot_of("constant(lam=0.0, gamma=0.1)")
    assert row.controls["lam"].value == 0.0 and not row.touched
    row.controls["gamma"].value = 0.2
    assert row.text() == "constant(gamma=0.2)"


def test_a_typo_is_refused_where_it_is_applied(many) -> None:
    row = slot_of(many)
    row.controls["ceiling"].inputs[0].value = "a lot"
    with pytest.raises(kl.RecipeError, match="ceiling='a lot' must be a number"):
        lab.component("damping", row.text())


def test_none_is_a_tick(many) -> None:
    control = slot_of(many).controls["perhaps"]
    slider, box, tick = control.inputs
    assert tick.value and slider.disabled and box.disabled and control.value is None
    tick.value = False
    assert not slider.disabled and not box.disabled
    assert control.touched and control.value > 0
    tick.value = True
    assert control.value is None and not control.touched


def test_controls_that_are_replaced_are_closed(many) -> None:
    row = slot_of("levenberg_marquardt")
    row.choice.value = many
    row.choice.value = "levenberg_marquardt"
    before = len(_instances)
    for _ in range(2):
        row.choice.value = many
        row.choice.value = "levenberg_marquardt"
    assert len(_instances) == before


# ---- the rows ------------------------------------------------------------------------------------


def test_a_new_component_appears_on_refresh_and_a_choice_stays() -> None:
    row = slot_of("tied")
    row.choice.value = "constant"
    row.controls["lam"].value = 0.5
    lab.register("damping", "newcomer", Many)
    try:
        assert "newcomer" not in row.choice.options
        row.refresh()
        assert "newcomer" in row.choice.options
        assert row.choice.value == "constant" and row.controls["lam"].value == 0.5
        row.choice.value = "newcomer"
        assert next(iter(row.controls)) == "strength"
    finally:
        lab.registry.discard("notebook", "")


def test_a_component_whose_cell_has_run_again_has_its_new_fields() -> None:
    @dataclasses.dataclass(frozen=True)
    class Other(Many):
        newer: float = 1.0

    lab.register("damping", "again", Many)
    try:
        row = slot_of("tied")
        row.choice.value = "again"
        assert "newer" not in row.controls
        row.controls["free"].value = 7.0
        row.refresh()
        assert row.controls["free"].value == 7.0
        lab.register("damping", "again", Other)
        row.refresh()
        assert "newer" in row.controls and row.choice.value == "again"
    finally:
        lab.registry.discard("notebook", "")


def test_a_component_without_a_name_is_shown_as_ones_own() -> None:
    row = Slot("damping", lab)
    row.show(recipe_of(damping=Many()))
    assert row.choice.value == "(own)" and not row.touched and row.controls == {}
    row.choice.value = "tied"
    assert row.text() == "tied"
    row.show(recipe_of(damping="tied"))
    assert "(own)" not in row.choice.options


def test_rules_of_a_block() -> None:
    row = slot_of('{"Linear": "kronecker", "*": "diagonal"}', "block")
    assert row.choice.value == RULES and not row.touched and row.controls == {}
    row.choice.value = "identity"
    assert row.touched and row.text() == "identity"


def test_fields_are_made_when_the_part_is_opened() -> None:
    row = slot_of("levenberg_marquardt")
    assert row._fields.children == () and row._fields not in row.widget.children
    row._more.value = True
    assert row._fields in row.widget.children
    assert len(row._fields.children) == len(row.controls) > 8
    row.choice.value = "tied"  # another part, opened too
    assert len(row._fields.children) == len(row.controls)
    row._more.value = False
    row.choice.value = "constant"
    assert row._fields.children == ()


def test_what_was_changed_is_seen_with_its_old_value() -> None:
    told = []
    row = Slot("damping", lab, lambda: told.append(1))
    row.show(recipe_of(damping="constant(lam=0.25)"))
    control = row.controls["lam"]
    assert control.label == "λ at start" and control._was is None
    control.value = 0.5
    assert "was 0.25" in control._was.value and told
    assert row.change() == "damping: λ at start 0.25 → 0.5"
    control.value = 0.25
    assert control._was.value == "" and not row.touched
    row.choice.value = "tied"
    assert row.change() == "damping: constant → tied"
    row.controls["omega1"].value = 0.5
    assert row.change() == "damping: constant → tied, with ω1 0.7737809374999998 → 0.5"


def test_a_control_of_a_bare_field() -> None:
    @dataclasses.dataclass(frozen=True)
    class Bare:
        size: int

    (field,) = describe(Bare)
    control = Control(field, "size", None)
    assert not control.touched and control.value == 0
