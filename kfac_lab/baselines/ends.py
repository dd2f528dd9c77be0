"""The end of a run, by which rates fade: fields that say it."""

from __future__ import annotations

from typing import Any

from kfac_lab.core.parameters import parameter

__all__ = ["end_seconds", "end_steps", "one_end"]


def end_steps() -> Any:
    """The field ``total_steps``."""
    return parameter(None, section="13", low=1, help="steps of the whole run, where it is known")


def end_seconds() -> Any:
    """The field ``total_seconds``."""
    return parameter(
        None, section="13", low=0.0, help="training seconds of the whole run, by the wall"
    )


def one_end(component: Any) -> str | None:
    """A sentence where a component names two ends."""
    if component.total_steps is not None and component.total_seconds is not None:
        return "the end of a run is total_steps or total_seconds, not both"
    return None
