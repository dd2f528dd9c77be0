"""The components that the box registers, and those of the hooks' examples, in Labs of their own."""

from functools import cache

from hooks.test_specs import loaded

from kfac_lab.hooks import FAMILIES, Entry, Lab
from kfac_lab.testing import Report, report

NO_CLASS = ("problem", "recipe")  # what is registered is tried, not an instance of it


@cache
def box() -> Lab:
    """The built-ins alone."""
    return Lab(entry_points=False)


def names(slot: str) -> list[str]:
    return box().names(slot)


def tried(slot: str, name: str, lab: Lab | None = None, **extra: object) -> Report:
    """The report of a registered component at its defaults, or with the fields that its text names.

    The laws must leave the Lab as it was. One of the box is tried once.
    """
    return _of_the_box(slot, name) if lab is None and not extra else _tried(slot, name, lab, extra)


@cache
def _of_the_box(slot: str, name: str) -> Report:
    return _tried(slot, name, None, {})


def _tried(slot: str, name: str, lab: Lab | None, extra: dict[str, object]) -> Report:
    lab = lab or box()
    entry: Entry = lab.entry(slot, name.partition("(")[0])
    component = entry.component if slot in NO_CLASS else lab.component(slot, name)
    if slot == "recipe":
        extra["lab"] = lab
    return report(component, slot, **extra)


def example(slot: str) -> Report:
    """The report of what a hook's example registers."""
    lab, record = loaded(FAMILIES[slot])
    ((_, (name,)),) = record.slots.items()
    return tried(slot, name, lab)


def status(found: Report, law: str) -> str:
    (result,) = [r for r in found.results if r.law == law]
    return result.status
