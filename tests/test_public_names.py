"""Every name that the package offered when it was recorded is still there (public_names.json)."""

import importlib
import importlib.util
import json
from pathlib import Path

import pytest

from kfac_lab.core.parameters import did_you_mean
from kfac_lab.core.slots import slot_name
from kfac_lab.hooks.manager import Lab
from kfac_lab.hooks.recipe import Recipe

_SPEC = importlib.util.spec_from_file_location(
    "public_names", Path(__file__).with_name("public_names.py")
)
names = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(names)
RECORD = json.loads(names.RECORD.read_text(encoding="utf-8"))

#: taken away on purpose: nothing but their own tests ever called them
GONE = {
    "kfac_lab.core.linalg.symmetric_root",
    "kfac_lab.core.iterative.newton_schulz_roots",
    "kfac_lab.core.commit.uninterrupted",  # a commit is core.exchange's
    "kfac_lab.problems.pca",
    "kfac_lab.problems.pca.pca_error",
    "kfac_lab.testing.laws.block.made",  # what laws are tried on stands in files of its own
    "kfac_lab.testing.laws.block.seen",
    "kfac_lab.testing.laws.structure.unflat",
    "kfac_lab.panel.views.series.curves",  # drew a view's lines; views answer with data now
}
GONE_MEMBERS = {"Panel": {"images", "pages", "summaries"}}  # the widgets that held those drawings


@pytest.fixture(scope="module")
def lab():
    made = Lab(entry_points=False)
    made.load()
    return made


def test_every_module_still_offers_its_names():
    lost = []
    for module, offered in RECORD["modules"].items():
        if module in GONE:
            continue
        made = importlib.import_module(module)
        lost += [
            f"{module}.{n}" for n in offered if f"{module}.{n}" not in GONE and not hasattr(made, n)
        ]
    assert lost == []


def test_nothing_is_called_gone_that_is_there():
    for name in GONE:
        module, _, last = name.rpartition(".")
        assert name in RECORD["modules"] or last in RECORD["modules"][module]
        try:
            found = importlib.import_module(name if name in RECORD["modules"] else module)
        except ModuleNotFoundError:
            continue
        assert not hasattr(found, last), name


def test_public_classes_keep_their_members():
    now = {name: set(names.members(name)) for name in RECORD["members"]}
    lost = {n: set(was) - now[n] for n, was in RECORD["members"].items()}
    assert {name: gone for name, gone in lost.items() if gone} == GONE_MEMBERS


def test_components_keep_their_names_and_fields(lab):
    now = names.components(lab)
    for slot, was in RECORD["components"].items():
        known = dict(told.rstrip(")").split("(") for told in now[slot_name(slot)])
        for told in was:
            name, fields = told.rstrip(")").split("(")
            name = lab.entry(slot, name).name  # an old name finds the new one
            lost = set(fields.split(", ")) - set(known[name].split(", "))
            assert not lost, f"{slot} {told}{did_you_mean(min(lost), known)}"


#: recipes that are better now: what is new in them
BETTER = {"robust": {"damping": "steered(lam=150.0, guard=5.0)", "momentum": "confirmed"}}


@pytest.mark.parametrize("name", RECORD["recipes"])
def test_recipe_texts_still_read_the_same(lab, name):
    read = Recipe.from_text(RECORD["recipes"][name], lab=lab)
    new = BETTER.get(name)
    assert (read.replace(**new) if new else read) == Recipe.named(name, lab=lab)
    assert Recipe.from_text(read.text(complete=True), lab=lab) == read


def test_commands_keep_their_options():
    assert set(RECORD["commands"]) <= set(names.commands())
