"""The hooks: everything by which a part gets into the lab. Three families, told by the prefix.

* **contribute**: ``kfac_register_…(register)`` is called once per plugin when it is loaded;
  ``register(name, component, summary="…", reference="…")`` puts a class into a slot.
* **claim**: ``kfac_claim_layer`` and ``kfac_claim_likelihood`` are asked at attach, each plugin on
  its own. Answer None for what is not yours, and go by exact type.
* **observe**: ``kfac_on_…`` fire on the training thread; they read and change nothing.

A plugin is a module (or an object) whose functions carry ``@kl.hookimpl``, named by an entry point
in the group ``kfac_lab``; an implementation takes those of the hook's arguments that it names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy

__all__ = ["API_VERSION", "GROUP", "PROJECT", "hookimpl", "hookspec"]

PROJECT = "kfac_lab"
GROUP = "kfac_lab"  # of the entry points

#: what a plugin may say that it was written for: ``kfac_lab_api = 1`` (absent means current)
API_VERSION = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[..., None]


@hookspec
def kfac_register_estimators(register: Register) -> None:
    """Contributes estimators."""


@hookspec
def kfac_register_blocks(register: Register) -> None:
    """Contributes blocks."""


@hookspec
def kfac_register_structures(register: Register) -> None:
    """Contributes structures."""


@hookspec
def kfac_register_models(register: Register) -> None:
    """Contributes models."""


@hookspec
def kfac_register_dampings(register: Register) -> None:
    """Contributes dampings."""


@hookspec
def kfac_register_momentums(register: Register) -> None:
    """Contributes momentums."""


@hookspec
def kfac_register_schedules(register: Register) -> None:
    """Contributes schedules."""


@hookspec
def kfac_register_batches(register: Register) -> None:
    """Contributes batches."""


@hookspec
def kfac_register_averages(register: Register) -> None:
    """Contributes averages."""


@hookspec
def kfac_register_collectives(register: Register) -> None:
    """Contributes collectives."""


@hookspec
def kfac_register_methods(register: Register) -> None:
    """Contributes methods."""


@hookspec
def kfac_register_problems(register: Register) -> None:
    """Contributes problems."""


@hookspec
def kfac_register_recipes(register: Register) -> None:
    """Contributes recipes."""


@hookspec
def kfac_register_views(register: Register) -> None:
    """Contributes views."""


@hookspec
def kfac_claim_layer(module: Any, path: str) -> Any:
    """Claims a layer."""


@hookspec
def kfac_claim_likelihood(loss: Any) -> Any:
    """Claims a likelihood."""


@hookspec
def kfac_on_run_start(run: Any) -> None:
    """A run starts."""


@hookspec
def kfac_on_step(run: Any, record: Any) -> None:
    """A step was made."""


@hookspec
def kfac_on_swap(run: Any, swap: Any) -> None:
    """Parts were swapped."""


@hookspec
def kfac_on_run_error(run: Any, error: BaseException) -> None:
    """A run ended with an error."""


@hookspec
def kfac_on_run_end(run: Any) -> None:
    """A run ended."""
