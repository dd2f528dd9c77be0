"""Who claims a layer or a likelihood, and how a recipe prefers."""

import types
from typing import Any

import pytest
from torch import nn

from hooks.parts import Point, builtin, module, toy_lab
from kfac_lab.errors import PluginError
from kfac_lab.hooks import Lab, PluginWarning

pytestmark = pytest.mark.usefixtures("third_party_plugins")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFAC_LAB_STRICT", raising=False)


class Square(nn.Linear):
    """A subclass, which the claim for nn.Linear must not take."""


def claims(kind: type, answer: Any) -> types.ModuleType:
    def kfac_claim_layer(module: Any, path: str) -> Any:
        return (answer, path) if type(module) is kind else None

    return module("claims", kfac_claim_layer=kfac_claim_layer)


def lab_with_claims(*plugins: tuple[str, types.ModuleType]) -> Lab:
    own = builtin()
    own.kfac_claim_layer = claims(nn.Linear, "own").kfac_claim_layer
    points = [Point(name, plugin) for name, plugin in plugins]
    return Lab(builtins=[own], entry_points=points or False)


def test_a_builtin_claims_where_no_outsider_does_and_yields_where_one_does() -> None:
    lab = lab_with_claims()
    assert lab.claim_layer(nn.Linear(1, 1), "a.b") == ("own", "a.b")
    assert lab.claim(nn.Linear(1, 1), "a") == (("own", "a"), "kfac-lab/paper")
    assert lab.claim_layer(Square(1, 1), "a") is None
    lab = lab_with_claims(("x", claims(nn.Linear, "x")), ("y", claims(nn.Conv2d, "y")))
    assert lab.claim(nn.Linear(1, 1), "a") == (("x", "a"), "dist-x/x")
    assert lab.claim(nn.Conv2d(1, 1, 1), "c") == (("y", "c"), "dist-y/y")


def test_two_outside_claims_are_an_error_naming_both() -> None:
    lab = lab_with_claims(("x", claims(nn.Conv2d, "x")), ("y", claims(nn.Conv2d, "y")))
    with pytest.raises(PluginError) as caught:
        lab.claim_layer(nn.Conv2d(1, 1, 1), "body.0")
    told = str(caught.value)
    assert told.startswith("the module 'body.0' (Conv2d) is claimed by ")
    assert "dist-x/x" in told and "dist-y/y" in told
    assert told.endswith("say which in the recipe: layers={'Conv2d': 'dist/name'}")


@pytest.mark.parametrize(
    "preferred",
    ["dist-y/y", "y", {"Conv2d": "dist-y/y"}, {"body.*": "dist-y/y"}, {"Conv*": "y", "*": "x"}],
)
def test_the_recipe_says_whose_claim_counts(preferred: Any) -> None:
    lab = lab_with_claims(("x", claims(nn.Conv2d, "x")), ("y", claims(nn.Conv2d, "y")))
    assert lab.claim_layer(nn.Conv2d(1, 1, 1), "body.0", preferred) == ("y", "body.0")


def test_a_builtin_can_be_preferred_to_an_outsider() -> None:
    lab = lab_with_claims(("x", claims(nn.Linear, "x")))
    assert lab.claim_layer(nn.Linear(1, 1), "a", "kfac-lab/paper") == ("own", "a")
    assert lab.claim_layer(nn.Linear(1, 1), "a", {"Conv2d": "y"}) == ("x", "a")


def test_a_preference_that_cannot_be_met_is_said() -> None:
    lab = lab_with_claims(("x", claims(nn.Conv2d, "x")))
    with pytest.raises(PluginError) as caught:
        lab.claim_layer(nn.Linear(1, 1), "a", "dist-x/x")
    assert str(caught.value) == (
        "the recipe gives the module 'a' (Linear) to 'dist-x/x', which does not claim it"
    )
    with pytest.raises(
        PluginError, match=r"there is no plugin 'dist-x/z' \(did you mean 'dist-x/x'"
    ):
        lab.claim_layer(nn.Linear(1, 1), "a", "dist-x/z")


def raising(message: str) -> Any:
    def hook(module: Any) -> Any:
        raise ValueError(message)

    return hook


def test_a_claim_that_raises_is_shown_and_the_others_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = module("bad", kfac_claim_layer=raising("oops"))
    for order in (("bad", bad), ("x", claims(nn.Linear, "x"))), (
        ("x", claims(nn.Linear, "x")), ("bad", bad),
    ):  # fmt: skip
        lab = lab_with_claims(*order)
        with pytest.warns(PluginWarning) as caught:
            assert lab.claim_layer(nn.Linear(1, 1), "a") == ("x", "a")
        assert str(caught[0].message) == (
            "the plugin dist-bad/bad: kfac_claim_layer failed on the module 'a' (Linear): "
            "ValueError: oops"
        )
    monkeypatch.setenv("KFAC_LAB_STRICT", "1")
    with pytest.raises(PluginError, match="dist-bad/bad: kfac_claim_layer failed"):
        lab.claim_layer(nn.Linear(1, 1), "a")


def test_likelihoods_are_claimed_alike() -> None:
    def claim(answer: str) -> types.ModuleType:
        def kfac_claim_likelihood(loss: Any) -> Any:
            return answer if type(loss) is nn.MSELoss else None

        return module(answer, kfac_claim_likelihood=kfac_claim_likelihood)

    lab = toy_lab(Point("x", claim("x")))
    assert lab.claim_likelihood(nn.MSELoss()) == "x"
    assert lab.claim_likelihood(nn.L1Loss()) is None
    lab = toy_lab(Point("x", claim("x")), Point("y", claim("y")))
    with pytest.raises(
        PluginError, match=r"MSELoss.*is claimed by dist-[xy]/[xy] and dist-[xy]/[xy]"
    ):
        lab.claim_likelihood(nn.MSELoss())
