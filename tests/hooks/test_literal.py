"""The text form of a component: what cannot be read is told in one sentence, however odd."""

import pytest

import kfac_lab as kl
from kfac_lab.core.literal import brief, parse

DEEP = {
    "minus": "c(a=" + "-" * 900 + "1)",
    "many minus": "c(a=" + "-" * 19_000 + "1)",
    "ratios": "c(a=1" + "/1" * 900 + ")",
    "brackets": "c(a=" + "(" * 900 + "1" + ",)" * 900 + ")",
    "digits": "c(a=1" + "0" * 400 + ")",
    "more digits": "c(a=1" + "0" * 10_000 + ")",
    "hexadecimal": "c(a=0x" + "f" * 5000 + ")",
    "ratio of digits": "c(a=1/1" + "0" * 400 + ")",
    "long": "c(a='" + "x" * 30_000 + "')",
    "nul": "c(a=\0)",
    "surrogate": "c(a='\ud800')[",
}


@pytest.mark.parametrize("name", DEEP)
def test_odd_texts_are_one_sentence(name: str) -> None:
    with pytest.raises(kl.RecipeError) as error:
        parse(DEEP[name])
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: kl.Recipe.from_text(None),
        lambda: kl.Recipe.from_text(b"damping = tied"),
        lambda: kl.Recipe.from_text("damping = " + "(" * 2_000_000),
        lambda: kl.Recipe.from_json("[" * 100_000),
        lambda: kl.Recipe.from_json(b"{}"),
        lambda: kl.Recipe.from_json('{"damping": ' + "9" * 10_000 + "}"),
        lambda: kl.Recipe.from_toml("a=" + "[" * 100_000),
        lambda: kl.Recipe.from_toml(b"a=1"),
        lambda: kl.Recipe.from_toml("damping = " + "9" * 10_000),
        lambda: kl.Recipe(damping="constant(lam=" + "-" * 900 + "1)"),
        lambda: kl.Recipe(damping="constant(lam=inf)"),
        lambda: kl.Recipe(damping="constant(lam=1" + "0" * 400 + ")"),
        lambda: kl.Recipe(batch="constant(size=0x" + "f" * 2000 + ")"),
        lambda: kl.Recipe(block={"*": {"*": "diagonal"}}),
        lambda: kl.Recipe(block='{"*": ' * 90 + "1" + "}" * 90),
        lambda: kl.Recipe(fallback=["identity"]),
        lambda: kl.Recipe(fallback=float("nan")),
        lambda: kl.Recipe(layers={"Linear": 3}),
        lambda: kl.Run("digits", seed=10**30),
        lambda: kl.Run("digits", device="meta"),
        lambda: kl.Run("digits", device=""),
        lambda: kl.Run("digits", device=3.5),
    ],
)
def test_odd_recipes_are_one_sentence(make) -> None:
    with pytest.raises(kl.KfacLabError) as error:
        make()
    assert len(str(error.value)) < 1500


def test_a_long_value_is_shown_by_its_ends() -> None:
    assert brief("a" * 1000).startswith("'aaa") and len(brief("a" * 1000)) < 200
    assert brief(10**5000) == "a int"
    assert brief("short") == "'short'"
