"""Names → components, per slot; who owns each; what happens when two want one name.

A name that two distributions register stays ambiguous: the bare name is an error naming both, and
``dist/name`` always resolves. Text that came from one of the two (a named recipe) means its own.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kfac_lab.core.literal import brief
from kfac_lab.core.parameters import did_you_mean
from kfac_lab.core.slots import BySlot, slot_name, told_renamed
from kfac_lab.core.traits import SLOT_TRAITS, declared_wrongly
from kfac_lab.errors import PluginError, RecipeError

__all__ = [
    "ADDED",
    "FAMILIES",
    "NEEDS",
    "SHARED_SLOTS",
    "SLOTS",
    "Entry",
    "Registry",
    "collision",
    "missing_methods",
]

#: what a recipe fills: who steps, the parts of the step in the order of its verbs, the rest
SLOTS = tuple(SLOT_TRAITS)

#: components' names of before: a text that has one is read, with a note (slots': core/slots.py)
RENAMED: Mapping[tuple[str, str], str] = {("collective", "solo"): "single_process"}

#: the slots that a method other than kfac uses
SHARED_SLOTS = ("batch", "average")

#: slots that came when there were recipes already: one that leaves them out has the paper's part
ADDED: tuple[str, ...] = ()

#: what can be registered → the hook that does it
FAMILIES: Mapping[str, str] = BySlot(
    estimator="kfac_register_estimators",
    block="kfac_register_blocks",
    structure="kfac_register_structures",
    quadratic_model="kfac_register_models",
    damping="kfac_register_dampings",
    momentum="kfac_register_momentums",
    schedule="kfac_register_schedules",
    batch="kfac_register_batches",
    average="kfac_register_averages",
    collective="kfac_register_collectives",
    method="kfac_register_methods",
    problem="kfac_register_problems",
    recipe="kfac_register_recipes",
    view="kfac_register_views",
)

#: the methods that the engine calls on a component of each slot (core/protocols.py)
NEEDS: Mapping[str, tuple[str, ...]] = BySlot(
    estimator=("decay", "cotangents"),
    block=("wants", "factorise", "damped"),
    structure=("pairs", "factorise", "damped"),
    quadratic_model=("restrict",),
    damping=("init", "candidates", "adapt"),
    momentum=("basis", "choose"),
    schedule=("due",),
    batch=("size",),
    average=("init", "update", "read"),
    collective=("mean_", "owner", "broadcast_"),
    method=("attach",),
)


@dataclass(frozen=True)
class Entry:
    """One registered name: what it stands for, and whose it is."""

    slot: str
    name: str
    component: Any  # a class or factory; the text of a named recipe
    owner: str  # the distribution, or "notebook"
    version: str = ""
    summary: str = ""
    reference: str = ""
    plugin: str = ""  # the plugin within the distribution

    def __post_init__(self) -> None:
        object.__setattr__(self, "slot", slot_name(self.slot))

    @property
    def qualified(self) -> str:
        """``dist/name``, which resolves even where the bare name is taken twice."""
        return f"{self.owner}/{self.name}"


class Registry:
    """Slot → name → Entry. Filled by plugins through a Lab, read by recipes."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[tuple[str, str], Entry]] = {slot: {} for slot in FAMILIES}

    # --- writing: for the Lab ---

    def add(self, entry: Entry, *, replace: bool = False) -> None:
        """Adds an entry.

        :param replace: a name that the same owner already has is overwritten, not an error.
        :raises PluginError: for an unknown slot, a name that is none, a component that is none, or
            a name that the same distribution has already.
        """
        if entry.slot not in FAMILIES:
            raise PluginError(
                f"there is no slot {entry.slot!r}{did_you_mean(entry.slot, FAMILIES)}; "
                f"there are {', '.join(FAMILIES)}"
            )
        if not isinstance(entry.name, str) or not entry.name.isidentifier():
            raise PluginError(
                f"{entry.owner} registers the {entry.slot} {entry.name!r}: "
                "a name is made of letters, digits and _"
            )
        if entry.slot == "recipe":
            if not isinstance(entry.component, str):
                raise PluginError(
                    f"the recipe {entry.name!r} is registered as text, one slot a line"
                )
            try:
                check_complete(read_recipe(entry.component), entry.name)
            except RecipeError as error:
                raise PluginError(f"the recipe {entry.name!r}: {error}") from None
        elif not callable(entry.component):
            raise PluginError(
                f"{entry.owner} registers the {entry.slot} {entry.name!r} as {entry.component!r}: "
                "register the class (or a factory), not an instance"
            )
        is_class = isinstance(entry.component, type)
        missing = missing_methods(entry.slot, entry.component) if is_class else []
        if missing:
            raise PluginError(
                f"{entry.owner} registers the {entry.slot} {entry.name!r}, but "
                f"{entry.component.__name__} has no {', no '.join(missing)}; "
                f"a {entry.slot} has {', '.join(NEEDS[entry.slot])}"
            )
        if is_class and entry.slot in SLOT_TRAITS:
            wrong = declared_wrongly(entry.component, SLOT_TRAITS[entry.slot])
            if wrong:
                raise PluginError(
                    f"{entry.owner} registers the {entry.slot} {entry.name!r}, but {wrong}"
                )
        entries = self._entries[entry.slot]
        if (entry.owner, entry.name) in entries and not replace:
            raise PluginError(
                f"{entry.owner} registers the {entry.slot} {entry.name!r} twice; "
                "one distribution has one component of a name"
            )
        entries[entry.owner, entry.name] = entry

    def discard(self, owner: str, plugin: str) -> None:
        """Takes out what one plugin registered."""
        for entries in self._entries.values():
            for key in [k for k, e in entries.items() if (e.owner, e.plugin) == (owner, plugin)]:
                del entries[key]

    # --- reading ---

    def get(self, slot: str, name: str, prefer: str | None = None, hint: str = "") -> Entry:
        """The entry of a name, or of ``dist/name``.

        :param prefer: the distribution whose entry a bare name means where several have it.
        :param hint: one more sentence for the error of an unknown name.
        :raises PluginError: where two distributions have the name; it names both.
        :raises RecipeError: where nobody has it; it lists what there is.
        """
        slot = _family(slot)
        if not isinstance(name, str):
            raise RecipeError(f"the name of a {slot} is text, not {name!r}")
        owner, _, bare = name.rpartition("/")
        found = [
            entry
            for entry in self._entries[slot].values()
            if entry.name == bare and (not owner or _same_distribution(entry.owner, owner))
        ]
        now = RENAMED.get((slot, bare))
        if not found and now is not None:
            warnings.warn(f"the {slot} {bare!r} is called {now!r} now", FutureWarning, stacklevel=2)
            return self.get(slot, f"{owner}/{now}" if owner else now, prefer, hint)
        if len(found) > 1:
            found = [entry for entry in found if entry.owner == prefer] or found
        if len(found) > 1:
            raise PluginError(collision(found))
        if not found:
            raise RecipeError(self._unknown(slot, name, hint))
        return found[0]

    def __contains__(self, slot_and_name: object) -> bool:
        """``("damping", "constant") in registry``; also where the name is taken twice."""
        if not isinstance(slot_and_name, tuple) or len(slot_and_name) != 2:
            return False
        slot, name = slot_and_name
        of_slot = self._entries.get(slot_name(slot), {})
        return any(name in (e.name, e.qualified) for e in of_slot.values())

    def names(self, slot: str) -> list[str]:
        """What can be written in a slot: bare names, ``dist/name`` where one is taken twice."""
        return sorted(self.written(entry) for entry in self.entries(slot))

    def entries(self, slot: str | None = None) -> Iterator[Entry]:
        """All entries of a slot, or of all slots, in the order of the slots and of registration.

        :raises RecipeError: for an unknown slot.
        """
        for each in FAMILIES if slot is None else (_family(slot),):
            yield from self._entries[each].values()

    def written(self, entry: Entry) -> str:
        """How to write this entry so that it resolves: its bare name wherever that is enough."""
        twins = [other for other in self.entries(entry.slot) if other.name == entry.name]
        return entry.qualified if len(twins) > 1 else entry.name

    def of_component(self, slot: str, component: Any) -> Entry | None:
        """The entry whose class the component is an instance of (exactly), or None."""
        for entry in self.entries(slot):
            if entry.component is type(component):
                return entry
        return None

    def collisions(self) -> list[list[Entry]]:
        """The entries of each name that several distributions have."""
        by_name: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries():
            by_name.setdefault((entry.slot, entry.name), []).append(entry)
        return [found for found in by_name.values() if len(found) > 1]

    def _unknown(self, slot: str, name: str, hint: str) -> str:
        known = self.names(slot)
        elsewhere = [each for each in FAMILIES if each != slot and (each, name) in self]
        meant = did_you_mean(name, known)
        if not meant and elsewhere:
            meant = f" ({name!r} belongs in the slot {elsewhere[0]})"
        listed = f"there are {', '.join(known)}" if known else f"there is no {slot} at all"
        return f"there is no {slot} {name!r}{meant}; {listed}" + (f"; {hint}" if hint else "")


def _family(slot: str) -> str:
    """The slot by its name of today.

    :raises RecipeError: for an unknown one.
    """
    if slot not in FAMILIES:
        raise RecipeError(
            f"there is no slot {slot!r}{did_you_mean(slot, FAMILIES)}; "
            f"there are {', '.join(FAMILIES)}"
        )
    return slot_name(slot)


def collision(found: Sequence[Entry]) -> str:
    """The sentence for a name that several distributions have."""
    owners = " and ".join(entry.owner for entry in found)
    return (
        f"the {found[0].slot} {found[0].name!r} is registered by {owners}; "
        f"write {' or '.join(entry.qualified for entry in found)}"
    )


def read_recipe(text: str) -> dict[str, str]:
    """The lines of a recipe's text, "slot = component(…)", as slot → component's text.

    Empty lines and lines that start with # say nothing. Besides the slots a line may give
    ``fallback`` and ``layers``. The components' names are not looked up here.

    :raises RecipeError: for a line that is none, an unknown slot, a slot given twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        slot, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not value:
            raise RecipeError(f"line {number}, {brief(line)}, is not of the form: slot = component")
        check_slot(slot)
        if slot in found:
            raise RecipeError(f"line {number} gives {slot} a second time")
        found[slot] = value
    return told_renamed(found, "a recipe's text")


def check_slot(slot: str) -> None:
    """RecipeError where a recipe has no such slot."""
    known = (*SLOTS, "layers", "fallback")
    if slot_name(slot) not in known:
        raise RecipeError(
            f"a recipe has no slot {slot!r}{did_you_mean(slot, known)}; it has {', '.join(known)}"
        )


def check_complete(given: Mapping[str, Any], name: str = "") -> None:
    """RecipeError where a named recipe leaves a slot of its method out.

    Slots that were added since it was written may be, but for ``paper``, which has them.
    """
    method = str(given.get("method", "kfac")).partition("(")[0].strip().rpartition("/")[2]
    uses = SLOTS[1:] if method == "kfac" else SHARED_SLOTS
    later = () if name == "paper" else ADDED
    missing = [slot for slot in uses if slot not in given and slot not in later]
    if missing:
        raise RecipeError(f"a named recipe states every slot; {', '.join(missing)} is missing")


def missing_methods(slot: str, component: Any) -> list[str]:
    """What a class or an instance lacks of the methods that its slot needs.

    A class may make one of them a field, as ``constant(size=64)`` does: only its instances tell.
    """
    fields = {f.name for f in dataclasses.fields(component)} if _is_dataclass(component) else set()
    return [
        name
        for name in NEEDS.get(slot, ())
        if not callable(getattr(component, name, None)) and name not in fields
    ]


def _is_dataclass(component: Any) -> bool:
    return isinstance(component, type) and dataclasses.is_dataclass(component)


def _same_distribution(one: str, other: str) -> bool:
    return one.lower().replace("_", "-") == other.lower().replace("_", "-")
