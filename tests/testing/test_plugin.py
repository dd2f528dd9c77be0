"""check_plugin: a whole plugin, its components, and the layers and likelihoods that it claims."""

import sys
import types
from importlib.metadata import entry_points

import pytest
import torch
from broken.damping import Sound, _Unbounded
from broken.plugin import sound
from hooks.test_specs import HOOKS, example
from testing.matrix import ask
from torch import nn

import kfac_lab as kl
from kfac_lab.core.likelihood import Poisson
from kfac_lab.testing import check_plugin
from kfac_lab.testing.catalogue import calls, modules
from kfac_lab.testing.plugin import plugin_reports, sources


def reports(plugin):
    return {(r.slot, r.component): r for r in plugin_reports(plugin)}


def module(name, source):
    made = types.ModuleType(name)
    exec(compile(source, name, "exec"), made.__dict__)
    return made


# --- a plugin and its parts -----------------------------------------------------------------------


def test_a_sound_plugin_passes_with_all_that_it_brings():
    found = reports(sound())
    assert all(report.passed for report in found.values()), "\n".join(map(str, found.values()))
    assert list(found) == [
        ("plugin", "tried"),
        ("batch", "ten"),
        ("layer", "_MixedLayer of its example 1, _Mixed"),
    ]


def test_a_broken_part_is_an_error_that_names_law_and_part(monkeypatch):
    def registers(register):
        register("fine", Sound)
        register("unbounded", _Unbounded)

    ask(monkeypatch, "damping", "bounds_kept")  # of both parts, and what it needs
    plugin = sound(kfac_register_dampings=registers)
    found = list(plugin_reports(plugin))
    assert {(r.slot, r.component): r.passed for r in found}["damping", "fine"]
    # the same reports again: to make them anew would tell nothing more
    monkeypatch.setattr("kfac_lab.testing.plugin.plugin_reports", {plugin: found}.__getitem__)
    with pytest.raises(kl.testing.LawError, match="damping unbounded breaks 1 of its laws") as told:
        check_plugin(plugin)
    assert "bounds_kept" in str(told.value) and told.value.report.slot == "damping"


def test_what_does_not_load_is_told_in_the_loaders_words_and_no_part_is_tried():
    def misspelt(register):
        register("ten", Sound)

    (found,) = plugin_reports(sound(kfac_register_damping=misspelt))
    assert found.broken == ("hooks_known",)
    assert "there is no hook 'kfac_register_damping' (did you mean" in str(found)


def test_a_component_without_defaults_is_exempt_and_says_what_to_do():
    source = """
import dataclasses
import kfac_lab as kl

@dataclasses.dataclass(frozen=True)
class Cases:
    cases: int
    def size(self, step, available):
        return self.cases

@kl.hookimpl
def kfac_register_batches(register):
    register("cases", Cases)
"""
    found = reports(module("needy", source))["batch", "cases"]
    assert found.passed and "no default for cases" in found.results[0].why


@pytest.mark.parametrize("hook", [h for h in sorted(HOOKS) if not h.startswith("kfac_register_")])
def test_the_hooks_examples_of_claims_and_events_obey(hook):
    found = plugin_reports(module("example", example(hook)))
    assert all(report.passed for report in found), hook


def test_a_module_that_only_the_plugin_knows_is_tried_by_its_examples(monkeypatch):
    source = example("kfac_claim_layer")
    alone = reports(module("mixed", source))
    assert list(alone) == [("plugin", "mixed")]  # none of torch's modules is a Mixed
    yields = "\n\ndef kfac_lab_examples():\n    yield Mixed(5, 4), torch.randn(6, 5)\n"
    found = reports(module("mixed", source + yields))
    layer = found["layer", "MixedLayer of its example 1, Mixed"]
    assert layer.passed and len(layer.results) > 10
    wrong = source.replace("tensors[0].t().contiguous()", "2 * tensors[0].t()") + yields
    ask(monkeypatch, "layer", "unpack_undoes_pack")
    layer = reports(module("mixed", wrong))["layer", "MixedLayer of its example 1, Mixed"]
    assert "unpack_undoes_pack" in layer.broken


def test_a_likelihood_that_is_claimed_is_tried():
    def claims(loss):
        return Poisson() if type(loss) is torch.nn.PoissonNLLLoss else None

    found = reports(sound(kfac_claim_likelihood=claims))
    assert found["likelihood", "Poisson of PoissonNLLLoss"].passed


def test_nothing_is_left_behind():
    state, listed = torch.get_rng_state(), [p.qualified for p in kl.lab.plugins()]
    list(plugin_reports(sound()))
    assert torch.equal(state, torch.get_rng_state())
    assert [p.qualified for p in kl.lab.plugins()] == listed


# --- finding --------------------------------------------------------------------------------------


def test_an_installed_distribution_is_found_by_any_of_its_names(tmp_path, monkeypatch):
    source = "import kfac_lab as kl\nfrom broken.damping import Sound\n\n"
    source += "@kl.hookimpl\ndef kfac_register_dampings(register):\n    register('own', Sound)\n"
    (tmp_path / "kfac_lab_tried.py").write_text(source)
    info = tmp_path / "kfac_lab_tried-1.0.dist-info"
    info.mkdir()
    named = "Metadata-Version: 2.1\nName: kfac-lab-tried\nVersion: 1.0\n"
    (info / "METADATA").write_text(named)
    (info / "entry_points.txt").write_text("[kfac_lab]\nown = kfac_lab_tried\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "own" in [point.name for point in entry_points(group="kfac_lab")]
    for name in ("kfac-lab-tried", "kfac_lab_tried", "own", "kfac-lab-tried/own"):
        (source,) = sources(name)
        assert source.qualified == "kfac-lab-tried/own" and source.version == "1.0"
    ask(monkeypatch, "damping", "runs")  # of its part it is enough here that it is tried
    found = reports("kfac-lab-tried")  # KFAC_LAB_PLUGINS allows none, which is about runs
    assert list(found) == [("plugin", "kfac-lab-tried/own"), ("damping", "own")]
    (quick,) = [r for r in found["plugin", "kfac-lab-tried/own"].results if "quickly" in r.law]
    assert quick.status == "obeyed"
    monkeypatch.delitem(sys.modules, "kfac_lab_tried")
    (tmp_path / "kfac_lab_tried.py").write_text("import time\ntime.sleep(1.1)\n")
    slow = reports("own")["plugin", "kfac-lab-tried/own"]
    assert slow.broken == ("imports_quickly", "brings_something")
    assert "expected at most 1 s, got 1." in str(slow)
    monkeypatch.delitem(sys.modules, "kfac_lab_tried")
    (tmp_path / "kfac_lab_tried.py").write_text("import kfac_lab_nowhere\n")
    (absent,) = plugin_reports("own")
    assert absent.broken == ("runs",) and "No module named 'kfac_lab_nowhere'" in str(absent)


def test_a_module_in_the_box_is_one_of_the_box():
    (source,) = sources("kfac_lab.run")
    assert source.qualified == "kfac-lab/run"
    assert {"paper", "problems", "run"} <= {s.name for s in sources("kfac-lab")}
    assert next(plugin_reports("kfac_lab.run")).component == "kfac-lab/run"


@pytest.mark.parametrize("name", ["kfac-lab-papper", "no such", "kfac_lab.nothing", "", "..a"])
def test_an_unknown_name_is_one_sentence(name):
    with pytest.raises(kl.PluginError, match="there is no plugin, distribution or module"):
        check_plugin(name)


# --- the catalogue --------------------------------------------------------------------------------


def test_the_catalogue_runs_and_knows_what_is_called():
    found = {example.name: calls(example) for example in modules()}
    assert all(parts for parts in found.values())
    called = {name: [part.args is not None for part in parts] for name, parts in found.items()}
    assert called.pop("MultiheadAttention") == [True, False]  # out_proj is never called
    assert called.pop("MultiheadAttention across") == [True, False]
    assert all(all(parts) for parts in called.values())


def test_the_catalogue_is_left_as_it_was():
    (example,) = [e for e in modules() if e.name == "BatchNorm1d"]
    before = {name: t.clone() for name, t in example.module.state_dict().items()}
    calls(example)
    assert all(torch.equal(t, before[n]) for n, t in example.module.state_dict().items())
    assert not example.module._forward_pre_hooks and isinstance(example.module, nn.BatchNorm1d)
