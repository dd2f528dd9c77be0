"""Recipe: which component plays which slot, as one frozen value with a text form.

As text, a recipe has one slot on each line; so named recipes are registered, and so it prints::

    method = kfac
    estimator = sampled(fraction=0.125)
    block = {"Conv2d": "kronecker(pi='trace')", "*": "diagonal"}
    damping = levenberg_marquardt(lam=150.0)

The same pairs are its TOML and its JSON. A component that was given as text names what that text
named, one that was given as an object what differs from its defaults, and with ``complete=True``
either names everything. Every value is resolved and validated where it is given, against the
registry of a Lab (the process's own unless another is given), which loads plugins at that moment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kfac_lab.core.literal import brief, parse
from kfac_lab.core.slots import by_todays_names, slot_name
from kfac_lab.errors import RecipeError
from kfac_lab.hooks.registry import SHARED_SLOTS, SLOTS, check_complete, check_slot, read_recipe
from kfac_lab.hooks.rules import FALLBACKS, Rules, read_fallback, read_layers, resolved
from kfac_lab.hooks.written import WrittenRecipe, process_lab

if TYPE_CHECKING:
    from typing_extensions import Self

    from kfac_lab.hooks.manager import Lab

__all__ = ["FALLBACKS", "Recipe", "Rules"]

_KEEP: Any = object()
_OWN = "kfac-lab"  # whose "kfac" and "identity" are meant


class Recipe(WrittenRecipe):
    """A frozen mapping slot → component.

    ``Recipe.named("paper")`` is a named one; ``Recipe(damping="constant(lam=0.1)")`` states some
    slots and takes the others from "paper". A slot is given as text or as a component. A method
    other than kfac uses ``batch`` and ``average`` only; another slot given with it is an error.

    >>> recipe = Recipe.named("paper").replace(damping="constant(lam=0.1)")
    >>> recipe["damping"].lam, recipe["structure"].low_rank
    (0.1, False)

    :param block: beside one component, rules ``{"pattern or class name": component, "*": …}``.
    :param layers: whose claim counts: a pattern on the path, or the class name → ``dist/name``.
    :param fallback: the block of parameters that nobody claims: "identity", "diagonal", or None,
        where they are an error.
    :param lab: whose registry the names mean; the default is the process's.
    :raises RecipeError: for an unknown slot, name or parameter, a broken rule, a contradiction.
    """

    _parts: Mapping[str, Any]  # slot → RecipePart, or for a block's rules pattern → RecipePart

    def __init__(
        self,
        *given: Any,
        layers: Any = None,
        fallback: Any = None,
        lab: Lab | None = None,
        **slots: Any,
    ) -> None:
        if given:
            name = given[0] if isinstance(given[0], str) else "paper"
            raise RecipeError(
                f"Recipe({given[0]!r}) names no slot, as Recipe(damping='tied') does; a recipe "
                f"that has a name is Recipe.named({name!r})"
            )
        lab = lab or process_lab()
        self._fill(lab, slots, layers, fallback, {}, None)

    # --- making ---

    @classmethod
    def named(cls, name: str, *, lab: Lab | None = None) -> Recipe:
        """A recipe that a plugin registered under a name.

        :raises RecipeError: where there is none of that name; it lists what there is.
        """
        lab = lab or process_lab()
        entry = lab.entry("recipe", name)
        try:
            values = read_recipe(entry.component)
            check_complete(values, entry.name)
            return cls._made(lab, values, entry.owner)
        except RecipeError as error:
            raise RecipeError(f"the recipe {name!r}: {error}") from error

    @classmethod
    def of(cls, source: Any, *, lab: Lab | None = None) -> Recipe:
        """A recipe from whatever says it: a Recipe, a name, its text, or a mapping of slots.

        :raises RecipeError: where it says none, or as the constructor does.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Mapping):
            return cls._made(lab or process_lab(), source, None)
        if not isinstance(source, str):
            raise RecipeError(
                f"a recipe is a name, a text, a mapping or a Recipe, not {brief(source)}"
            )
        if re.fullmatch(r"\s*[\w.\-]+(/\w+)?\s*", source):
            return cls.named(source.strip(), lab=lab)
        return cls.from_text(source, lab=lab)

    def replace(self, *, layers: Any = _KEEP, fallback: Any = _KEEP, **slots: Any) -> Recipe:
        """The recipe with some slots given anew; another method drops the slots it has no use for.

        :raises RecipeError: as the constructor does.
        """
        kept = dict(self._parts)
        if "method" in slots:
            del kept["method"]
        recipe = object.__new__(Recipe)
        given_layers = None if layers is _KEEP else layers
        given_fallback = None if fallback is _KEEP else fallback
        recipe._fill(self._lab, slots, given_layers, given_fallback, kept, None)
        if recipe.method == "kfac":
            if layers is _KEEP:
                recipe.__dict__["layers"] = self.layers
            if fallback is _KEEP:
                recipe.__dict__["fallback"] = self.fallback
        return recipe

    @classmethod
    def _made(cls, lab: Lab, values: Mapping[str, Any], prefer: str | None) -> Self:
        recipe = object.__new__(cls)
        slots = dict(values)
        layers, fallback = slots.pop("layers", None), slots.pop("fallback", None)
        recipe._fill(lab, slots, layers, fallback, {}, prefer)
        return recipe

    def _fill(
        self,
        lab: Lab,
        slots: Mapping[str, Any],
        layers: Any,
        fallback: Any,
        kept: Mapping[str, Any],
        prefer: str | None,
    ) -> None:
        """Sets every field; ``slots`` were given now, ``kept`` are parts of before."""
        slots = by_todays_names(slots)
        for slot in slots:
            check_slot(slot)
        parts = {slot: resolved(lab, slot, value, prefer) for slot, value in slots.items()}
        parts.setdefault("method", kept.get("method") or resolved(lab, "method", "kfac", prefer))
        fields = {
            "_lab": lab,
            "layers": read_layers(lab, layers),
            "fallback": read_fallback(fallback),
        }
        self.__dict__.update(fields, _parts=parts)
        uses = SLOTS if self.method == "kfac" else ("method", *SHARED_SLOTS)
        given = [*slots, *(name for name in ("layers", "fallback") if fields[name])]
        for slot in given:
            if slot not in uses and self.method != "kfac":
                value = slots.get(slot, fields.get(slot))
                raise RecipeError(
                    f"{slot}={value!r} and method={self.method!r} do not go together: "
                    f"{self.method} uses {' and '.join(SHARED_SLOTS)} only"
                )
        missing = [slot for slot in uses if slot not in parts and slot not in kept]
        paper = Recipe.named("paper", lab=lab)._parts if missing else {}
        self.__dict__["_parts"] = {
            slot: parts.get(slot) or kept.get(slot) or paper[slot] for slot in uses
        }

    # --- reading ---

    @property
    def method(self) -> str:
        """The method's bare name, "kfac" unless stated."""
        part = self._parts["method"]
        return parse(part.source).name.rpartition("/")[2] if part.source else part.entry.name

    def __getitem__(self, slot: str) -> Any:
        slot = slot_name(slot)
        if slot in ("layers", "fallback"):
            return getattr(self, slot)
        part = self._part(slot)
        if isinstance(part, Mapping):
            return Rules(tuple((pattern, each.component) for pattern, each in part.items()))
        if part.component is None:
            return self._lab.component(slot, part.source, prefer=_OWN)
        return part.component

    def _part(self, slot: str) -> Any:
        check_slot(slot)
        slot = slot_name(slot)
        if slot not in self._parts:
            raise RecipeError(f"the method {self.method!r} uses no {slot}")
        return self._parts[slot]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, slot: object) -> bool:
        return slot_name(slot) in self._parts

    def get(self, slot: str, default: Any = None) -> Any:
        """The component of a slot, or the default where the method does not use the slot."""
        return self[slot] if slot in self else default

    def block_for(self, path: str, module: Any) -> Any:
        """The block of a module, by the rules where there are rules.

        :raises RecipeError: where no rule matches.
        """
        block = self["block"]
        return block.pick(path, module) if isinstance(block, Rules) else block

    @property
    def fallback_block(self) -> Any:
        """The block of the parameters that nobody claims, or None where they are an error."""
        if self.fallback is None:
            return None
        return self._lab.component("block", self.fallback, prefer=_OWN)

    def claim(self, module: Any, path: str) -> tuple[Any, str] | None:
        """(Layer, ``dist/name``) of whoever claims the module, by ``layers`` where it says so.

        :raises PluginError: where two outsiders claim it and ``layers`` names none of them.
        """
        return self._lab.claim(module, path, self.layers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recipe):
            return NotImplemented
        return self._comparable() == other._comparable()

    def __hash__(self) -> int:
        return hash((self.method, self.fallback, tuple(self.layers.items())))

    def _comparable(self) -> dict[str, Any]:
        values = {slot: self[slot] for slot in self if slot != "method"}
        part = self._parts["method"]
        values["method"] = part.source if part.component is None else part.component
        return {**values, "layers": dict(self.layers), "fallback": self.fallback}

    def difference(self, other: Recipe) -> dict[str, tuple[str | None, str | None]]:
        """Slot → (text here, text there), for the slots in which two recipes differ."""
        mine, theirs = self._comparable(), other._comparable()
        slots = [*dict.fromkeys([*self, *other]), "layers", "fallback"]
        return {
            slot: (self._shown(slot), other._shown(slot))
            for slot in slots
            if mine.get(slot) != theirs.get(slot) or (slot in mine) != (slot in theirs)
        }

    # --- frozen ---

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Recipe is frozen; write recipe.replace({name}=…)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a Recipe is frozen")

    def __copy__(self) -> Recipe:
        return self

    def __deepcopy__(self, part_state: Any) -> Recipe:
        return self

    def __reduce__(self) -> Any:
        return Recipe.from_text, (self.text(complete=True),)
