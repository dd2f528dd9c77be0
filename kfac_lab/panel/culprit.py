"""Whose part raised an error."""

from __future__ import annotations

import traceback

from kfac_lab.hooks.manager import BUILTIN_OWNER, Lab

__all__ = ["culprit"]


def culprit(error: BaseException, lab: Lab) -> str:
    """Whose part raised: "the damping 'mine' of some-plugin", or "" where it was the box's own.

    Found by the frames of the traceback, the innermost first: a method of a registered class, or a
    function of a module that a plugin registered something from.
    """
    entries = [e for e in lab.registry.entries() if e.owner != BUILTIN_OWNER]
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for entry in entries:
            if type(frame.f_locals.get("self")) is entry.component:
                return f"the {entry.slot} {entry.name!r} of {entry.owner}"
        for entry in entries:
            module = getattr(entry.component, "__module__", None)
            if module == frame.f_globals.get("__name__") != "__main__":
                return f"{module} of {entry.owner}"
    return ""
