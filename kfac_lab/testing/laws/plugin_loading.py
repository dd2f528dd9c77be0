"""The laws of a plugin's loading: it is imported, its hooks fit, and all it registers is taken."""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import pluggy

from kfac_lab.errors import PluginError
from kfac_lab.hooks import specs
from kfac_lab.hooks.manager import SLOW_IMPORT, Lab, Plugin
from kfac_lab.testing.law import Broken, Case, law

SLOT = "plugin"
EXAMPLES = "kfac_lab_examples"

_HOOKS = {
    name: tuple(inspect.signature(function).parameters)
    for name, function in vars(specs).items()
    if name.startswith("kfac_") and inspect.isfunction(function)
}


# --- the plugin in a Lab of its own ---------------------------------------------------------------


class Loaded(NamedTuple):
    """A Lab with the built-ins and this plugin alone."""

    lab: Lab
    plugin: Plugin


_loaded: weakref.WeakKeyDictionary[Case, Loaded | PluginError] = weakref.WeakKeyDictionary()


def loaded(case: Case) -> Loaded:
    """The plugin loaded, once per case.

    Raises:
        PluginError: the loader refuses it.
    """
    if case not in _loaded:
        try:
            _loaded[case] = _load(case)
        except PluginError as error:
            _loaded[case] = error
    found = _loaded[case]
    if isinstance(found, PluginError):
        raise found
    return found


def _load(case: Case) -> Loaded:
    lab = Lab(entry_points=False)
    for plugin in lab.plugins():
        if plugin.module is case.component:  # it is in the box
            return Loaded(lab, plugin)
    known = {key: case.extra[key] for key in ("distribution", "version") if key in case.extra}
    return Loaded(lab, lab.load_module(case.component, case.extra.get("name"), **known))


def _sentence(case: Case) -> str:
    """What the loader says to it."""
    try:
        loaded(case)
    except PluginError as error:
        return f"the loader's error: {error}"
    return "a plugin that loads all the same"


def _implementations(plugin: Any) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    """Attribute, hook, function and options of what is marked with @kl.hookimpl."""
    manager = pluggy.PluginManager(specs.PROJECT)
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is not None:
            hook = options.get("specname") or attribute
            yield attribute, hook, getattr(plugin, attribute), dict(options)


# --- loading --------------------------------------------------------------------------------------


@law(SLOT, "It can be imported.")
def runs(case: Case) -> None:
    error = case.extra.get("failed")
    if error is not None:
        raise Broken("its import", "a module", f"{type(error).__name__}: {error}")


@law(
    SLOT,
    "Its import takes at most a second beyond torch's: every user of the lab waits for it.",
    applies=lambda case: None if "seconds" in case.extra else "it was imported before",
)
def imports_quickly(case: Case) -> None:
    seconds = case.extra["seconds"]
    if seconds > SLOW_IMPORT:
        raise Broken("its import", f"at most {SLOW_IMPORT:g} s", f"{seconds:.1f} s")


@law(SLOT, "kfac_lab_api, where it says that, is the interface of this kfac_lab.")
def interface_fits(case: Case) -> None:
    api = getattr(case.component, "kfac_lab_api", specs.API_VERSION)
    if api != specs.API_VERSION or isinstance(api, bool):
        raise Broken("kfac_lab_api", f"{specs.API_VERSION}", f"{api!r}, and {_sentence(case)}")


@law(SLOT, "Every function named like a hook is marked with @kl.hookimpl.")
def hooks_marked(case: Case) -> None:
    marked = {attribute for attribute, *_ in _implementations(case.component)}
    for name in _HOOKS:
        function = getattr(case.component, name, None)
        if callable(function) and name not in marked and not hasattr(function, "kfac_lab_spec"):
            raise Broken(name, "@kl.hookimpl above it", _sentence(case))


@law(SLOT, "Every function that is marked is named like a hook.")
def hooks_known(case: Case) -> None:
    for attribute, hook, _, options in _implementations(case.component):
        if hook not in _HOOKS and not options.get("optionalhook"):
            raise Broken(attribute, "the name of a hook", _sentence(case))


@law(SLOT, "Hooks are plain functions: no wrappers, generators or coroutines.")
def hooks_plain(case: Case) -> None:
    for attribute, _, function, options in _implementations(case.component):
        wraps = options.get("wrapper") or options.get("hookwrapper")
        odd = inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function)
        if wraps or odd:
            raise Broken(attribute, "a plain function", _sentence(case))


@law(
    SLOT,
    "A hook takes those of the hook's arguments that it names, without defaults.",
    needs=("runs", "hooks_known", "hooks_plain"),
)
def hook_arguments(case: Case) -> None:
    for attribute, hook, function, _ in _implementations(case.component):
        for one in inspect.signature(function).parameters.values():
            fine = one.kind is one.POSITIONAL_OR_KEYWORD and one.default is one.empty
            if not fine or one.name not in _HOOKS.get(hook, (one.name,)):
                told = f"arguments out of ({', '.join(_HOOKS[hook])}), without defaults"
                raise Broken(f"{attribute}, {one}", told, _sentence(case))


@law(
    SLOT,
    "It loads, in a lab with the built-ins alone: all that it registers is taken.",
    needs=(
        "runs",
        "interface_fits",
        "hooks_marked",
        "hooks_known",
        "hooks_plain",
        "hook_arguments",
    ),
)
def loads(case: Case) -> None:
    try:
        loaded(case)
    except PluginError as error:
        raise Broken("its loading", "a plugin that loads", str(error)) from None


@law(SLOT, "It registers something or implements a claim or an event.", needs=("loads",))
def brings_something(case: Case) -> None:
    plugin = loaded(case).plugin
    if not plugin.slots and not plugin.hooks:
        raise Broken("its hooks", "one at least", "a plugin without any")


@law(SLOT, "None of its names is a built-in's: a bare name means one component.", needs=("loads",))
def names_of_its_own(case: Case) -> None:
    plugin = loaded(case).plugin
    if plugin.collisions:
        raise Broken("its names", "names that nobody has", plugin.collisions[0])
