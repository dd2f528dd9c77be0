"""Lab: loads plugins and keeps them apart, answers claims, dispatches events.

pluggy finds and orders the implementations; what it would let one plugin do to another, the Lab
prevents. Measured facts that shaped it: an implementation that raises stops those after it, so each
plugin is asked on its own; a failed registration may stay half done, so loading is a transaction;
a misspelt hook is silent, an argument with a default is never filled, and the last of two claims
wins without a word, so each of these is an error that says so.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import pluggy

from kfac_lab.core.claims import ByStructure
from kfac_lab.core.parameters import build, did_you_mean, parse, validate
from kfac_lab.errors import KfacLabError, PluginError, RecipeError
from kfac_lab.hooks import specs
from kfac_lab.hooks.registry import (
    FAMILIES,
    NEEDS,
    Entry,
    Registry,
    collision,
    missing_methods,
)

__all__ = ["BUILTINS", "BUILTIN_OWNER", "Claim", "Lab", "Plugin", "PluginWarning", "lab"]

#: the parts in the box: named here and imported at first use, through the same door as outsiders
BUILTINS: tuple[str, ...] = (
    "kfac_lab.paper",
    "kfac_lab.problems",
    "kfac_lab.run",
    "kfac_lab.panel.views",
)
BUILTIN_OWNER = "kfac-lab"
NOTEBOOK = "notebook"

SLOW_IMPORT = 1.0  # seconds; more is said in the listing
PATIENCE = 3  # an observer that raised so often is switched off

_HOOKS = {
    name: tuple(inspect.signature(function).parameters)
    for name, function in vars(specs).items()
    if name.startswith("kfac_") and inspect.isfunction(function)
}
_EVENTS = tuple(name for name in _HOOKS if name.startswith("kfac_on_"))


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
    slots: dict[str, list[str]] = field(default_factory=dict)  # slot → the names it registered
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
        name, mine = _normal(name), (self.name, self.distribution, self.qualified)
        return name in map(_normal, mine)


class Claim(NamedTuple):
    """The answer to a claim: a Layer or a Likelihood, and whose it is."""

    answer: Any
    owner: str  # dist/name


class Lab:
    """The plugin manager and the registry that it fills.

    Nothing is loaded by making a Lab: built-ins and entry points load at the first use of a name.
    A plugin that fails is listed as FAILED with its reason (``lab.plugins()``), warned about, and
    stops nothing; with KFAC_LAB_STRICT=1 every use raises PluginError. KFAC_LAB_PLUGINS=a,b allows
    only those plugins (by name or by distribution; empty: none).

    :param builtins: modules or their names, loaded before all others; the default is the box's own.
    :param entry_points: False refuses discovery (for tests); else what to discover, by default the
        installed entry points of the group ``kfac_lab``.
    """

    def __init__(
        self,
        *,
        builtins: Iterable[Any] | None = None,
        entry_points: bool | Iterable[Any] = True,
    ) -> None:
        self.registry = Registry()
        self._manager = pluggy.PluginManager(specs.PROJECT)
        self._manager.add_hookspecs(specs)
        self._builtins = BUILTINS if builtins is None else tuple(builtins)
        self._entry_points = entry_points
        self._plugins: list[Plugin] = []
        self._observers: dict[str, list[tuple[Plugin, Callable[..., Any]]]] = {}
        self._errors: dict[tuple[int, str], int] = {}
        self._lock = threading.RLock()
        self._loaded = self._loading = False

    # --- loading ---

    def load(self) -> None:
        """Loads built-ins and entry points, once; called by every use of a name.

        :raises PluginError: with KFAC_LAB_STRICT=1, where a plugin failed or a name is taken twice.
        """
        self._ensure_loaded()
        if _strict():
            self._raise_failures()

    def _ensure_loaded(self) -> None:
        if self._loaded:
            return
        with self._lock:  # other threads wait here
            if self._loaded or self._loading:  # an import may use the lab itself
                return
            self._loading = True
            try:
                told = self._load_everything()
                self._loaded = True
            finally:
                self._loading = False
        for message in told:
            _warn(message)

    def load_module(
        self, plugin: Any, name: str | None = None, *, distribution: str = "", version: str = ""
    ) -> Plugin:
        """Loads one plugin: a module, its name, or any object with hook implementations.

        :raises PluginError: where it fails; it is also listed as FAILED, and leaves nothing behind.
        """
        if name is None:
            name = plugin if isinstance(plugin, str) else getattr(plugin, "__name__", None)
            name = name or type(plugin).__name__
        record = Plugin(name, distribution or name, version)
        with self._lock:
            for other in [p for p in self._plugins if p.qualified == record.qualified]:
                if other.status == "loaded":
                    raise PluginError(f"the plugin {record.qualified} is loaded already")
                self._plugins.remove(other)
            error = self._load(record, _importer(plugin))
            self._note_collisions()
        if error is not None:
            raise PluginError(f"the plugin {record.qualified} FAILED: {record.why}") from error
        return record

    def unload(self, name: str) -> None:
        """Takes a plugin out again, with all that it registered.

        :raises PluginError: where there is none of that name.
        """
        with self._lock:
            record = self.plugin(name)
            self._withdraw(record)
            self._plugins.remove(record)
            self._note_collisions()

    def register(
        self, slot: str, name: str, component: Any, *, summary: str = "", reference: str = ""
    ) -> None:
        """Puts a component into a slot from a notebook cell; the same name again replaces it.

        :raises PluginError: where a plugin has the name already; it names both.
        """
        entry = Entry(
            slot, name, component, NOTEBOOK, "", summary or _first_line(component), reference
        )
        taken = [
            other
            for other in (self.registry.entries(slot) if slot in FAMILIES else ())
            if other.name == name and other.owner != NOTEBOOK
        ]
        if taken:
            raise PluginError(
                f"the {slot} {name!r} is registered by {taken[0].owner} and cannot be registered "
                f"by the {NOTEBOOK} too; choose another name"
            )
        self.registry.add(entry, replace=True)

    def _load_everything(self) -> list[str]:
        """Loads what is there and returns what to warn of."""
        told: list[str] = []
        records: list[Plugin] = []
        for builtin in self._builtins:
            record = Plugin(_last_part(builtin), BUILTIN_OWNER, _own_version(), builtin=True)
            if not self._knows(record):
                self._load(record, _importer(builtin))
            records.append(record)
        allowed = _allowed()
        for point in self._discover():
            distribution = getattr(point, "dist", None)
            record = Plugin(
                point.name,
                getattr(distribution, "name", None) or point.name,
                getattr(distribution, "version", None) or "",
            )
            records.append(record)
            if self._knows(record):
                continue
            if allowed is not None and not any(record.called(name) for name in allowed):
                record.status = "not allowed"
                record.notes.append("KFAC_LAB_PLUGINS does not name it")
                self._plugins.append(record)
            else:
                self._load(record, point.load)
        for name in allowed or ():
            if not any(record.called(name) for record in records):
                meant = did_you_mean(name, [record.name for record in records])
                told.append(f"KFAC_LAB_PLUGINS names {name!r}, which is not installed{meant}")
        self._note_collisions()
        if not _strict():  # which raises these instead
            failed = [record for record in records if record.status == "FAILED"]
            told += [f"the plugin {record.qualified} FAILED: {record.why}" for record in failed]
            told += map(collision, self.registry.collisions())
        return told

    def _knows(self, record: Plugin) -> bool:
        """Whether the plugin was met before: an interrupted load goes on where it stopped."""
        return any(record.qualified == other.qualified for other in self._plugins)

    def _discover(self) -> Sequence[Any]:
        if self._entry_points is False:
            return ()
        if self._entry_points is True:
            return tuple(importlib.metadata.entry_points(group=specs.GROUP))
        return tuple(self._entry_points)

    def _load(self, record: Plugin, get: Callable[[], Any]) -> BaseException | None:
        """Loads one plugin as a transaction: all of it, or nothing and FAILED."""
        self._plugins.append(record)
        start = time.perf_counter()
        try:
            record.module = get()
            self._admit(record)
        except BaseException as error:
            self._withdraw(record)
            if not isinstance(error, (Exception, SystemExit)):  # an interrupt
                self._plugins.remove(record)
                raise
            record.status, record.slots, record.hooks = "FAILED", {}, ()
            record.notes = [_reason(error)]
            record.traceback = traceback.format_exc()
            return error
        finally:
            record.seconds = time.perf_counter() - start
            self._observers = {}
        record.status = "loaded"
        if record.seconds > SLOW_IMPORT and not record.builtin:
            record.notes.append(f"slow: took {record.seconds:.1f} s to import")
        if not record.slots and not record.hooks:
            record.notes.append("registers nothing and implements no hook")
        return None

    def _admit(self, record: Plugin) -> None:
        plugin = record.module
        _check_api(plugin)
        hooks = _implementations(self._manager, plugin)
        _check_hooks(plugin, hooks)
        if any(other is plugin for _, other in self._manager.list_name_plugin()):
            raise PluginError("the same module is loaded already under another name")
        self._manager.register(plugin, record.qualified)
        self._manager.check_pending()
        for slot, hook in FAMILIES.items():
            if hook in hooks:
                self._only(plugin, hook)(register=self._register_for(record, slot))
        record.hooks = tuple(h for h in hooks if h in _HOOKS and h not in FAMILIES.values())

    def _register_for(self, record: Plugin, slot: str) -> Callable[..., None]:
        def register(name: str, component: Any, summary: str = "", reference: str = "") -> None:
            entry = Entry(
                slot,
                name,
                component,
                record.distribution,
                record.version,
                summary or _first_line(component),
                reference,
                record.name,
            )
            self.registry.add(entry)
            record.slots.setdefault(slot, []).append(name)

        return register

    def _withdraw(self, record: Plugin) -> None:
        """Leaves nothing of a plugin behind, however far its loading came."""
        self.registry.discard(record.distribution, record.name)
        if self._manager.has_plugin(record.qualified):
            self._manager.unregister(name=record.qualified)
        for name, caller in list(vars(self._manager.hook).items()):
            if isinstance(caller, pluggy.HookCaller) and not caller.has_spec():
                delattr(self._manager.hook, name)  # made by a misspelt hook
        self._observers = {}

    def _raise_failures(self) -> None:
        failed = [p for p in self._plugins if p.status == "FAILED"]
        sentences = [f"the plugin {p.qualified} FAILED: {p.why}" for p in failed]
        sentences += map(collision, self.registry.collisions())
        if sentences:
            raise PluginError("KFAC_LAB_STRICT=1: " + "; ".join(sentences))

    # --- listing ---

    def plugins(self) -> list[Plugin]:
        """Every plugin found, in the order of loading, with its status and the reason.

        Also with KFAC_LAB_STRICT=1 it lists the failures and raises none of them.
        """
        self._ensure_loaded()
        return list(self._plugins)

    def _note_collisions(self) -> None:
        collisions = self.registry.collisions()
        for record in self._plugins:
            mine = (record.distribution, record.name)
            record.collisions = [
                collision(found)
                for found in collisions
                if any((entry.owner, entry.plugin) == mine for entry in found)
            ]

    def plugin(self, name: str) -> Plugin:
        """One plugin, by its name, its distribution, or ``dist/name``.

        :raises PluginError: where there is none of that name.
        """
        self._ensure_loaded()
        found = [record for record in self._plugins if record.called(name)]
        if not found:
            names = [record.qualified for record in self._plugins]
            raise PluginError(
                f"there is no plugin {name!r}{did_you_mean(name, names)}; "
                f"there are {', '.join(names) or 'none'}"
            )
        return found[0]

    def names(self, slot: str) -> list[str]:
        """What can be written in a slot.

        :raises RecipeError: for an unknown slot.
        """
        self.load()
        return self.registry.names(slot)

    def components(self, slot: str | None = None) -> list[Entry]:
        """What is registered, in one slot or in all.

        :raises RecipeError: for an unknown slot.
        """
        self.load()
        return list(self.registry.entries(slot))

    def entry(self, slot: str, name: str, prefer: str | None = None) -> Entry:
        """The entry of a name or of ``dist/name``; see :meth:`Registry.get` for the errors."""
        self.load()
        failed = [p.qualified for p in self._plugins if p.status == "FAILED"]
        hint = f"these plugins FAILED and may have it: {', '.join(failed)}" if failed else ""
        return self.registry.get(slot, name, prefer, hint)

    def component(self, slot: str, source: Any, prefer: str | None = None) -> Any:
        """A validated component, from its text or as given.

        :raises RecipeError: for an unknown name or parameter, or a broken rule.
        """
        return self.resolve(slot, source, prefer)[0]

    def resolve(
        self, slot: str, source: Any, prefer: str | None = None
    ) -> tuple[Any, Entry | None]:
        """Like :meth:`component`, with its entry; None for an instance of nobody's class.

        :raises RecipeError: as :meth:`component` does.
        """
        self.load()
        if isinstance(source, str):
            name, values = parse(source)
            entry = self.entry(slot, name, prefer)
            return build(entry.component, values, name), entry
        if isinstance(source, type):
            raise RecipeError(f"{slot}={source.__name__} is a class; give an instance or its name")
        missing = missing_methods(slot, source)
        if missing:
            raise RecipeError(
                f"{slot}={source!r} is no {slot}: it has no {', no '.join(missing)} "
                f"(a {slot} has {', '.join(NEEDS[slot])})"
            )
        validate(source)
        return source, self.registry.of_component(slot, source)

    # --- claims ---

    def claim_layer(
        self, module: Any, path: str, preferred: str | Mapping[str, str] | None = None
    ) -> Any:
        """The Layer of whoever claims the module, or None; outsiders go before built-ins.

        :param preferred: ``dist/name`` of the plugin whose claim is to count, or a recipe's
            ``layers``: a pattern on the path or the class name → ``dist/name``.
        :raises PluginError: where two outsiders claim the module and none is preferred; where the
            preferred plugin is not loaded or does not claim it.
        """
        claim = self.claim(module, path, preferred)
        return None if claim is None else claim.answer

    def claim(
        self, module: Any, path: str, preferred: str | Mapping[str, str] | None = None
    ) -> Claim | None:
        """Like :meth:`claim_layer`, with whose it is.

        :raises PluginError: as :meth:`claim_layer` does.
        """
        kind = type(module).__name__
        if isinstance(preferred, Mapping):
            matching = [
                plugin
                for pattern, plugin in preferred.items()
                if fnmatchcase(path, pattern) or fnmatchcase(kind, pattern)
            ]
            preferred = matching[0] if matching else None
        what = f"the module {path!r} ({kind})"
        remedy = f"say which in the recipe: layers={{{kind!r}: 'dist/name'}}"
        return self._claim("kfac_claim_layer", what, remedy, preferred, module=module, path=path)

    def claim_likelihood(self, loss: Any) -> Any:
        """The Likelihood of whoever claims the loss, or None; outsiders go before built-ins.

        :raises PluginError: where two outsiders claim it.
        """
        remedy = "give the Problem a Likelihood itself"
        claim = self._claim("kfac_claim_likelihood", f"the loss {loss!r}", remedy, None, loss=loss)
        return None if claim is None else claim.answer

    def _claim(
        self, hook: str, what: str, remedy: str, preferred: str | None, **arguments: Any
    ) -> Claim | None:
        self.load()
        asked = self._implementing(hook)
        if preferred is not None:
            self.plugin(preferred)  # or an error that lists what there is
            asked = [record for record in asked if record.called(preferred)]
        outsiders: list[Claim] = []
        builtins: list[Claim] = []
        for record in asked:
            try:
                answers = self._only(record.module, hook)(**arguments)
            except Exception as error:
                message = f"the plugin {record.qualified}: {hook} failed on {what}: " + _reason(
                    error
                )
                if _strict() or record.builtin:
                    raise PluginError(message) from error
                _warn(message)
                continue
            side = builtins if record.builtin else outsiders
            side += [Claim(answer, record.qualified) for answer in answers[:1]]
        if len(outsiders) > 1 or builtins:  # what goes by structure yields to what goes by type
            by_type = [claim for claim in outsiders if not isinstance(claim.answer, ByStructure)]
            outsiders = by_type if by_type or builtins else outsiders
        if preferred is not None and not outsiders + builtins:
            raise PluginError(f"the recipe gives {what} to {preferred!r}, which does not claim it")
        if len(outsiders) > 1:
            owners = " and ".join(claim.owner for claim in outsiders)
            raise PluginError(f"{what} is claimed by {owners}; {remedy}")
        found = [
            c._replace(answer=c.answer.answer) if isinstance(c.answer, ByStructure) else c
            for c in outsiders + builtins
        ]
        return found[0] if found else None

    # --- events ---

    def emit(self, event: str, **arguments: Any) -> None:
        """Tells every observer; one that raises is shown, and switched off after three times.

        Costs a dict lookup where nobody observes.
        """
        observers = self._observers.get(event)
        if observers is None:
            observers = self._find_observers(event)
        for observer in observers:
            plugin, call = observer
            try:
                call(**arguments)
            except Exception as error:
                self._observer_failed(event, plugin, error)

    def _find_observers(self, event: str) -> list[tuple[Plugin, Callable[..., Any]]]:
        if event not in _EVENTS:
            raise PluginError(f"there is no event {event!r}{did_you_mean(event, _EVENTS)}")
        self.load()
        with self._lock:
            self._observers[event] = [
                (record, self._only(record.module, event))
                for record in self._implementing(event)
                if self._errors.get((id(record), event), 0) < PATIENCE
            ]
            return self._observers[event]

    def _observer_failed(self, event: str, plugin: Plugin, error: Exception) -> None:
        count = self._errors[id(plugin), event] = self._errors.get((id(plugin), event), 0) + 1
        off = count >= PATIENCE
        if off:
            self._observers[event] = [o for o in self._observers[event] if o[0] is not plugin]
            plugin.notes.append(
                f"{event} was switched off, it raised {count} times: {_reason(error)}"
            )
        told = "; it is switched off" if off else f" ({count} of {PATIENCE})"
        _warn(f"the plugin {plugin.qualified}: {event} raised {_reason(error)}{told}")

    # --- pluggy, one plugin at a time ---

    def _only(self, plugin: Any, hook: str) -> Callable[..., Any]:
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        return self._manager.subset_hook_caller(hook, others)

    def _implementing(self, hook: str) -> list[Plugin]:
        """The plugins that implement a hook, in the order in which pluggy would call them."""
        records = {id(r.module): r for r in self._plugins if r.status == "loaded"}
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        return [records[id(each.plugin)] for each in reversed(implementations)]


# --- what a plugin is held to --------------------------------------------------------------------


def _check_api(plugin: Any) -> None:
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


def _implementations(manager: pluggy.PluginManager, plugin: Any) -> dict[str, Any]:
    """Hook name → (function, options) of a plugin, before pluggy has it."""
    found = {}
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is not None:
            name = options.get("specname") or attribute
            found[name] = (getattr(plugin, attribute), options)
    return found


def _check_hooks(plugin: Any, hooks: Mapping[str, Any]) -> None:
    """What pluggy would let pass in silence, and its own checks in a sentence."""
    try:
        hash(plugin)
    except TypeError:
        raise PluginError("the plugin object must be hashable; a module always is") from None
    for name in _HOOKS:
        function = getattr(plugin, name, None)
        if callable(function) and name not in hooks and not hasattr(function, "kfac_lab_spec"):
            raise PluginError(f"{name} is not marked as a hook; write @kl.hookimpl above it")
    for name, (function, options) in hooks.items():
        if name not in _HOOKS:
            if options.get("optionalhook"):
                continue
            raise PluginError(f"there is no hook {name!r}{did_you_mean(name, _HOOKS)}")
        if options.get("wrapper") or options.get("hookwrapper"):
            raise PluginError(
                f"{name} is a wrapper; plugins are asked on their own, so wrap nothing"
            )
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise PluginError(f"{name} must be a plain function: nobody awaits or iterates it")
        _check_arguments(name, function)


def _check_arguments(name: str, function: Any) -> None:
    has = _HOOKS[name]
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


# --- small things --------------------------------------------------------------------------------


def _strict() -> bool:
    return os.environ.get("KFAC_LAB_STRICT", "") not in ("", "0")


def _allowed() -> tuple[str, ...] | None:
    named = os.environ.get("KFAC_LAB_PLUGINS")
    if named is None:
        return None
    return tuple(name.strip() for name in named.split(",") if name.strip())


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def _importer(source: Any) -> Callable[[], Any]:
    return lambda: importlib.import_module(source) if isinstance(source, str) else source


def _last_part(source: Any) -> str:
    name = source if isinstance(source, str) else getattr(source, "__name__", type(source).__name__)
    return name.rpartition(".")[2]


def _own_version() -> str:
    try:
        return importlib.metadata.version(BUILTIN_OWNER)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _first_line(component: Any) -> str:
    """The summary that a docstring gives; the one that @dataclass makes up is none."""
    doc = (inspect.getdoc(component) or "") if callable(component) else ""
    line = doc.partition("\n")[0].strip()
    return "" if line.startswith(f"{getattr(component, '__name__', '')}(") else line


def _reason(error: BaseException) -> str:
    if isinstance(error, (KfacLabError, pluggy.PluginValidationError)):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _warn(message: str) -> None:
    warnings.warn(message, PluginWarning, stacklevel=3)


#: the Lab of this process; empty until the first use of a name
lab = Lab()
