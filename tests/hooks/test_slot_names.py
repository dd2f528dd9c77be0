"""``quadratic_model`` was ``model``: wherever somebody names a slot, either word means the same."""

import json
import warnings

import pytest
import torch
from torch import nn

import kfac_lab as kl
from hooks.test_specs import loaded
from kfac_lab.core import protocols
from kfac_lab.core.traits import SLOT_TRAITS, ModelTraits
from kfac_lab.errors import RecipeError
from kfac_lab.hooks import FAMILIES, SLOTS, Entry, Lab, Recipe
from kfac_lab.hooks.registry import NEEDS
from kfac_lab.paper.quadratic_model import ApproximateFisher, ExactFisher

TEXT = "exact_fisher(fraction=0.5)"
NOW = {"quadratic_model": TEXT, "damping": "constant(lam=0.1)"}
BEFORE = {"model": TEXT, "damping": "constant(lam=0.1)"}
WANTED = Recipe(**NOW)


def problem() -> kl.Problem:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    return kl.Problem(model=net, likelihood="bernoulli", inputs=x, targets=(x[:, :2] > 0).float())


def theta(made) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.parameters()])


@pytest.fixture
def silent():
    """No note is allowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        yield


# --- recipes ---


def test_the_name_of_today_is_the_one_written():
    assert WANTED["quadratic_model"] == ExactFisher(fraction=0.5)
    assert "model" not in list(WANTED) and "quadratic_model" in list(WANTED)
    written = WANTED.text(complete=True) + WANTED.to_toml() + WANTED.to_json() + repr(WANTED)
    assert "quadratic_model" in written
    assert "model" not in written.replace("quadratic_model", "").replace("='model'", "")
    for names in (SLOTS, FAMILIES, NEEDS, SLOT_TRAITS):
        assert "quadratic_model" in list(names) and "model" not in list(names)


@pytest.mark.usefixtures("silent")
def test_keyword_arguments_and_mappings_take_either_in_silence():
    assert Recipe(**BEFORE) == WANTED
    assert Recipe.of(BEFORE) == WANTED
    assert Recipe().replace(**BEFORE) == WANTED
    assert Recipe(**BEFORE).replace(model="none") == WANTED.replace(quadratic_model="none")


def test_texts_take_either_with_a_note():
    lines = "".join(f"{slot} = {text}\n" for slot, text in BEFORE.items())
    toml = "".join(f"{slot} = {json.dumps(text)}\n" for slot, text in BEFORE.items())
    for read, text in (
        (Recipe.from_text, lines),
        (Recipe.of, lines),
        (Recipe.from_toml, toml),
        (Recipe.from_json, json.dumps(BEFORE)),
    ):
        with pytest.warns(FutureWarning, match="the slot 'model' is called 'quadratic_model' now"):
            assert read(text) == WANTED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for form in ("text", "toml", "json"):
            written = WANTED.text() if form == "text" else getattr(WANTED, f"to_{form}")()
            assert getattr(Recipe, f"from_{form}")(written) == WANTED


def test_the_note_is_given_once():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            Recipe.from_text(f"model = {TEXT}\n")
    assert len([w for w in told if w.category is FutureWarning]) == 1


@pytest.mark.usefixtures("silent")
def test_a_recipe_answers_to_either():
    assert WANTED["model"] is WANTED["quadratic_model"]
    assert WANTED.get("model") is WANTED["model"] and "model" in WANTED
    assert WANTED.text_of("model") == WANTED.text_of("quadratic_model") == TEXT
    sgd = Recipe(method="nag")
    assert "model" not in sgd and sgd.get("model", 3) == 3
    with pytest.raises(RecipeError, match="uses no"):
        sgd["model"]
    assert list(WANTED.difference(WANTED.replace(model="none"))) == ["quadratic_model"]


@pytest.mark.parametrize("order", [1, -1])
def test_both_at_once_are_refused(order):
    given = dict([("model", TEXT), ("quadratic_model", "none")][::order])
    with pytest.raises(RecipeError, match="'quadratic_model' is given twice"):
        Recipe(**given)
    with pytest.raises(RecipeError, match="given twice"):
        Recipe.from_text("".join(f"{slot} = {text}\n" for slot, text in given.items()))


# --- the lab and the registry ---


@pytest.mark.usefixtures("silent")
def test_the_lab_and_its_registry_answer_to_either():
    lab = Lab(entry_points=False)
    assert lab.component("model", TEXT) == lab.component("quadratic_model", TEXT)
    assert lab.names("model") == lab.names("quadratic_model") != []
    assert lab.components("model") == lab.components("quadratic_model")
    assert lab.entry("model", "none") is lab.entry("quadratic_model", "none")
    registry = lab.registry
    assert ("model", "none") in registry and ("model", "nothing") not in registry
    assert list(registry.entries("model")) == list(registry.entries("quadratic_model"))
    assert registry.get("model", "none").slot == "quadratic_model"
    found = registry.of_component("model", ExactFisher())
    assert found is registry.of_component("quadratic_model", ExactFisher()) is not None
    assert Entry("model", "a", ExactFisher, "x") == Entry("quadratic_model", "a", ExactFisher, "x")
    for table in (FAMILIES, NEEDS, SLOT_TRAITS):
        assert table["model"] == table["quadratic_model"] == table.get("model")
        assert "model" in table and "modell" not in table
    assert SLOT_TRAITS["model"] is ModelTraits and protocols.Model is protocols.QuadraticModel


@pytest.mark.usefixtures("silent")
def test_registering_takes_either_and_the_hook_is_what_it_was():
    lab = Lab(entry_points=False)
    lab.register("model", "mine", ApproximateFisher)
    assert lab.component("quadratic_model", "mine") == ApproximateFisher()
    assert "mine" in lab.names("quadratic_model")
    assert FAMILIES["quadratic_model"] == "kfac_register_models"
    lab, record = loaded("kfac_register_models")
    assert record.slots == {"quadratic_model": ["cautious"]} and record.slots["model"]
    assert Recipe(lab=lab, model="cautious") == Recipe(lab=lab, quadratic_model="cautious")


def test_the_laws_answer_to_either():
    from kfac_lab.testing import check
    from kfac_lab.testing.law import LAWS, laws_of
    from kfac_lab.testing.laws import model, quadratic_model

    assert laws_of("model") == laws_of("quadratic_model") != ()
    assert "model" not in list(LAWS) and model.model_optimal is quadratic_model.model_optimal
    assert check(ExactFisher(), "model").slot == "quadratic_model"


# --- what steps ---


@pytest.mark.usefixtures("silent")
def test_runs_and_optimisers_swap_by_either():
    made = []
    for slot in ("model", "quadratic_model"):
        run = kl.Run(problem(), Recipe(**{slot: TEXT}, batch="constant(size=20)"), device="cpu")
        run.advance(2)
        run.swap(**{slot: "approximate_fisher"}).advance(2)
        (mark,) = run.history.marks
        assert mark.parts == {"quadratic_model": "approximate_fisher"}
        own = problem()
        opt = kl.KFAC(own.model, "bernoulli", Recipe(**{slot: TEXT}))
        pre = kl.Preconditioner(problem().model, "bernoulli", Recipe(**{slot: TEXT}))
        assert pre._engine.recipe["model"] is pre._engine.recipe["quadratic_model"]
        opt.step(own.inputs, own.targets)
        opt.swap(**{slot: "approximate_fisher"}).step(own.inputs, own.targets)
        parts = run.stepper.parts
        assert parts["model"] is parts["quadratic_model"] and parts.declares("model") is not None
        made.append((theta(run.problem.model), theta(own.model)))
    assert all(map(torch.equal, *made))


def test_saved_states_of_before_load(tmp_path, monkeypatch):
    recipe = Recipe(quadratic_model=TEXT, batch="constant(size=20)")
    written = Recipe.text
    before = lambda self, **how: written(self, **how).replace("quadratic_model = ", "model = ")  # noqa: E731

    run = kl.Run("digits", recipe, device="cpu").advance(2)
    run.swap(model="approximate_fisher").advance(1)
    opt = kl.KFAC(problem().model, "bernoulli", recipe)
    own = problem()
    opt.step(own.inputs, own.targets)
    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "text", before)
        mark = run.history.marks[0]
        run.history.marks[0] = mark._replace(parts={"model": mark.parts["quadratic_model"]})
        run.save(tmp_path / "run.pt")
        state = opt.state_dict()
    assert "\nmodel = " in state["state"]["recipe"]
    with pytest.warns(FutureWarning, match="quadratic_model"):
        again = kl.Run.load(tmp_path / "run.pt")
    assert again.recipe == run.recipe and torch.equal(
        theta(again.problem.model), theta(run.problem.model)
    )
    assert again.history.marks[0].parts == {"quadratic_model": "approximate_fisher"}
    other = kl.KFAC(problem().model, "bernoulli", recipe)
    with pytest.warns(FutureWarning, match="quadratic_model"):
        other.load_state_dict(state)
    for optimiser in (opt, other):
        optimiser.step(own.inputs, own.targets)
    assert torch.equal(theta(opt.model), theta(other.model))


# --- the command line and the panel ---


def test_the_commands_take_either(capsys, tmp_path):
    from kfac_lab.cli import main

    shown = []
    for slot in ("model", "quadratic_model"):
        assert main(["components", slot]) == 0
        listed = capsys.readouterr().out
        arguments = [
            "train",
            "digits",
            "--set",
            f"{slot}={TEXT}",
            "--set",
            "batch=constant(size=20)",
        ]
        arguments += ["--steps", "2", "--swap", f"1:{slot}=none", "--swap", "1:momentum=fixed"]
        assert main([*arguments, "--csv", str(tmp_path / "out.csv")]) == 0
        capsys.readouterr()
        losses = [line.split(",")[:3] for line in (tmp_path / "out.csv").read_text().splitlines()]
        shown.append((listed, losses))
    assert shown[0] == shown[1] and "exact_fisher" in shown[0][0]


def test_a_panel_answers_to_either():
    pytest.importorskip("ipywidgets")
    panel = kl.Panel(kl.Run(problem(), Recipe(), device="cpu"))
    try:
        assert panel.slots["model"] is panel.slots["quadratic_model"]
        assert "model" not in list(panel.slots)
    finally:
        panel.close()
