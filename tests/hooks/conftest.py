"""Fixtures of this folder."""

import pytest

from hooks.parts import toy_lab
from kfac_lab.hooks import Lab, Recipe


@pytest.fixture
def lab(third_party_plugins: None) -> Lab:
    return toy_lab()


@pytest.fixture
def paper(lab: Lab) -> Recipe:
    return Recipe.named("paper", lab=lab)
