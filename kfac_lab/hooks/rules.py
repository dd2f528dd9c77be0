"""What stands in a recipe's slot: a component, or for blocks rules of components."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kfac_lab.core import parameters
from kfac_lab.core.literal import brief, parse
from kfac_lab.core.parameters import component_name
from kfac_lab.errors import PluginError, RecipeError
from kfac_lab.hooks.forms import mapping
from kfac_lab.hooks.registry import Entry

if TYPE_CHECKING:
    from kfac_lab.hooks.manager import Lab

__all__ = ["FALLBACKS", "RecipePart", "Rules", "read_fallback", "read_layers", "resolved"]

#: what may happen to parameters that no layer claims
FALLBACKS = (None, "identity", "diagonal")


@dataclass(frozen=True)
class Rules(Mapping[str, Any]):
    """Blocks by rule: a pattern on the path, or on the class name → component; the first wins."""

    rules: tuple[tuple[str, Any], ...]

    def pick(self, path: str, module: Any) -> Any:
        """The block of a module (or of a class name).

        :raises RecipeError: where no rule matches.
        """
        kind = module if isinstance(module, str) else type(module).__name__
        for pattern, component in self.rules:
            if fnmatchcase(path, pattern) or fnmatchcase(kind, pattern):
                return component
        raise RecipeError(
            f"no rule of block matches {path!r} ({kind}): {', '.join(self)}; add a rule '*'"
        )

    def __getitem__(self, pattern: str) -> Any:
        return dict(self.rules)[pattern]

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self.rules))

    def __len__(self) -> int:
        return len(self.rules)


@dataclass(frozen=True)
class RecipePart:
    """A component, whose it is, and the text that it came from."""

    component: Any
    entry: Entry | None
    source: str = ""

    def text(self, lab: Lab, complete: bool = False) -> str:
        """As the recipe writes it; with ``complete`` every field is named.

        :raises RecipeError: where the component's class is not registered.
        """
        if self.entry is None:
            raise RecipeError(
                f"{self.component!r} has no name: register its class, "
                f"lab.register(slot, {component_name(self.component)!r}, "
                f"{type(self.component).__name__})"
            )
        name = lab.registry.written(self.entry)
        by_class = self.entry.component is type(self.component)
        if self.source and not (complete and by_class):
            return parameters.unparse(name, parse(self.source).values)  # what was named stays so
        return parameters.text(self.component, name, complete=complete)


def resolved(lab: Lab, slot: str, value: Any, prefer: str | None) -> Any:
    """The part, or for rules the parts, that a value says."""
    if slot == "block" and isinstance(value, str) and value.lstrip().startswith("{"):
        value = mapping(value, "block")
    if slot == "block" and isinstance(value, Mapping):
        sound = all(isinstance(k, str) and not isinstance(v, Mapping) for k, v in value.items())
        if not value or not sound:
            raise RecipeError(
                f"block={brief(value)} must be a component or rules {{pattern: component}}"
            )
        return {pattern: resolved(lab, slot, each, prefer) for pattern, each in value.items()}
    if value is None:
        raise RecipeError(f"{slot}=None says nothing; name a component")
    if slot == "method" and isinstance(value, str) and parse(value) == ("kfac", {}):
        return RecipePart(None, None, "kfac")  # looked up when it is asked for
    component, entry = lab.resolve(slot, value, prefer)
    return RecipePart(component, entry, value if isinstance(value, str) else "")


def read_layers(lab: Lab, layers: Any) -> Mapping[str, str]:
    """Whose claim counts, by class name or path.

    :raises RecipeError: for no such mapping, or an unknown plugin.
    """
    if isinstance(layers, str):
        layers = mapping(layers, "layers")
    if layers is None:
        return MappingProxyType({})
    if not isinstance(layers, Mapping) or not all(
        isinstance(key, str) and isinstance(value, str) for key, value in layers.items()
    ):
        raise RecipeError(f"layers={brief(layers)} must be {{'class name or path': 'dist/name'}}")
    lab.load()
    for pattern, plugin in layers.items():
        try:
            lab.plugin(plugin)
        except PluginError as error:
            raise RecipeError(f"layers={{{pattern!r}: {plugin!r}}}: {error}") from None
    return MappingProxyType(dict(layers))


def read_fallback(fallback: Any) -> str | None:
    """The block of what nobody claims, or None.

    :raises RecipeError: for another word.
    """
    if fallback in ("none", "None"):
        fallback = None
    if fallback not in FALLBACKS:
        meant = parameters.did_you_mean(fallback, FALLBACKS[1:])
        raise RecipeError(
            f"fallback={brief(fallback)} must be 'identity', 'diagonal' or None{meant}"
        )
    return fallback
