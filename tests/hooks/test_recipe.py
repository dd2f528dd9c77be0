"""Recipes: what fills a slot, what is refused and how."""

import copy
from typing import Any

import pytest
from torch import nn

from hooks.parts import PAPER, TOYS, LevenbergMarquardt, Point, builtin, module, registers, toy_lab
from hooks.recipe_helpers import CONSTANT, DIAGONAL, KRONECKER, refusal
from kfac_lab.errors import PluginError
from kfac_lab.hooks import Lab, PluginWarning, Recipe, Rules
from kfac_lab.hooks.registry import SLOTS

# --- what a recipe is ---


def test_a_named_recipe_has_a_component_in_every_slot(paper: Recipe) -> None:
    assert list(paper) == list(SLOTS)
    assert paper["damping"] == LevenbergMarquardt(150)
    assert paper["estimator"] == TOYS["estimator", "sampled"](0.125)
    assert paper["method"] == TOYS["method", "kfac"]()
    assert paper.method == "kfac"
    assert (dict(paper.layers), paper.fallback, paper.fallback_block) == ({}, None, None)


def test_replace_takes_text_and_components_and_leaves_the_first_alone(paper: Recipe) -> None:
    other = paper.replace(damping="constant(x=0.5)", batch=TOYS["batch", "exponential"](2))
    assert (other["damping"], other["batch"].x) == (CONSTANT(0.5), 2)
    assert other["block"] == paper["block"]
    assert paper["damping"] == LevenbergMarquardt()
    assert other != paper
    assert other.replace(damping=LevenbergMarquardt(), batch="exponential") == paper
    assert hash(other.replace(damping=LevenbergMarquardt(), batch="exponential")) == hash(paper)


def test_what_is_not_given_comes_from_paper(lab: Lab, paper: Recipe) -> None:
    made = Recipe(damping="constant", lab=lab)
    assert made == paper.replace(damping="constant")
    assert Recipe(lab=lab) == paper


def test_paper_is_not_needed_where_every_slot_is_given() -> None:
    own = builtin()
    del own.kfac_register_recipes
    lab = Lab(builtins=[own], entry_points=False)
    assert Recipe.from_text(PAPER, lab=lab)["damping"] == LevenbergMarquardt()
    assert "there is no recipe 'paper'" in refusal(lambda: Recipe(damping="constant", lab=lab))


def test_of_reads_whatever_says_a_recipe(lab: Lab, paper: Recipe) -> None:
    assert Recipe.of(paper) is paper
    assert Recipe.of("paper", lab=lab) == paper
    assert Recipe.of("kfac-lab/paper", lab=lab) == paper
    assert Recipe.of("damping = constant", lab=lab) == paper.replace(damping="constant")
    assert Recipe.of({"damping": "constant", "fallback": "identity"}, lab=lab) == (
        paper.replace(damping="constant", fallback="identity")
    )
    assert "not 3" in refusal(lambda: Recipe.of(3, lab=lab))


def test_a_recipe_takes_slots_by_name_only(lab: Lab) -> None:
    told = refusal(lambda: Recipe("nag", lab=lab))
    assert "Recipe('nag') names no slot" in told and "Recipe.named('nag')" in told
    assert "Recipe.named('paper')" in refusal(lambda: Recipe({"damping": "constant"}, lab=lab))


def test_a_recipe_is_frozen(paper: Recipe) -> None:
    with pytest.raises(AttributeError, match=r"recipe\.replace\(fallback=…\)"):
        paper.fallback = "identity"
    with pytest.raises(TypeError):
        paper["damping"] = "constant"  # type: ignore[index]
    with pytest.raises(TypeError):
        paper.layers["a"] = "b"  # type: ignore[index]
    with pytest.raises(TypeError):
        paper.replace(layers={"a": "kfac-lab/paper"}).layers["a"] = "b"  # type: ignore[index]
    assert copy.deepcopy(paper) is paper
    assert copy.copy(paper) is paper


def test_a_mapping_also_for_slots_that_the_method_does_not_use(lab: Lab) -> None:
    nag = Recipe.named("nag", lab=lab)
    assert "damping" not in nag and "batch" in nag and "nonsense" not in nag
    assert nag.get("damping") is None and nag.get("average") == TOYS["average", "none"]()
    assert dict(nag).keys() == {"method", "batch", "average"} and len(nag) == 3


def test_the_name_kfac_is_looked_up_when_it_is_asked_for() -> None:
    """The engine's own tests make recipes where no method is registered."""
    own = builtin()
    del own.kfac_register_methods
    recipe = Recipe.named("paper", lab=Lab(builtins=[own], entry_points=False))
    assert recipe.method == "kfac" and "method = kfac\n" in recipe.text()
    assert recipe == recipe.replace(method="kfac()")
    assert "there is no method 'kfac'" in refusal(lambda: recipe["method"])


# --- what is refused ---


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"dampin": "constant"},
            "a recipe has no slot 'dampin' (did you mean 'damping'?); it has "
            f"{', '.join(SLOTS)}, layers, fallback",
        ),
        (
            {"damping": "constnt"},
            "there is no damping 'constnt' (did you mean 'constant'?); "
            "there are constant, levenberg_marquardt",
        ),
        (
            {"damping": "levenberg_marquardt(lam=-1.0)"},
            "levenberg_marquardt: lam=-1.0 must be at least 0 (λ, section 6.5)",
        ),
        (
            {"damping": LevenbergMarquardt(-1.0)},
            "levenberg_marquardt: lam=-1.0 must be at least 0 (λ, section 6.5)",
        ),
        ({"average": None}, "average=None says nothing; name a component"),
        ({"damping": 3}, "damping=3 is no damping: it has no init, no candidates, no adapt "
         "(a damping has init, candidates, adapt)"),
        ({"fallback": "diag"}, "fallback='diag' must be 'identity', 'diagonal' or None "
         "(did you mean 'diagonal'?)"),
        ({"fallback": "kronecker"}, "fallback='kronecker' must be 'identity', 'diagonal' or None"),
        ({"layers": {"Conv2d": "dist/x"}}, "layers={'Conv2d': 'dist/x'}: there is no plugin "
         "'dist/x'; there are kfac-lab/paper"),
        ({"layers": "conv"}, "layers = conv is not of the form {'pattern': 'text', …}"),
        ({"layers": {"Conv2d": 1}}, "layers={'Conv2d': 1} must be {'class name or path': "
         "'dist/name'}"),
        ({"block": {}}, "block={} must be a component or rules {pattern: component}"),
        ({"block": {"*": "kronecer"}}, "there is no block 'kronecer' (did you mean "
         "'kronecker'?); there are diagonal, identity, kronecker"),
        ({"method": "sgd"}, "there is no method 'sgd'; there are kfac, nag"),
    ],
)  # fmt: skip
def test_each_refusal_has_its_sentence(paper: Recipe, given: Any, expected: str) -> None:
    before = paper.text()
    assert refusal(lambda: paper.replace(**given)) == expected
    assert paper.text() == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("damping", "line 1, 'damping', is not of the form: slot = component"),
        ("\n# x\ndamping =", "line 3, 'damping =', is not of the form: slot = component"),
        ("damping = constant\ndamping = constant", "line 2 gives damping a second time"),
        ("dampng = constant", "a recipe has no slot 'dampng' (did you mean 'damping'?)"),
        ("block = {'a': }", "block = {'a': } is not of the form {'pattern': 'text', …}"),
    ],
)
def test_a_recipes_text_that_cannot_be_read(lab: Lab, text: str, expected: str) -> None:
    assert refusal(lambda: Recipe.from_text(text, lab=lab)).startswith(expected)


def test_a_named_recipe_that_there_is_not_or_that_is_broken(lab: Lab) -> None:
    assert refusal(lambda: Recipe.named("papr", lab=lab)) == (
        "there is no recipe 'papr' (did you mean 'paper'?); there are nag, paper"
    )
    lab.register("recipe", "mine", PAPER.replace("constant", "x").replace("optimal", "optimel"))
    assert refusal(lambda: Recipe.named("mine", lab=lab)) == (
        "the recipe 'mine': there is no momentum 'optimel' (did you mean 'optimal'?); "
        "there are optimal"
    )


# --- methods ---


def test_another_method_uses_batch_and_average_only(lab: Lab, paper: Recipe) -> None:
    nag = paper.replace(method="nag(x=0.5)")
    assert list(nag) == ["method", "batch", "average"]
    assert nag["batch"] == paper["batch"]
    assert nag.method == "nag" and nag["method"].x == 0.5
    words = "and method='nag' do not go together: nag uses batch and average only"
    assert refusal(lambda: nag.replace(damping="constant")) == f"damping='constant' {words}"
    assert refusal(lambda: paper.replace(method="nag", quadratic_model="exact_fisher")) == (
        f"quadratic_model='exact_fisher' {words}"
    )
    assert refusal(lambda: Recipe(method="nag", momentum="optimal", lab=lab)) == (
        f"momentum='optimal' {words}"
    )
    assert refusal(
        lambda: Recipe.from_text("method = nag\nstructure = block_diagonal", lab=lab)
    ) == (f"structure='block_diagonal' {words}")
    assert refusal(lambda: nag.replace(fallback="identity")) == f"fallback='identity' {words}"
    assert words in refusal(lambda: nag.replace(layers={"Linear": "kfac-lab/paper"}))
    assert refusal(lambda: nag["damping"]) == "the method 'nag' uses no damping"
    assert nag.replace(batch="exponential(x=9)")["batch"].x == 9


def test_there_and_back_again(paper: Recipe) -> None:
    odd = paper.replace(batch="exponential(x=7)", fallback="identity")
    back = odd.replace(method="nag").replace(method="kfac")
    assert back == paper.replace(batch="exponential(x=7)")  # the rest is the paper's again


# --- rules, layers, fallback ---


def test_blocks_by_rule(lab: Lab, paper: Recipe) -> None:
    rules = {"head.*": DIAGONAL(0.5), "Conv*": "diagonal", "Linear": "kronecker", "*": "identity"}
    recipe = paper.replace(block=rules)
    assert isinstance(recipe["block"], Rules) and list(recipe["block"]) == list(rules)
    assert recipe["block"]["Linear"] == KRONECKER()
    linear, conv = nn.Linear(1, 1), nn.Conv2d(1, 1, 1)
    assert recipe.block_for("body.0", linear) == KRONECKER()
    assert recipe.block_for("head.0", linear) == DIAGONAL(0.5)  # the first that matches wins
    assert recipe.block_for("body.1", conv) == DIAGONAL()
    assert recipe.block_for("body.1", "Embedding") == TOYS["block", "identity"]()
    assert paper.block_for("anything", conv) == KRONECKER()
    narrow = paper.replace(block={"Linear": "kronecker"})
    assert refusal(lambda: narrow.block_for("body.1", conv)) == (
        "no rule of block matches 'body.1' (Conv2d): Linear; add a rule '*'"
    )
    assert narrow != paper.replace(block={"linear": "kronecker"})
    swapped = dict(reversed(rules.items()))
    assert recipe != paper.replace(block=swapped)  # the order is part of the meaning


def test_the_fallback_is_a_block(paper: Recipe) -> None:
    recipe = paper.replace(fallback="diagonal")
    assert recipe.fallback_block == DIAGONAL()
    assert recipe.replace(damping="constant").fallback == "diagonal"
    assert recipe.replace(fallback=None) == paper
    assert Recipe.from_text("fallback = none", lab=paper._lab) == paper
    chosen = recipe.replace(layers={"Linear": "kfac-lab/paper"})
    for each in (paper, recipe, chosen):
        texts = {slot: each.text_of(slot) for slot in ("fallback", "layers")}
        assert chosen.replace(**texts) == each


def test_claims_go_through_the_recipe(third_party_plugins: None) -> None:
    def claims(answer: str) -> Any:
        return module(answer, kfac_claim_layer=lambda module: answer)

    lab = toy_lab(Point("x", claims("x")), Point("y", claims("y")))
    recipe = Recipe.named("paper", lab=lab)
    linear = nn.Linear(1, 1)
    with pytest.raises(PluginError, match="is claimed by"):
        recipe.claim(linear, "a")
    chosen = recipe.replace(layers={"Linear": "dist-y/y"})
    layer, owner = chosen.claim(linear, "a")  # type: ignore[misc]
    assert (layer, owner) == ("y", "dist-y/y")
    assert chosen.replace(damping="constant").claim(linear, "a") == ("y", "dist-y/y")
    assert Recipe.from_text(chosen.text(), lab=lab) == chosen != recipe


# --- names taken twice ---


def test_a_presets_own_parts_are_meant_where_a_name_is_taken_twice(
    third_party_plugins: None,
) -> None:
    lab = toy_lab(Point("x", registers("damping", "levenberg_marquardt", CONSTANT), "dist-x"))
    with pytest.warns(PluginWarning, match="is registered by kfac-lab and dist-x"):
        paper = Recipe.named("paper", lab=lab)
    assert paper["damping"] == LevenbergMarquardt()
    assert paper.text_of("damping") == "kfac-lab/levenberg_marquardt(lam=150)"
    assert Recipe.from_text(paper.text(), lab=lab) == paper
    with pytest.raises(PluginError, match="is registered by kfac-lab and dist-x"):
        paper.replace(damping="levenberg_marquardt")
    assert paper.replace(damping="dist-x/levenberg_marquardt")["damping"] == CONSTANT()


# --- the box's own recipes ---


def test_the_named_recipes_of_the_box() -> None:
    lab = Lab(entry_points=False)
    names = set(lab.names("recipe"))
    assert names >= {
        "paper", "paper_tridiagonal", "no_momentum", "heskes", "centering", "robust",
        "small_batch", "nag", "adam", "muon",
    }  # fmt: skip
    for name in sorted(names):
        recipe = Recipe.named(name, lab=lab)
        for complete in (False, True):
            assert Recipe.from_toml(recipe.to_toml(complete=complete), lab=lab) == recipe
    tridiagonal = Recipe.named("paper_tridiagonal", lab=lab)
    assert set(Recipe.named("paper", lab=lab).difference(tridiagonal)) == {"structure"}
