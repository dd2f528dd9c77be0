"""Asking plugins: claims on modules and losses, and events, each plugin on its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import pluggy

from kfac_lab.core.claims import ByStructure
from kfac_lab.core.parameters import did_you_mean
from kfac_lab.errors import PluginError
from kfac_lab.hooks.admission import EVENTS
from kfac_lab.hooks.plugin import Claim, Plugin, reason, strict, warn

__all__ = ["Asking"]

PATIENCE = 3  # an observer that raised so often is switched off


class Asking:
    """The half of a Lab that asks the plugins that are loaded."""

    _manager: pluggy.PluginManager
    _plugins: list[Plugin]
    _observers: dict[str, list[tuple[Plugin, Callable[..., Any]]]]
    _errors: dict[tuple[int, str], int]
    _lock: threading.RLock

    def load(self) -> None:
        """Loads what there is; see ``Lab``."""
        raise NotImplementedError

    def plugin(self, name: str) -> Plugin:
        """One plugin by its name; see ``Lab``."""
        raise NotImplementedError

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
            except MemoryError:
                raise  # the machine's, not the plugin's
            except Exception as error:
                message = f"the plugin {record.qualified}: {hook} failed on {what}: " + reason(
                    error
                )
                if strict() or record.builtin:
                    raise PluginError(message) from error
                warn(message)
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
        if event not in EVENTS:
            raise PluginError(f"there is no event {event!r}{did_you_mean(event, EVENTS)}")
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
                f"{event} was switched off, it raised {count} times: {reason(error)}"
            )
        told = "; it is switched off" if off else f" ({count} of {PATIENCE})"
        warn(f"the plugin {plugin.qualified}: {event} raised {reason(error)}{told}")

    # --- pluggy, one plugin at a time ---

    def _only(self, plugin: Any, hook: str) -> Callable[..., Any]:
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        return self._manager.subset_hook_caller(hook, others)

    def _implementing(self, hook: str) -> list[Plugin]:
        """The plugins that implement a hook, in the order in which pluggy would call them."""
        records = {id(r.module): r for r in self._plugins if r.status == "loaded"}
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        return [records[id(each.plugin)] for each in reversed(implementations)]
