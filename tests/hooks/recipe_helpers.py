"""What is refused in a recipe, and the toys it is made of."""

from typing import Any

import pytest

from hooks.parts import TOYS
from kfac_lab.errors import RecipeError

CONSTANT = TOYS["damping", "constant"]

KRONECKER, DIAGONAL = TOYS["block", "kronecker"], TOYS["block", "diagonal"]


def refusal(make: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        make()
    return str(caught.value)
