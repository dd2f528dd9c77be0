"""Odd input of every kind: only errors of ours come, each one sentence, and nothing has changed.

Recipe texts, TOML, JSON, checkpoint trees, state dicts and command lines are drawn, or are sound
ones with a part exchanged. ``make test`` takes a sample, ``make soak`` many more.
"""

import argparse
import contextlib
import copy
import io
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import kfac_lab as kl
from kfac_lab.cli import parser
from kfac_lab.core import archive
from kfac_lab.hooks.registry import SLOTS

pytestmark = pytest.mark.filterwarnings("ignore")


def sized(count: int):
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )


SAMPLE, MANY = sized(25), sized(1500)


def only_ours(call: Any, *arguments: Any) -> Any:
    """The result, or the error of ours that came in its place; any other is the test's failure."""
    try:
        return call(*arguments)
    except kl.KfacLabError as error:
        assert str(error) and len(str(error)) < 5000
        return error


# ---- what is drawn -------------------------------------------------------------------------------

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**400, -(10**400)]),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.just([]),
    st.just({}),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.builds(torch.zeros, st.lists(st.integers(0, 3), max_size=2)),
    st.sampled_from([torch.tensor(math.nan), torch.ones(2, dtype=torch.int64), (1, 2), object()]),
)

VALUES = st.recursive(
    st.one_of(
        st.sampled_from("1 -1 1/0 1/3 inf -inf nan True None 'a' 1e999".split()),
        st.integers().map(str),
        st.floats().map(repr),
        st.text(max_size=5).map(repr),
        st.text("-+/(),[]{}'\"\\01eax_*.: \n", max_size=12),
        st.integers(1, 3000).map(lambda n: "-" * n + "1"),
        st.integers(1, 3000).map(lambda n: "9" * n),
        st.integers(1, 3000).map(lambda n: "0x" + "f" * n),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda v: f"({', '.join(v)},)"),
        st.tuples(inner, inner).map("/".join),
    ),
    max_leaves=4,
)
NAMES = [
    "lam",
    "gamma",
    "size",
    "fraction",
    "xi",
    "lr",
    "mu",
    "steps",
    "pi",
    "check",
    "omega1",
    "x",
]
COMPONENTS = (
    "constant tied levenberg_marquardt kronecker diagonal block_tridiagonal kfac sampled exact "
    "polyak none nag adam growing optimal fixed paper no"
).split()
TEXTS = st.one_of(
    st.builds(
        lambda name, pairs: f"{name}({', '.join(f'{k}={v}' for k, v in pairs)})",
        st.sampled_from(COMPONENTS),
        st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=3),
    ),
    st.sampled_from(COMPONENTS),
    st.text(max_size=20),
    VALUES,
    st.builds(
        lambda k, v: json.dumps({k: v}), st.sampled_from(["*", "Linear", ""]), st.text(max_size=9)
    ),
)
SLOT = st.one_of(st.sampled_from([*SLOTS, "layers", "fallback"]), st.text(max_size=8))
LINES = st.lists(st.tuples(SLOT, TEXTS), max_size=4).map(
    lambda pairs: "\n".join(f"{k} = {v}" for k, v in pairs)
)
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SLOT, inner, max_size=3),
    max_leaves=6,
)


def toml(value: Any) -> str:
    pairs = value.items() if isinstance(value, dict) else [("a", value)]
    return "\n".join(f"{json.dumps(str(k))} = {json.dumps(v)}" for k, v in pairs)


# ---- recipes -------------------------------------------------------------------------------------


def read_anywhere(source: str, table: Any, slot: str, text: str) -> None:
    only_ours(kl.Recipe.from_text, source)
    only_ours(kl.Recipe.of, source)
    only_ours(kl.Recipe.from_json, source)
    only_ours(kl.Recipe.from_toml, source)
    only_ours(kl.Recipe.from_json, json.dumps(table))
    only_ours(kl.Recipe.from_toml, toml(table))
    only_ours(kl.Recipe.of, table)
    made = only_ours(lambda: kl.Recipe.named("paper").replace(**{slot: text}))
    if isinstance(made, kl.Recipe):  # what can be made can be written and read
        assert kl.Recipe.from_text(made.text()) == made
        assert kl.Recipe.from_toml(made.to_toml(complete=True)) == made
        assert kl.Recipe.from_json(made.to_json()) == made


@SAMPLE
@given(LINES | st.text(), JSONS, SLOT, TEXTS)
def test_recipes(source: str, table: Any, slot: str, text: str) -> None:
    read_anywhere(source, table, slot, text)


@pytest.mark.soak
@MANY
@given(LINES | st.text(), JSONS, SLOT, TEXTS)
def test_many_recipes(source: str, table: Any, slot: str, text: str) -> None:
    read_anywhere(source, table, slot, text)


# ---- swaps, checkpoints, state dicts -------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


X, Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 4
RECIPE = "small_batch"


def problem() -> kl.Problem:
    return kl.Problem(model=network(), likelihood="categorical", inputs=X, targets=Y)


def a_run(recipe: Any = RECIPE) -> kl.Run:
    recipe = kl.Recipe.of(recipe).replace(batch="constant(size=20)")
    return kl.Run(problem(), recipe, device="cpu").advance(2)


@pytest.fixture(scope="module")
def run() -> kl.Run:
    return a_run()


def fingerprint(run: kl.Run) -> dict[str, Any]:
    """All that a run is, as digests and texts."""
    tree = {"state": run.stepper.state(), "model": dict(run.problem.model.state_dict())}
    digests = {name: archive.digest(tensor) for name, tensor in archive.tensors(tree)}
    marks, modes = list(run.history.marks), [m.training for m in run.problem.model.modules()]
    return {"tensors": digests, "recipe": run.recipe.text(), "marks": marks, "modes": modes,
            "step": run.step, "records": len(run.history), "queue": list(run._queue)}  # fmt: skip


def swap_oddly(run: kl.Run, slot: str, value: Any) -> None:
    before = fingerprint(run)
    found = only_ours(lambda: run.swap(**{slot: value}))
    if isinstance(found, kl.KfacLabError):
        assert fingerprint(run) == before
    else:
        run.rewind(run.step) if run.step != 2 else None
        only_ours(lambda: run.fork().advance(1))  # no raw error later on either


@SAMPLE
@given(SLOT.filter(str.isidentifier), TEXTS | ODD)
def test_swaps(run: kl.Run, slot: str, value: Any) -> None:
    swap_oddly(run.fork(), slot, value)


@pytest.mark.soak
@sized(600)
@given(SLOT.filter(str.isidentifier), TEXTS | ODD)
def test_many_swaps(run: kl.Run, slot: str, value: Any) -> None:
    swap_oddly(run.fork(), slot, value)


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in a tree of dicts and lists."""
    found = [path] if path else []
    if isinstance(tree, dict):
        inside = list(tree.items())
    elif isinstance(tree, list):
        inside = list(enumerate(tree))
    else:
        inside = []
    for key, value in inside:
        found += places(value, (*path, key))
    return found


def changed(tree: Any, path: tuple, how: str, value: Any) -> Any:
    """A copy of the tree with one value exchanged, taken out, or doubled."""
    tree = copy.deepcopy(tree)
    at = tree
    for key in path[:-1]:
        at = at[key]
    if how == "exchange":
        at[path[-1]] = value
    elif how == "take out":
        del at[path[-1]]
    elif isinstance(at, list):
        at.append(at[path[-1]])
    else:
        at[f"{path[-1]} again"] = at[path[-1]]
    return tree


CHANGES = st.tuples(st.integers(0), st.sampled_from(["exchange", "take out", "double"]), ODD)


@pytest.fixture(scope="module")
def saved(run: kl.Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    content = archive.load(run.save(tmp_path_factory.mktemp("fuzz") / "run.pt"))
    del content["digests"]
    return content


def load_oddly(saved: dict[str, Any], path: Any, change: tuple) -> None:
    at, how, value = change
    all_places = places(saved)
    odd = changed(saved, all_places[at % len(all_places)], how, value)
    if isinstance(only_ours(write_odd, path, odd), kl.KfacLabError):
        return
    own = problem()
    before = {k: v.clone() for k, v in own.model.state_dict().items()}
    found = only_ours(lambda: kl.Run.load(path, problem=own, device="cpu"))
    if isinstance(found, kl.KfacLabError):
        now = own.model.state_dict()
        assert all(torch.equal(now[k], v) for k, v in before.items())
    else:
        only_ours(lambda: found.advance(1))


def write_odd(path: Any, tree: Any) -> None:
    try:
        archive.save(path, tree)
    except Exception as error:  # what torch or the digests cannot take is never on a disk
        raise kl.CheckpointError(str(error) or "cannot be written") from error


@SAMPLE
@given(CHANGES)
def test_checkpoints(saved, tmp_path_factory, change) -> None:
    load_oddly(saved, tmp_path_factory.getbasetemp() / "odd.pt", change)


@pytest.mark.soak
@MANY
@given(CHANGES)
def test_many_checkpoints(saved, tmp_path_factory, change) -> None:
    load_oddly(saved, tmp_path_factory.getbasetemp() / "odd.pt", change)


def an_optimizer() -> kl.KFAC:
    made = kl.KFAC(network(), recipe=RECIPE)
    made.step(X, Y)
    return made


def a_preconditioner() -> kl.Preconditioner:
    made = kl.Preconditioner(network())
    nn.functional.cross_entropy(made.model(X), Y).backward()
    made.step()
    return made


def go_on(made: Any) -> None:
    if isinstance(made, kl.KFAC):
        made.step(X, Y)
        return
    made.model.zero_grad()
    nn.functional.cross_entropy(made.model(X), Y).backward()
    made.step()


def load_state_oddly(make: Any, change: tuple) -> None:
    made = make()
    state = made.state_dict()
    at, how, value = change
    all_places = places(state)
    odd = changed(state, all_places[at % len(all_places)], how, value)
    other = make()
    found = only_ours(other.load_state_dict, odd)
    if isinstance(found, kl.KfacLabError):
        now, then = (  # by digest: a NaN is equal to itself here
            {k: archive.digest(v) for k, v in archive.tensors(made.state_dict())}
            for made in (other, make())
        )
        assert now == then
    only_ours(go_on, other)


@SAMPLE
@given(st.sampled_from([an_optimizer, a_preconditioner]), CHANGES)
def test_state_dicts(make, change) -> None:
    load_state_oddly(make, change)


@pytest.mark.soak
@MANY
@given(st.sampled_from([an_optimizer, a_preconditioner]), CHANGES)
def test_many_state_dicts(make, change) -> None:
    load_state_oddly(make, change)


# ---- the command line ----------------------------------------------------------------------------

WORDS = st.one_of(
    st.sampled_from(
        "train reproduce demo bench components plugins check digits --steps --seconds --set --swap "
        "--save --save-every --threads --device --seed --evaluate --only --until --csv -- -1 0 1e9 "
        "damping=tied 5:damping=tied =x 5: : cpu meta cuda:99 100000".split()
    ),
    TEXTS,
    st.text(max_size=6),
    st.integers().map(str),
)


def parse_oddly(words: list[str]) -> None:
    """argparse's own exit, with a sentence and the code 2 (0 where help was asked for), or words
    that are read."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        try:
            found = parser().parse_args(words)
        except SystemExit as error:
            assert error.code in (0, 2) and told.getvalue()
            return
    assert isinstance(found, argparse.Namespace) and callable(found.run)


@SAMPLE
@given(st.lists(WORDS, max_size=7))
def test_command_lines(words: list[str]) -> None:
    parse_oddly(words)


@pytest.mark.soak
@MANY
@given(st.lists(WORDS, max_size=7))
def test_many_command_lines(words: list[str]) -> None:
    parse_oddly(words)
