"""Deliberately broken plugins: each is named, by the loader or by the kit, and the lab goes on.

Each one is a real module file in a distribution of its own (dist-info, entry point), found as an
installed one is. ``python tests/hooks/test_broken_plugins.py`` prints who found what, as Markdown.
"""

from __future__ import annotations

import importlib
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.errors import PluginError
from kfac_lab.hooks import Lab, PluginWarning, manager
from kfac_lab.run import run as run_module
from kfac_lab.testing.check import report

LOADER, NOTE, ATTACH, RUN, KIT = "loader", "loader, a note", "attach", "run", "kit"

HEAD = """
from dataclasses import dataclass
import torch
import kfac_lab as kl
"""
DAMPING = """
@dataclass(frozen=True)
class Mine:
    lam: float = 1.0

    def init(self, problem):
        return kl.DampingStrength(self.lam, self.lam**0.5), {}

    def candidates(self, strength, due):
        return (strength,)

    def adapt(self, strength, part_state, record):
        return strength, part_state
"""
REGISTER = """
@kl.hookimpl
def kfac_register_dampings(register):
    register("mine", Mine, summary="it is mine")
"""


@dataclass(frozen=True)
class Case:
    """A broken plugin: its module, who is to find it, and the sentence; a second one beside it."""

    by: str
    says: str
    source: str
    beside: str = ""  # the module of another distribution
    trial: Callable[[Lab], str] | None = field(default=None, repr=False)


class Outcome(NamedTuple):
    by: str
    says: str


# --- what the loader sees -----------------------------------------------------------------------


def _attached(lab: Lab) -> str:
    """What a model with the module that is claimed twice meets at attach; and the way out."""
    module = sys.modules["broken_module"].Special(4, 3)
    problem = kl.Problem(
        model=nn.Sequential(module), likelihood="gaussian", inputs=_X[:, :4], targets=_X[:, :3]
    )
    with pytest.raises(PluginError) as caught:
        kl.Run(problem, _recipe(), device="cpu")
    kl.Run(problem, _recipe().replace(layers={"Special": "broken-dist/broken"}), device="cpu")
    return str(caught.value)


def _claimed(lab: Lab) -> str:
    """What a claim that raises is told as; the built-in claims the module then."""
    with pytest.warns(PluginWarning) as caught:
        run = kl.Run(_problem(), _recipe(), device="cpu")
    assert {row.claimed_by for row in run.coverage()} == {"kfac-lab/paper"}
    return str(caught[0].message)


def _observed(lab: Lab) -> str:
    """What is noted of an observer that raises at every step."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kl.Run(_problem(), _recipe(), device="cpu").advance(5)
    told = [str(w.message) for w in caught if issubclass(w.category, PluginWarning)]
    assert len(told) == 3 and told[0].endswith("(1 of 3)") and told[2].endswith("switched off")
    return lab.plugin("broken").why


CLAIM = """
{special}
class Adapter:
    def __init__(self, module, path):
        self.module, self.path = module, path
        self.d_out, self.d_in, self.names = module.out_features, module.in_features, ("weight",)

    def rows_in(self, inputs):
        return inputs.unsqueeze(1)

    def rows_out(self, gradients):
        return gradients.unsqueeze(1)

    def pack(self, tensors):
        return tensors[0]

    def unpack(self, matrix):
        return (matrix,)


@kl.hookimpl
def kfac_claim_layer(module, path):
    return Adapter(module, path) if type(module).__name__ == "Special" else None
"""
SPECIAL = """
class Special(torch.nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)
"""

LOADED: dict[str, Case] = {
    "syntax error": Case(
        LOADER,
        "SyntaxError: '(' was never closed (broken_module.py, line 2)",
        "import kfac_lab as kl\ndef kfac_register_dampings(register:\n    pass\n",
    ),
    "import error": Case(
        LOADER,
        "ModuleNotFoundError: No module named 'tensorflaw'",
        "import tensorflaw\n",
    ),
    "leaves at import": Case(LOADER, "SystemExit: 3", "import sys\nsys.exit(3)\n"),
    "misspelt hook": Case(
        LOADER,
        "there is no hook 'kfac_register_damping' (did you mean 'kfac_register_dampings'?)",
        HEAD + DAMPING + REGISTER.replace("dampings", "damping"),
    ),
    "hook of an unknown slot": Case(
        LOADER,
        "there is no hook 'kfac_register_optimisers' (did you mean 'kfac_register_estimators'?)",
        HEAD + DAMPING + REGISTER.replace("dampings", "optimisers"),
    ),
    "hook without its mark": Case(
        LOADER,
        "kfac_register_dampings is not marked as a hook; write @kl.hookimpl above it",
        HEAD + DAMPING + REGISTER.replace("@kl.hookimpl", ""),
    ),
    "bad signature": Case(
        LOADER,
        "kfac_on_step: the argument 'rec' is none that the hook has (run, record) "
        "(did you mean 'record'?)",
        HEAD + "@kl.hookimpl\ndef kfac_on_step(run, rec):\n    pass\n",
    ),
    "argument with a default": Case(
        LOADER,
        "kfac_on_step: the argument 'record' has a default, so it is never filled; remove the "
        "default",
        HEAD + "@kl.hookimpl\ndef kfac_on_step(run, record=None):\n    pass\n",
    ),
    "asynchronous hook": Case(
        LOADER,
        "kfac_on_step must be a plain function: nobody awaits or iterates it",
        HEAD + "@kl.hookimpl\nasync def kfac_on_step(run, record):\n    pass\n",
    ),
    "wrapping hook": Case(
        LOADER,
        "kfac_on_step is a wrapper; plugins are asked on their own, so wrap nothing",
        HEAD + "@kl.hookimpl(wrapper=True)\ndef kfac_on_step(run):\n    return (yield)\n",
    ),
    "registers an instance": Case(
        LOADER,
        "broken-dist registers the damping 'mine' as Mine(lam=1.0): register the class (or a "
        "factory), not an instance",
        HEAD + DAMPING + REGISTER.replace("Mine,", "Mine(),"),
    ),
    "the methods of another slot": Case(
        LOADER,
        "broken-dist registers the schedule 'mine', but Mine has no due; a schedule has due",
        HEAD + DAMPING + REGISTER.replace("dampings", "schedules"),
    ),
    "a name that is none": Case(
        LOADER,
        "broken-dist registers the damping 'my own': a name is made of letters, digits and _",
        HEAD + DAMPING + REGISTER.replace('"mine"', '"my own"'),
    ),
    "one name twice": Case(
        LOADER,
        "broken-dist registers the damping 'mine' twice; one distribution has one component of a "
        "name",
        HEAD + DAMPING + REGISTER + '    register("mine", Mine)\n',
    ),
    "raises half way": Case(
        LOADER,
        "ZeroDivisionError: division by zero",
        HEAD + DAMPING + REGISTER + "    1 / 0\n",
    ),
    "a recipe with a hole": Case(
        LOADER,
        "the recipe 'mine': a named recipe states every slot; average is missing",
        HEAD + "@kl.hookimpl\ndef kfac_register_recipes(register):\n"
        '    register("mine", "method = nag\\nbatch = constant")\n',
    ),
    "another interface": Case(
        LOADER,
        "it was written for plugin interface 2, and this kfac_lab has interface 1; upgrade this "
        "kfac_lab",
        HEAD + "kfac_lab_api = 2\n" + DAMPING + REGISTER,
    ),
    "a name of another distribution": Case(
        LOADER,
        "the damping 'mine' is registered by broken-dist and other-dist; write broken-dist/mine "
        "or other-dist/mine",
        HEAD + DAMPING + REGISTER,
        beside=HEAD + DAMPING + REGISTER,
    ),
    "a name of the box": Case(
        LOADER,
        "the damping 'tied' is registered by kfac-lab and broken-dist; write kfac-lab/tied or "
        "broken-dist/tied",
        HEAD + DAMPING + REGISTER.replace('"mine"', '"tied"'),
    ),
    "slow import": Case(
        NOTE,
        "slow: took 0.3 s to import",
        "import time\ntime.sleep(0.3)\n" + HEAD + DAMPING + REGISTER,
    ),
    "nothing in it": Case(NOTE, "registers nothing and implements no hook", "import kfac_lab\n"),
    "double claim": Case(
        ATTACH,
        "the module '0' (Special) is claimed by other-dist/other and broken-dist/broken; say "
        "which in the recipe: layers={'Special': 'dist/name'}",
        HEAD + CLAIM.format(special=SPECIAL),
        beside=HEAD + CLAIM.format(special=""),
        trial=_attached,
    ),
    "a claim that raises": Case(
        ATTACH,
        "the plugin broken-dist/broken: kfac_claim_layer failed on the module '0' (Linear): "
        "KeyError: '0'",
        HEAD + "@kl.hookimpl\ndef kfac_claim_layer(module, path):\n    return {}[path]\n",
        trial=_claimed,
    ),
    "raising observer": Case(
        RUN,
        "kfac_on_step was switched off, it raised 3 times: ZeroDivisionError: division by zero",
        HEAD + "@kl.hookimpl\ndef kfac_on_step(run, record):\n    1 / 0\n",
        trial=_observed,
    ),
}


# --- what the kit sees --------------------------------------------------------------------------

BLOCK = """
@dataclass(frozen=True)
class Inverse:
    scale: torch.Tensor

    def apply(self, matrix):
        return matrix * self.scale

    def dense(self):
        return torch.diag(self.scale.t().reshape(-1))

    def factors(self):
        return None


@dataclass(frozen=True)
class Mine:
    def wants(self):
        return ("A.diagonal", "G.diagonal")

    def factorise(self, moments, part_state):
        return torch.outer(moments["G.diagonal"], moments["A.diagonal"]), part_state

    def damped(self, factored, part_state, strength, previous):
        return Inverse(1.0 / (factored + (strength.gamma**2).to(factored.dtype)))


@kl.hookimpl
def kfac_register_blocks(register):
    register("mine", Mine)
"""
MOMENTUM = """
@dataclass(frozen=True)
class Mine:
    def basis(self, space, direction, previous, part_state):
        return (direction,)

    def choose(self, restriction, strength, step):
        return restriction.minimiser(strength)


@kl.hookimpl
def kfac_register_momentums(register):
    register("mine", Mine)
"""
SCHEDULE = """
@dataclass(frozen=True)
class Mine:
    def due(self, step, part_state, signals):
        return kl.Due(True, step % 5 == 0, step % 5 == 0, step % 5 == 0, True), part_state


@kl.hookimpl
def kfac_register_schedules(register):
    register("mine", Mine)
"""
ESTIMATOR = """
@dataclass(frozen=True)
class Mine:
    fraction: float = 0.5

    def decay(self, k):
        return min(1 - 1 / k, 0.95)

    def cotangents(self, likelihood, outputs, targets, draw):
        yield likelihood.sampled_gradient(outputs, draw("targets"))


@kl.hookimpl
def kfac_register_estimators(register):
    register("mine", Mine)
"""
LAMBDA = "        return strength, part_state\n"  # the last line of adapt
FOLLOWS = """
        grow = record.rho < 0.25
        lam = torch.where(grow, strength.lam * 2, strength.lam / 2)
        return strength._replace(lam=lam), part_state
"""


def but(source: str, old: str, new: str) -> str:
    """The sound module with one line wrong."""
    assert source.count(old) == 1, (old, source)
    return HEAD + source.replace(old, new)


#: what is wrong → the slot, the law that says so, and the module
JUDGED: dict[str, tuple[str, str, str]] = {
    "wrong shape": (
        "block",
        "shapes",
        but(BLOCK, "return matrix * self.scale", "return (matrix * self.scale).sum(1)"),
    ),
    "not symmetric": (
        "block",
        "symmetric",
        but(
            BLOCK,
            "return matrix * self.scale",
            "return matrix * self.scale + 0.1 * matrix.roll(1, 1)",
        ),
    ),
    "not positive": ("block", "positive_definite", but(BLOCK, "Inverse(1.0 /", "Inverse(-1.0 /")),
    "undamped": (
        "block",
        "finite",
        but(BLOCK, "(factored + (strength.gamma**2).to(factored.dtype))", "factored"),
    ),
    "damped the wrong way": (
        "block",
        "falls_with_gamma",
        but(BLOCK, "(strength.gamma**2)", "(1 / strength.gamma**2)"),
    ),
    "keeps what the store reuses": (
        "block",
        "keeps_no_moments",
        but(
            BLOCK,
            'return torch.outer(moments["G.diagonal"], moments["A.diagonal"]), part_state',
            'return moments["A.diagonal"].expand(len(moments["G.diagonal"]), -1), part_state',
        ),
    ),
    "writes into the moments": (
        "block",
        "inputs_not_written",
        but(BLOCK, 'moments["A.diagonal"])', 'moments["A.diagonal"].add_(1))'),
    ),
    "wrong device": (
        "block",
        "device_follows",
        but(
            BLOCK,
            "Inverse(1.0 / (factored",
            "Inverse(torch.ones(factored.shape, dtype=factored.dtype) / (factored",
        ),
    ),
    "wrong dtype": (
        "block",
        "dtype_follows",
        but(BLOCK, "Inverse(1.0 / (factored", "Inverse(1.0 / (factored.double()"),
    ),
    "not deterministic": (
        "estimator",
        "deterministic",
        but(ESTIMATOR, 'draw("targets")', "torch.rand(outputs.shape, dtype=outputs.dtype)"),
    ),
    "reads on the host": (
        "damping",
        "no_host_read",
        but(DAMPING + REGISTER, LAMBDA, "        if record.rho < 0.25:\n    " + LAMBDA + LAMBDA),
    ),
    "writes into its part_state": (
        "damping",
        "inputs_not_written",
        but(
            DAMPING + REGISTER,
            LAMBDA,
            '        part_state["count"] = part_state.get("count", 0) + 1\n' + LAMBDA,
        ),
    ),
    "NaN": (
        "damping",
        "finite",
        but(
            DAMPING + REGISTER,
            LAMBDA,
            "        return strength._replace(lam=strength.lam * record.rho), part_state\n",
        ),
    ),
    "follows ρ the wrong way": (
        "damping",
        "lambda_grows_when_bad",
        but(
            DAMPING.replace("lam: float = 1.0", "lam: float = 1.0\n    follows_rho = True")
            + REGISTER,
            LAMBDA,
            FOLLOWS.replace("lam * 2, strength.lam / 2", "lam / 2, strength.lam"),
        ),
    ),
    "loses η": (
        "damping",
        "eta_kept",
        but(
            DAMPING + REGISTER,
            "return (strength,)",
            "return (strength._replace(eta=strength.lam),)",
        ),
    ),
    "no dataclass": (
        "momentum",
        "round_trip",
        but(MOMENTUM, "@dataclass(frozen=True)\n", ""),
    ),
    "goes uphill": (
        "momentum",
        "starts_downhill",
        but(
            MOMENTUM,
            "return restriction.minimiser(strength)",
            "return -restriction.minimiser(strength)",
        ),
    ),
    "γ without an inverse": (
        "schedule",
        "gamma_implies_inverse",
        but(SCHEDULE, "step % 5 == 0, True)", "step % 3 == 0, True)"),
    ),
    "counts in its class": (
        "schedule",
        "deterministic",
        but(
            SCHEDULE,
            "step % 5 == 0, True), part_state",
            "step % 5 == 0, self.odd()), part_state\n\n"
            "    def odd(self):\n"
            "        type(self).calls = getattr(self, 'calls', 0) + 1\n"
            "        return self.calls % 7 == 1",
        ),
    ),
}


def judged(lab: Lab, slot: str) -> kl.testing.Report:
    """The kit's report on what the plugin registered, which loads without a word."""
    plugin = lab.plugin("broken")
    assert (plugin.status, plugin.why, plugin.slots) == ("loaded", "", {slot: ["mine"]})
    return report(lab.component(slot, "mine"), slot)


# --- installing, and what comes of it -----------------------------------------------------------

_X = torch.rand(24, 6, generator=torch.Generator().manual_seed(1))


def _problem() -> kl.Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6))
    return kl.Problem(model=model, likelihood="bernoulli", inputs=_X, targets=_X, l2=1e-3)


def _recipe() -> kl.Recipe:
    return kl.Recipe(
        estimator="sampled(fraction=1.0)", quadratic_model="exact_fisher(fraction=1.0)"
    )


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
            run = kl.Run(_problem(), _recipe().replace(damping=damping), device="cpu").advance(2)
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
    kl.Run(_problem(), _recipe().replace(damping="other-dist/mine"), device="cpu").advance(2)


@pytest.mark.parametrize("name", JUDGED)
def test_the_kit_names_the_law_and_the_lab_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, law, source = JUDGED[name]
    lab = laboratory(Case(KIT, "", source), tmp_path, monkeypatch)
    found = judged(lab, slot)
    assert law in found.broken, found
    with pytest.raises(kl.testing.LawError, match=f"  {law}: "):
        kl.testing.check(lab.component(slot, "mine"), slot)
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
