"""Wrappers that play their inner part method by method and forward none of its traits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

from kfac_lab.hooks.manager import Lab
from kfac_lab.hooks.registry import NEEDS

__all__ = ["unforwarding"]


@cache
def _box() -> Lab:
    return Lab(entry_points=False)


def unforwarding(slot: str, inner: str) -> Callable[[], Any]:
    """A part of a slot around ``inner``; its part_state, its needs and its limits stay behind."""

    def part(self: Any) -> Any:
        return _box().component(slot, self.inner)

    def played(name: str) -> Callable[..., Any]:
        return lambda self, *given, **named: getattr(part(self), name)(*given, **named)

    own: dict[str, Any] = {name: played(name) for name in NEEDS[slot]}
    if slot in ("estimator", "quadratic_model"):
        own["fraction"] = property(lambda self: part(self).fraction)
    name = f"Unforwarding{slot.title()}"
    made = dataclasses.make_dataclass(name, [("inner", str, inner)], frozen=True, namespace=own)
    made.__module__ = __name__  # a checkpoint finds it there
    globals()[name] = made
    return made
