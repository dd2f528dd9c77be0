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
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pluggy

from kfac_lab.core.parameters import build, did_you_mean, parse, validate
from kfac_lab.core.slots import BySlot, slot_name
from kfac_lab.errors import PluginError, RecipeError
from kfac_lab.hooks import specs
from kfac_lab.hooks.admission import HOOKS, check_api, check_hooks, implementations
from kfac_lab.hooks.asking import Asking
from kfac_lab.hooks.plugin import (
    BUILTIN_OWNER,
    Claim,
    Plugin,
    PluginWarning,
    allowed,
    first_line,
    importer,
    last_part,
    own_version,
    reason,
    strict,
    warn,
)
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
NOTEBOOK = "notebook"

SLOW_IMPORT = 1.0  # seconds; more is said in the listing


class Lab(Asking):
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
        if strict():
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
            warn(message)

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
            error = self._load(record, importer(plugin))
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
            slot, name, component, NOTEBOOK, "", summary or first_line(component), reference
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
            record = Plugin(last_part(builtin), BUILTIN_OWNER, own_version(), builtin=True)
            if not self._knows(record):
                self._load(record, importer(builtin))
            records.append(record)
        named = allowed()
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
            if named is not None and not any(record.called(name) for name in named):
                record.status = "not allowed"
                record.notes.append("KFAC_LAB_PLUGINS does not name it")
                self._plugins.append(record)
            else:
                self._load(record, point.load)
        for name in named or ():
            if not any(record.called(name) for record in records):
                meant = did_you_mean(name, [record.name for record in records])
                told.append(f"KFAC_LAB_PLUGINS names {name!r}, which is not installed{meant}")
        self._note_collisions()
        if not strict():  # which raises these instead
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
            record.status, record.slots, record.hooks = "FAILED", BySlot(), ()
            record.notes = [reason(error)]
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
        check_api(plugin)
        hooks = implementations(self._manager, plugin)
        check_hooks(plugin, hooks)
        if any(other is plugin for _, other in self._manager.list_name_plugin()):
            raise PluginError("the same module is loaded already under another name")
        self._manager.register(plugin, record.qualified)
        self._manager.check_pending()
        for slot, hook in FAMILIES.items():
            if hook in hooks:
                self._only(plugin, hook)(register=self._register_for(record, slot))
        record.hooks = tuple(h for h in hooks if h in HOOKS and h not in FAMILIES.values())

    def _register_for(self, record: Plugin, slot: str) -> Callable[..., None]:
        def register(name: str, component: Any, summary: str = "", reference: str = "") -> None:
            entry = Entry(
                slot,
                name,
                component,
                record.distribution,
                record.version,
                summary or first_line(component),
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
        slot = slot_name(slot)
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


#: the Lab of this process; empty until the first use of a name
lab = Lab()
