"""``check_plugin``: a whole plugin, and everything that it registers and claims."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from kfac_lab.core.parameters import describe, did_you_mean
from kfac_lab.errors import PluginError, RecipeError
from kfac_lab.hooks import specs
from kfac_lab.hooks.manager import BUILTIN_OWNER, BUILTINS
from kfac_lab.hooks.registry import Entry
from kfac_lab.testing.catalogue import losses
from kfac_lab.testing.check import report
from kfac_lab.testing.keep import kept
from kfac_lab.testing.law import LAWS, Case, LawError, Report, Result, tried
from kfac_lab.testing.laws import plugin as laws
from kfac_lab.testing.laws.plugin_claims import _asked

__all__ = ["Source", "check_plugin", "installed", "plugin_reports", "sources"]


@dataclass(frozen=True)
class Source:
    """A plugin that can be imported: an entry point, a module's name, or an object."""

    name: str  # the entry point's, or the module's
    target: Any  # the module's name, or what was given
    distribution: str = ""
    version: str = ""

    @property
    def qualified(self) -> str:
        """``dist/name``, as the lab lists it."""
        return f"{self.distribution}/{self.name}" if self.distribution else self.name


class _Broken(LawError):
    """Several reports in one error; ``report`` is the first that has a broken law."""

    def __init__(self, reports: Sequence[Report]) -> None:
        super().__init__(reports[0])
        self.reports = tuple(reports)

    def __str__(self) -> str:
        return "\n".join(map(str, self.reports))


def check_plugin(plugin: Any) -> list[Report]:
    """Tries the laws of a plugin on it, and those of their slots on all that it brings.

    The plugin is loaded into a Lab of its own, beside the built-ins. Then come, at their defaults,
    the components that it registers; the layers that its ``kfac_claim_layer`` makes of torch's
    modules, and of those that its ``kfac_lab_examples()`` yields; the likelihoods that its
    ``kfac_claim_likelihood`` makes of torch's losses.

    Args:
        plugin: a module or any object with hook implementations; the name of an installed
            distribution or plugin (all its plugins are tried); or the name of a module.

    Returns:
        One report per plugin and per part.

    Raises:
        LawError: where a law is broken, by the plugin or by a part of it; it says all of them.
        PluginError: there is nothing of that name.
    """
    found = list(plugin_reports(plugin))
    broken = [report for report in found if not report.passed]
    if broken:
        raise _Broken(broken)
    return found


def plugin_reports(plugin: Any) -> Iterator[Report]:
    """As :func:`check_plugin`, one report after the other, and a broken law is in the report only.

    Raises:
        PluginError: there is nothing of that name.
    """
    for source in sources(plugin):
        yield from _leaving_nothing(_reports(source))


def _leaving_nothing(reports: Iterator[Report]) -> Iterator[Report]:
    """The same reports; torch's global state is as it was whenever one is handed out."""
    while True:
        with kept():
            found = next(reports, None)
        if found is None:
            return
        yield found


# --- finding --------------------------------------------------------------------------------------


def installed() -> list[Source]:
    """The plugins that are installed; those in the box are not among them."""
    return [
        Source(
            point.name,
            point,
            getattr(point.dist, "name", "") or point.name,
            getattr(point.dist, "version", "") or "",
        )
        for point in importlib.metadata.entry_points(group=specs.GROUP)
    ]


def sources(plugin: Any) -> list[Source]:
    """What a name means: installed plugins, those in the box, or a module.

    Raises:
        PluginError: there is nothing of that name.
    """
    if not isinstance(plugin, str):
        name = getattr(plugin, "__name__", None) or type(plugin).__name__
        return [_boxed(name) or Source(name, plugin)]
    wanted = _normal(plugin)
    everything = [*installed(), *map(_boxed, BUILTINS)]
    known = [source for source in everything if source is not None]
    found = [
        source
        for source in known
        if wanted in map(_normal, (source.name, source.distribution, source.qualified))
    ]
    if found:
        return found
    boxed = _boxed(plugin)
    if boxed is not None:
        return [boxed]
    if _importable(plugin):
        return [Source(plugin, plugin)]
    names = [name for source in known for name in (source.distribution, source.name)]
    listed = ", ".join(dict.fromkeys(source.qualified for source in known))
    raise PluginError(
        f"there is no plugin, distribution or module {plugin!r}{did_you_mean(plugin, names)}; "
        f"installed are {listed}"
    )


def _boxed(module: str) -> Source | None:
    if module not in BUILTINS:
        return None
    return Source(module.rpartition(".")[2], module, BUILTIN_OWNER)


def _importable(name: str) -> bool:
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


# --- trying ---------------------------------------------------------------------------------------


def _reports(source: Source) -> Iterator[Report]:
    case = _case(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of_plugin = replace(tried(case), component=source.qualified)
    yield of_plugin
    if not _obeyed(of_plugin, "loads"):
        return
    lab, plugin = laws.loaded(case)
    mine = (plugin.distribution, plugin.name)
    for entry in lab.components():
        if (entry.owner, entry.plugin) == mine:
            yield _of_entry(entry, lab)
    if _obeyed(of_plugin, "claims_answer") and _obeyed(of_plugin, "examples_run"):
        yield from _of_layers(case)
        yield from _of_likelihoods(case)


def _obeyed(found: Report, name: str) -> bool:
    return any(r.law == name and r.status in ("obeyed", "exempt") for r in found.results)


def _case(source: Source) -> Case:
    """The plugin imported, and how long that took."""
    extra: dict[str, Any] = {"name": source.name}
    if source.distribution:
        extra |= {"distribution": source.distribution, "version": source.version}
    module: Any = source.target
    if not isinstance(module, ModuleType) and _by_name(module):
        named = module if isinstance(module, str) else module.module
        before = named in sys.modules
        start = time.perf_counter()
        try:
            module = importlib.import_module(module) if isinstance(module, str) else module.load()
        except (Exception, SystemExit) as error:
            extra["failed"] = error
        if not before and "failed" not in extra:
            extra["seconds"] = time.perf_counter() - start
    return Case(module, laws.SLOT, lambda: module, extra)


def _by_name(target: Any) -> bool:
    return isinstance(target, (str, importlib.metadata.EntryPoint))


def _of_entry(entry: Entry, lab: Any) -> Report:
    """A registered component at its defaults."""
    slot, name = entry.slot, entry.name
    if slot not in LAWS:
        return _one(slot, name, "runs", "exempt", f"there are no laws of a {slot}")
    if slot == "recipe":
        found = report(entry.component, slot, lab=lab, owner=entry.owner)
        return replace(found, component=name)
    if slot == "problem":
        return replace(report(entry.component, slot), component=name)
    required = [known.name for known in describe(entry.component) if known.required]
    if required:
        why = f"it has no default for {', '.join(required)}: try check({name}(…)) yourself"
        return _one(slot, name, "runs", "exempt", why)
    try:
        component = lab.component(slot, entry.qualified)
        return replace(report(component, slot), component=name)
    except (RecipeError, PluginError) as error:
        return _one(slot, name, "runs", "broken", str(error))


def _one(slot: str, name: str, law: str, status: str, why: str) -> Report:
    says = "It can be made at its defaults and tried."
    return Report(name, slot, (Result(slot, law, says, status, why),))


def _of_layers(case: Case) -> Iterator[Report]:
    for example in laws.examples(case):
        for called, layers in laws.claimed(case, example):
            for layer in layers:
                inputs = laws.plain(called, layer)
                name = f"{type(layer).__name__} of {example.name}"
                if inputs is None:
                    why = "it records calls its own way, which the laws of the plugin try"
                    yield _one("layer", name, "runs", "exempt", why)
                    continue
                try:
                    yield replace(report(layer, "layer", inputs=inputs), component=name)
                except PluginError as error:
                    yield _one("layer", name, "runs", "broken", str(error))


def _of_likelihoods(case: Case) -> Iterator[Report]:
    for name, loss, outputs, targets in losses():
        found = _asked(case, "kfac_claim_likelihood", loss=loss)
        if found is not None:
            named = f"{type(found).__name__} of {name}"
            try:
                made = report(found, "likelihood", outputs=outputs, targets=targets)
                yield replace(made, component=named)
            except PluginError as error:
                yield _one("likelihood", named, "runs", "broken", str(error))
