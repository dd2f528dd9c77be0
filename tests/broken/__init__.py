"""For every slot and law a component that breaks this law and no other: the kit's own proof.

Each file here is named after a slot and holds ``BROKEN``: the name of a law → a function that makes
the component. A component that needs more than itself (a layer its inputs) comes as the arguments
of ``check``: a tuple of the component and a dict.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["broken_for"]


def broken_for(slot: str) -> Mapping[str, Callable[[], Any]]:
    """Law → a function that makes a component of the slot that breaks it; {} for no such file."""
    name = f"{__name__}.{slot}"
    if importlib.util.find_spec(name) is None:
        return {}
    found: Mapping[str, Callable[[], Any]] = importlib.import_module(name).BROKEN
    return found
