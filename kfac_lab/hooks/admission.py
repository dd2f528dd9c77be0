"""What a plugin is held to before its hooks are called: what pluggy would let pass in silence."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pluggy

from kfac_lab.core.parameters import did_you_mean
from kfac_lab.errors import PluginError
from kfac_lab.hooks import specs

__all__ = ["EVENTS", "HOOKS", "check_api", "check_hooks", "implementations"]

HOOKS = {
    name: tuple(inspect.signature(function).parameters)
    for name, function in vars(specs).items()
    if name.startswith("kfac_") and inspect.isfunction(function)
}
EVENTS = tuple(name for name in HOOKS if name.startswith("kfac_on_"))


def check_api(plugin: Any) -> None:
    """PluginError where a plugin was written for another interface than this one."""
    api = getattr(plugin, "kfac_lab_api", specs.API_VERSION)
    if api == specs.API_VERSION:
        return
    if not isinstance(api, int) or isinstance(api, bool):
        raise PluginError(f"kfac_lab_api={api!r} must be a whole number: {specs.API_VERSION}")
    older = "this kfac_lab" if api > specs.API_VERSION else "the plugin"
    raise PluginError(
        f"it was written for plugin interface {api}, and this kfac_lab has interface "
        f"{specs.API_VERSION}; upgrade {older}"
    )


def implementations(manager: pluggy.PluginManager, plugin: Any) -> dict[str, Any]:
    """Hook name → (function, options) of a plugin, before pluggy has it."""
    found = {}
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is not None:
            name = options.get("specname") or attribute
            found[name] = (getattr(plugin, attribute), options)
    return found


def check_hooks(plugin: Any, hooks: Mapping[str, Any]) -> None:
    """What pluggy would let pass in silence, and its own checks in a sentence."""
    try:
        hash(plugin)
    except TypeError:
        raise PluginError("the plugin object must be hashable; a module always is") from None
    for name in HOOKS:
        function = getattr(plugin, name, None)
        if callable(function) and name not in hooks and not hasattr(function, "kfac_lab_spec"):
            raise PluginError(f"{name} is not marked as a hook; write @kl.hookimpl above it")
    for name, (function, options) in hooks.items():
        if name not in HOOKS:
            if options.get("optionalhook"):
                continue
            raise PluginError(f"there is no hook {name!r}{did_you_mean(name, HOOKS)}")
        if options.get("wrapper") or options.get("hookwrapper"):
            raise PluginError(
                f"{name} is a wrapper; plugins are asked on their own, so wrap nothing"
            )
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise PluginError(f"{name} must be a plain function: nobody awaits or iterates it")
        _check_arguments(name, function)


def _check_arguments(name: str, function: Any) -> None:
    has = HOOKS[name]
    for parameter in inspect.signature(function).parameters.values():
        written = f"{name}: the argument {parameter.name!r}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise PluginError(f"{written} is never filled; name what you want of {', '.join(has)}")
        if parameter.default is not parameter.empty:
            raise PluginError(f"{written} has a default, so it is never filled; remove the default")
        if parameter.kind is parameter.KEYWORD_ONLY:
            raise PluginError(f"{written} is keyword-only, so it is never filled; remove the *")
        if parameter.name not in has:
            meant = did_you_mean(parameter.name, has)
            raise PluginError(f"{written} is none that the hook has ({', '.join(has)}){meant}")
