"""A recipe in writing: its text, JSON and TOML, read back by the same names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kfac_lab.core import parameters
from kfac_lab.core.literal import parse
from kfac_lab.core.slots import told_renamed
from kfac_lab.errors import RecipeError
from kfac_lab.hooks import forms
from kfac_lab.hooks.registry import read_recipe

if TYPE_CHECKING:
    from typing_extensions import Self

    from kfac_lab.hooks.manager import Lab

__all__ = ["WrittenRecipe", "process_lab"]


class WrittenRecipe(Mapping[str, Any]):
    """The part of a Recipe that is written and read."""

    layers: Mapping[str, str]
    fallback: str | None
    _lab: Lab

    @classmethod
    def _made(cls, lab: Lab, values: Mapping[str, Any], prefer: str | None) -> Self:
        """Of texts or components by slot, ``layers`` and ``fallback`` too; see ``Recipe``."""
        raise NotImplementedError

    def _part(self, slot: str) -> Any:
        """What a slot was given; see ``Recipe``."""
        raise NotImplementedError

    def text_of(self, slot: str, *, complete: bool = False) -> str:
        """The text of one slot, as ``replace`` takes it; rules as {"pattern": "component", …}.

        Also of ``layers``, and of ``fallback`` ("none" where there is none).

        :raises RecipeError: where the component's class is not registered.
        """
        if slot == "fallback":
            return self.fallback or "none"
        return forms.one_line(self.layers if slot == "layers" else self._value(slot, complete))

    def text(self, *, complete: bool = False) -> str:
        """The recipe as lines "slot = component"; :meth:`from_text` reads it back.

        :param complete: name every field of every component, so that a later change of a default
            does not change what the text means.
        """
        values = self._values(complete)
        return "".join(f"{slot} = {forms.one_line(value)}\n" for slot, value in values.items())

    @classmethod
    def from_text(cls, text: str, *, lab: Lab | None = None) -> Self:
        """Reads :meth:`text`.

        :raises RecipeError: for a line that is none, or as the constructor does.
        """
        lines = read_recipe(forms.checked(text, "a recipe"))
        return cls._made(lab or process_lab(), lines, None)

    def to_json(self, *, complete: bool = False) -> str:
        """The recipe as one JSON object of texts."""
        return forms.to_json(self._values(complete))

    @classmethod
    def from_json(cls, text: str, *, lab: Lab | None = None) -> Self:
        """Reads :meth:`to_json`.

        :raises RecipeError: for text that is no JSON, or as the constructor does.
        """
        values = told_renamed(forms.loaded(text, json.loads, "JSON"), "a recipe in JSON")
        return cls._made(lab or process_lab(), values, None)

    def to_toml(self, *, complete: bool = False) -> str:
        """The recipe as TOML: the slots as strings, rules and layers as tables."""
        return forms.to_toml(self._values(complete))

    @classmethod
    def from_toml(cls, text: str, *, lab: Lab | None = None) -> Self:
        """Reads :meth:`to_toml`.

        :raises RecipeError: for text that is no TOML, or as the constructor does.
        """
        values = told_renamed(forms.loaded(text, forms.toml_loads, "TOML"), "a recipe in TOML")
        return cls._made(lab or process_lab(), values, None)

    @staticmethod
    def named_fields(source: Any) -> set[str]:
        """The parameters that a component's text names; a swap keeps the state of the others.

        "levenberg_marquardt" names none, "levenberg_marquardt(lam=150)" names lam, whatever its
        default. Of a component that is given as an object: those that differ from their defaults.
        """
        if isinstance(source, str):
            return set() if source.lstrip().startswith("{") else set(parse(source).values)
        return set(parameters.changed_fields(source))

    def _value(self, slot: str, complete: bool) -> str | dict[str, str]:
        part = self._part(slot)
        if isinstance(part, Mapping):
            return {pattern: each.text(self._lab, complete) for pattern, each in part.items()}
        return part.source if part.component is None else part.text(self._lab, complete)

    def _values(self, complete: bool) -> dict[str, Any]:
        values: dict[str, Any] = {slot: self._value(slot, complete) for slot in self}
        if self.fallback:
            values["fallback"] = self.fallback
        if self.layers:
            values["layers"] = dict(self.layers)
        return values

    def _shown(self, slot: str) -> str | None:
        if slot in ("layers", "fallback"):
            value = getattr(self, slot)
            return json.dumps(dict(value)) if slot == "layers" and value else value or None
        if slot not in self:
            return None
        try:
            return self.text_of(slot)
        except RecipeError:
            return repr(self[slot])

    def __repr__(self) -> str:
        shown = {slot: self._shown(slot) for slot in (*self, "layers", "fallback")}
        return f"Recipe({', '.join(f'{k}={v!r}' for k, v in shown.items() if v is not None)})"


def process_lab() -> Lab:
    """The lab of this process, which loads plugins where it is asked."""
    from kfac_lab.hooks import manager

    return manager.lab
