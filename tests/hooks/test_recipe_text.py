"""Every text form of a recipe, back and forth."""

import json
import pickle
import random
import sys
from typing import Any

import pytest

from hooks.parts import NAMES, TOYS, LevenbergMarquardt
from hooks.recipe_helpers import CONSTANT, KRONECKER, refusal
from kfac_lab.errors import KfacLabError, RecipeError
from kfac_lab.hooks import Lab, Recipe, manager
from kfac_lab.hooks.registry import ADDED, SLOTS, read_recipe

# --- text ---


def test_the_text_of_a_recipe(paper: Recipe) -> None:
    recipe = paper.replace(
        block={"Conv*": "diagonal(x=1/8)", "*": KRONECKER()}, fallback="identity"
    )
    lines = recipe.text().splitlines(keepends=True)  # of a slot that came later: those of the toys
    assert "".join(line for line in lines if not line.startswith(ADDED)) == (
        "method = kfac\n"
        "estimator = sampled(x=0.125)\n"
        'block = {"Conv*": "diagonal(x=0.125)", "*": "kronecker"}\n'
        "structure = block_diagonal\n"
        "quadratic_model = exact_fisher\n"
        "damping = levenberg_marquardt(lam=150)\n"
        "momentum = optimal\n"
        "schedule = periodic\n"
        "batch = exponential\n"
        "average = polyak\n"
        "collective = solo\n"
        "fallback = identity\n"
    )
    assert recipe.text_of("block") == '{"Conv*": "diagonal(x=0.125)", "*": "kronecker"}'
    assert paper.replace(block=recipe.text_of("block"), fallback="identity") == recipe
    assert "damping = levenberg_marquardt(lam=150, omega1=0.77, clip=True)\n" in (
        recipe.text(complete=True)
    )
    assert repr(paper).startswith("Recipe(method='kfac', estimator='sampled(x=0.125)', block=")


def test_what_a_text_named_stays_named(paper: Recipe) -> None:
    """A swap to levenberg_marquardt(lam=150) sets λ, though 150 is the default: so do its marks."""
    named = paper.replace(damping="levenberg_marquardt(lam=150.0)")
    plain = paper.replace(damping="levenberg_marquardt")
    assert named == plain
    assert named.text_of("damping") == "levenberg_marquardt(lam=150.0)"
    assert plain.text_of("damping") == "levenberg_marquardt"
    assert Recipe.named_fields(named.text_of("damping")) == {"lam"}
    assert Recipe.named_fields(plain.text_of("damping")) == set()
    assert Recipe.named_fields("dist/levenberg_marquardt(lam=1, clip=False)") == {"lam", "clip"}
    assert Recipe.named_fields(LevenbergMarquardt(lam=3)) == {"lam"}
    assert Recipe.named_fields({"*": "kronecker"}) == set()
    assert Recipe.named_fields('{"*": "kronecker(x=1)"}') == set()


def test_toml_is_toml(paper: Recipe) -> None:
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    recipe = paper.replace(block={"Conv*": "diagonal", "*": "kronecker"}, fallback="identity")
    values = tomllib.loads(recipe.to_toml())
    assert values["damping"] == "levenberg_marquardt(lam=150)"
    assert list(values["block"].items()) == [("Conv*", "diagonal"), ("*", "kronecker")]
    assert values["fallback"] == "identity" and "layers" not in values
    assert json.loads(recipe.to_json())["block"] == {"Conv*": "diagonal", "*": "kronecker"}
    lab = paper._lab
    assert refusal(lambda: Recipe.from_toml("a = ", lab=lab)).startswith("this is not TOML: ")
    assert refusal(lambda: Recipe.from_json("{", lab=lab)).startswith("this is not JSON: ")
    assert refusal(lambda: Recipe.from_json("[1]", lab=paper._lab)) == (
        "a recipe in JSON is a table of slots, not [1]"
    )


def test_random_recipes_make_every_round_trip(lab: Lab, paper: Recipe) -> None:
    generator = random.Random(2)

    def component(slot: str) -> Any:
        if slot == "damping" and generator.random() < 0.5:
            return LevenbergMarquardt(generator.random() * 10 ** generator.randint(-9, 9))
        toy = TOYS[slot, generator.choice(NAMES[slot])]
        return toy(generator.choice([None, generator.random(), 3]))

    for _ in range(100):
        parts = {slot: component(slot) for slot in SLOTS[1:]}
        if generator.random() < 0.5:
            names = ["a.*", 'we"ird\\ \n\x7fλ😀', "Conv2d", "*"]
            parts["block"] = {name: component("block") for name in generator.sample(names, 3)}
        recipe = paper.replace(
            fallback=generator.choice([None, "identity"]),
            layers=generator.choice([None, {"Lin*": "kfac-lab/paper"}]),
            **parts,
        )
        for complete in (False, True):
            again = [
                Recipe.from_text(recipe.text(complete=complete), lab=lab),
                Recipe.from_toml(recipe.to_toml(complete=complete), lab=lab),
                Recipe.from_json(recipe.to_json(complete=complete), lab=lab),
            ]
            assert again == [recipe] * 3
        assert recipe.difference(again[0]) == {}


def test_complete_text_survives_a_change_of_defaults(lab: Lab, paper: Recipe) -> None:
    recipe = paper.replace(damping=LevenbergMarquardt())
    short, whole = recipe.text(), recipe.text(complete=True)
    kept = LevenbergMarquardt.__init__.__defaults__
    try:
        LevenbergMarquardt.__init__.__defaults__ = (7.0, *kept[1:])  # type: ignore[misc,index]
        assert Recipe.from_text(short, lab=lab)["damping"].lam == 7.0
        assert Recipe.from_text(whole, lab=lab)["damping"].lam == 150.0
    finally:
        LevenbergMarquardt.__init__.__defaults__ = kept  # type: ignore[misc]


def test_a_component_of_nobodys_class_works_but_has_no_text(paper: Recipe) -> None:
    class Mine(LevenbergMarquardt):
        pass

    recipe = paper.replace(damping=Mine(2.0))
    assert recipe["damping"].lam == 2.0
    assert "damping='" in repr(recipe)
    with pytest.raises(
        RecipeError, match=r"has no name: register its class, lab.register\(slot, 'mi"
    ):
        recipe.text()
    paper._lab.register("damping", "mine", Mine)
    again = paper.replace(damping=Mine(2.0))
    assert again.text_of("damping") == "mine(lam=2.0)"
    assert type(Recipe.from_text(again.text(), lab=paper._lab)["damping"]) is Mine


def test_a_factory_is_written_as_it_was_named(lab: Lab, paper: Recipe) -> None:
    def doubled(x: float = 1.0) -> Any:
        return CONSTANT(2 * x)

    lab.register("damping", "doubled", doubled)
    recipe = paper.replace(damping="doubled(x=3)")
    assert recipe["damping"] == CONSTANT(6)
    assert recipe.text_of("damping") == "doubled(x=3)" == recipe.text_of("damping", complete=True)
    assert Recipe.from_json(recipe.to_json(complete=True), lab=lab) == recipe


def test_difference_names_the_slots_and_both_texts(lab: Lab, paper: Recipe) -> None:
    other = paper.replace(damping="constant(x=1)", fallback="identity")
    assert paper.difference(other) == {
        "damping": ("levenberg_marquardt(lam=150)", "constant(x=1)"),
        "fallback": (None, "identity"),
    }
    assert paper.difference(paper.replace(damping="levenberg_marquardt")) == {}
    nag = paper.replace(method="nag")
    assert paper.difference(nag)["method"] == ("kfac", "nag")
    assert paper.difference(nag)["damping"] == ("levenberg_marquardt(lam=150)", None)


def test_pickles_as_its_text(monkeypatch: pytest.MonkeyPatch, lab: Lab, paper: Recipe) -> None:
    monkeypatch.setattr(manager, "lab", lab)
    assert pickle.loads(pickle.dumps(paper)) == paper


# --- the box's own recipes ---


def test_comments_and_empty_lines_say_nothing() -> None:
    assert read_recipe("# a\n\n  damping =  constant(x=1)  \n#b = c") == {
        "damping": "constant(x=1)"
    }


def test_every_error_is_ours(paper: Recipe) -> None:
    for value in ("(", "x(", "a b", "λ(", "constant(x=)", "'", "constant(x=1", "\0", "9"):
        with pytest.raises(KfacLabError):
            paper.replace(damping=value)
