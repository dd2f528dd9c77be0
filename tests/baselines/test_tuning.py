"""The tuned recipes are the committed tables."""

import json
from pathlib import Path

import pytest

import kfac_lab as kl
from kfac_lab.baselines import tuned
from kfac_lab.baselines.tuning import TUNED
from kfac_lab.errors import RecipeError

TABLE = Path(__file__).resolve().parents[2] / "results/tuning.json"


@pytest.mark.parametrize("problem", ["curves", "mnist", "nobody_tuned_this"])
@pytest.mark.parametrize("name", ["nag", "adam", "muon"])
def test_a_tuned_recipe_is_a_recipe(name: str, problem: str) -> None:
    assert kl.Recipe.of(tuned(name, problem)).method == name
    assert kl.Recipe.of(tuned(name, problem, steps=9))["method"].total_steps == 9
    assert kl.Recipe.of(tuned(name, problem, seconds=9))["method"].total_seconds == 9.0


def test_an_unknown_baseline_says_what_there_is() -> None:
    with pytest.raises(RecipeError, match="nag, adam, muon, soap"):
        tuned("sgd", "curves")


def test_the_tuned_recipes_are_the_committed_tables() -> None:
    chosen = json.loads(TABLE.read_text())["chosen"]
    for key, point in chosen.items():
        problem, name = key.split("/")
        assert TUNED[name, problem] == (point["text"], point["batch"])


def test_no_chosen_rate_lies_on_the_edge_of_its_grid() -> None:
    table = json.loads(TABLE.read_text())
    for key, chosen in table["chosen"].items():
        problem, name = key.split("/")
        points = [p for p in table["points"] if (p["problem"], p["method"]) == (problem, name)]
        (best,) = (
            p
            for p in points
            if (p["text"], p["batch"]) == (chosen["text"], chosen["batch"])
            and p["budget_seconds"] == chosen["budget_seconds"]
        )
        like = [
            p
            for p in points
            if (p["settings"], p["batch"]) == (best["settings"], best["batch"])
            and p["budget_seconds"] == chosen["budget_seconds"]
        ]
        assert all(best["error"] <= p["error"] for p in like if p["error"] is not None)
        assert min(p["lr"] for p in like) < best["lr"] < max(p["lr"] for p in like), key
