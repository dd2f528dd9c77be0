"""The marks by which pluggy knows hooks and what implements them."""

from __future__ import annotations

from collections.abc import Callable

import pluggy

__all__ = ["API_VERSION", "GROUP", "PROJECT", "Register", "hookimpl", "hookspec"]

PROJECT = "kfac_lab"
GROUP = "kfac_lab"  # of the entry points

#: what a plugin may say that it was written for: ``kfac_lab_api = 1`` (absent means current)
API_VERSION = 1

#: marks a hook specification of this package
hookspec = pluggy.HookspecMarker(PROJECT)
#: marks a function of a plugin as its answer to the hook of that name
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[..., None]
