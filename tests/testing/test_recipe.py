"""The laws of a named recipe: the box's and the hook's example."""

import pytest
from broken.recipe import SOUND
from testing.registered import box, example, names, tried

import kfac_lab as kl


@pytest.mark.parametrize("name", names("recipe"))
def test_the_box_obeys(name):
    found = tried("recipe", name)
    assert found.passed, str(found)


def test_text_and_recipe_are_told_by_themselves():
    assert kl.testing.check(SOUND).slot == "recipe"
    assert kl.testing.check(kl.Recipe.named("robust", lab=box())).passed


def test_a_recipe_that_needs_no_l2_trains_without():
    text = SOUND.replace("= block_diagonal", "= block_diagonal(low_rank=True)")
    assert kl.testing.check(text).passed


def test_the_hooks_example_obeys():
    assert example("recipe").passed, str(example("recipe"))
