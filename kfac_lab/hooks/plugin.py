"""What the lab knows of a plugin, and how it speaks of it."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pluggy

from kfac_lab.core.slots import BySlot
from kfac_lab.errors import KfacLabError

__all__ = ["BUILTIN_OWNER", "Claim", "Plugin", "PluginWarning"]

BUILTIN_OWNER = "kfac-lab"


class PluginWarning(UserWarning):
    """A plugin misbehaved, and the lab went on without it."""


@dataclass
class Plugin:
    """What the lab knows of one plugin; a row of ``kfac-lab plugins``."""

    name: str  # the entry point's name
    distribution: str
    version: str = ""
    status: str = "not loaded"  # loaded · FAILED · not allowed · not loaded
    notes: list[str] = field(default_factory=list)  # the reason of a failure, or what else there is
    collisions: list[str] = field(default_factory=list)  # the names that another one has too
    slots: BySlot[list[str]] = field(default_factory=BySlot)  # slot → the names it registered
    hooks: tuple[str, ...] = ()  # the claims and events that it implements
    seconds: float | None = None  # to import and register
    traceback: str = field(default="", repr=False)  # of a failure
    module: Any = field(default=None, repr=False, compare=False)
    builtin: bool = False

    @property
    def qualified(self) -> str:
        """``dist/name``, as ``layers={…}`` of a recipe writes it."""
        return f"{self.distribution}/{self.name}"

    @property
    def why(self) -> str:
        """Why it failed, is not loaded, or deserves a look; "" where all is well."""
        return "; ".join([*self.notes, *self.collisions])

    def called(self, name: str) -> bool:
        """Whether ``name`` means this plugin: its name, its distribution, or both with a slash."""
        name, mine = normal(name), (self.name, self.distribution, self.qualified)
        return name in map(normal, mine)


class Claim(NamedTuple):
    """The answer to a claim: a Layer or a Likelihood, and whose it is."""

    answer: Any
    owner: str  # dist/name


def strict() -> bool:
    return os.environ.get("KFAC_LAB_STRICT", "") not in ("", "0")


def allowed() -> tuple[str, ...] | None:
    named = os.environ.get("KFAC_LAB_PLUGINS")
    if named is None:
        return None
    return tuple(name.strip() for name in named.split(",") if name.strip())


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def importer(source: Any) -> Callable[[], Any]:
    return lambda: importlib.import_module(source) if isinstance(source, str) else source


def last_part(source: Any) -> str:
    name = source if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)
    return name.rpartition(".")[2]


def own_version() -> str:
    try:
        return importlib.metadata.version(BUILTIN_OWNER)
    except importlib.metadata.PackageNotFoundError:
        return ""


def first_line(component: Any) -> str:
    """The summary that a docstring gives; the one that @dataclass makes up is none."""
    doc = (inspect.getdoc(component) or "") if callable(component) else ""
    line = doc.partition("\n")[0].strip()
    return "" if line.startswith(f"{getattr(component, '__name__', '')}(") else line


def reason(error: BaseException) -> str:
    if isinstance(error, (KfacLabError, pluggy.PluginValidationError)):
        return str(error)
    return f"{type(error).__name__}: {error}"


def warn(message: str) -> None:
    warnings.warn(message, PluginWarning, stacklevel=3)
