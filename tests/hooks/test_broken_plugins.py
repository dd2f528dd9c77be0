"""Deliberately broken plugins: each is named, by the loader or by the kit, and the lab goes on.

Each one is a real module file in a distribution of its own (dist-info, entry point), found as an
installed one is. ``cd tests && python -m hooks.test_broken_plugins`` prints who found what.
"""

from __future__ import annotations

import importlib
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from testing.matrix import ask

import kfac_lab as kl
from hooks.broken_judged import BLOCK, ESTIMATOR, JUDGED, MOMENTUM, SCHEDULE
from hooks.broken_loaded import (
    DAMPING,
    HEAD,
    KIT,
    LOADED,
    LOADER,
    NOTE,
    REGISTER,
    Case,
    problem,
    recipe,
)
from kfac_lab.errors import PluginError
from kfac_lab.hooks import Lab, PluginWarning, manager
from kfac_lab.run import run as run_module
from kfac_lab.testing.check import report


class Outcome(NamedTuple):
    by: str
    says: str


def registered(lab: Lab, slot: str) -> Any:
    """What the plugin registered, which loads without a word."""
    plugin = lab.plugin("broken")
    assert (plugin.status, plugin.why, plugin.slots) == ("loaded", "", {slot: ["mine"]})
    return lab.component(slot, "mine")


def judged(lab: Lab, slot: str) -> kl.testing.Report:
    """The kit's report on it."""
    return report(registered(lab, slot), slot)


# --- installing, and what comes of it -----------------------------------------------------------


def install(folder: Path, dist: str, entry: str, module: str, source: str) -> None:
    """A distribution as an installer leaves it: the module, its metadata, its entry point."""
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    info = folder / f"{dist.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[kfac_lab]\n{entry} = {module}\n")


def laboratory(case: Case, folder: Path, patch: pytest.MonkeyPatch) -> Lab:
    """A process's Lab, with the broken plugin installed, and a sound one beside it."""
    install(folder, "broken-dist", "broken", "broken_module", case.source)
    sound = HEAD + DAMPING + REGISTER.replace('"mine"', '"sound"')
    install(folder, "sound-dist", "sound", "sound_module", sound)
    if case.beside:
        install(folder, "other-dist", "other", "other_module", case.beside)
    for module in ("broken_module", "sound_module", "other_module"):
        patch.delitem(sys.modules, module, raising=False)
    patch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    patch.setattr(sys, "dont_write_bytecode", True)
    patch.setattr(manager, "SLOW_IMPORT", 0.25)
    patch.setenv("KFAC_LAB_PLUGINS", "broken, sound, other" if case.beside else "broken, sound")
    patch.delenv("KFAC_LAB_STRICT", raising=False)
    lab = Lab()
    for home in (manager, run_module):
        patch.setattr(home, "lab" if home is manager else "process_lab", lab)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        lab.load()
    return lab


def outcome(case: Case, lab: Lab) -> Outcome:
    """Who found what."""
    if case.trial is not None:
        return Outcome(case.by, case.trial(lab))
    plugin = lab.plugin("broken")
    by = LOADER if plugin.status == "FAILED" or plugin.collisions else NOTE
    return Outcome(by, re.sub(r"took \d+\.\d s", "took 0.3 s", plugin.why))  # a busy machine's more


def usable(lab: Lab) -> None:
    """The sound plugin is there, and a run makes its steps, by the box's parts and by it."""
    assert lab.plugin("sound").status == "loaded"
    for damping in ("levenberg_marquardt", "sound(lam=2.0)"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = kl.Run(problem(), recipe().replace(damping=damping), device="cpu").advance(2)
        assert run.step == 2
        assert all(bool(torch.isfinite(p).all()) for p in run.problem.model.parameters())


@pytest.mark.parametrize("name", LOADED)
def test_the_loader_names_it_and_the_lab_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = LOADED[name]
    lab = laboratory(case, tmp_path, monkeypatch)
    found = outcome(case, lab)
    assert found == (case.by, case.says)
    plugin = lab.plugin("broken")
    if found.by == LOADER and not plugin.collisions:
        assert plugin.status == "FAILED" and "Traceback" in plugin.traceback
        assert plugin.slots == {} and ("damping", "mine") not in lab.registry  # nothing left behind
    else:
        assert plugin.status == "loaded"
    usable(lab)


def test_two_who_share_a_name_are_both_told_and_dist_name_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = LOADED["a name of another distribution"]
    lab = laboratory(case, tmp_path, monkeypatch)
    assert lab.plugin("broken").why == lab.plugin("other").why == case.says
    with pytest.raises(PluginError, match="registered by broken-dist and other-dist"):
        kl.Recipe(damping="mine")
    kl.Run(problem(), recipe().replace(damping="other-dist/mine"), device="cpu").advance(2)


#: of the laws that take longest, and whose matrix is in tests/testing: these under ``make soak``
LONG = ("damped the wrong way", "keeps what the store reuses", "loses η")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.soak) if n in LONG else n for n in JUDGED]
)
def test_the_kit_names_the_law_and_the_lab_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, law, source = JUDGED[name]
    lab = laboratory(Case(KIT, "", source), tmp_path, monkeypatch)
    ask(monkeypatch, slot, law)
    with pytest.raises(kl.testing.LawError, match=f"  {law}: ") as told:
        kl.testing.check(registered(lab, slot), slot)
    assert law in told.value.report.broken
    usable(lab)


@pytest.mark.parametrize("source", [DAMPING + REGISTER, BLOCK, MOMENTUM, SCHEDULE, ESTIMATOR])
def test_what_the_mistakes_were_put_into_is_sound(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = laboratory(Case(KIT, "", HEAD + source), tmp_path, monkeypatch)
    ((slot, _),) = lab.plugin("broken").slots.items()
    assert judged(lab, slot).passed, judged(lab, slot)


# --- as a table -----------------------------------------------------------------------------------


def table() -> str:
    """Broken plugin, found by, sentence: as found now, not as expected."""
    lines = ["| broken plugin | found by | sentence |", "|---|---|---|"]
    for name, case in LOADED.items():
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            found = outcome(case, laboratory(case, Path(folder), patch))
        says = found.says.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {name} | {found.by} | {says} |")
    for name, (slot, law, source) in JUDGED.items():
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            found_by_kit = judged(laboratory(Case(KIT, "", source), Path(folder), patch), slot)
        (told,) = (r for r in found_by_kit.results if r.law == law and r.status == "broken")
        says = f"{law}: {told.says} But {told.why}".replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {slot}: {name} | {KIT} | {says} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
