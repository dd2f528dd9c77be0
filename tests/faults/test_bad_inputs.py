"""Three hundred bad inputs of every kind, one by one: each is refused in a sentence of ours.

What is drawn at random is in ``test_fuzz``; these are written down, so that none of them can be
accepted in silence: an error of ours, or of a command the code 2, and nothing has changed.
"""

import copy
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kfac_lab as kl
from faults.test_fuzz import (
    a_preconditioner,
    a_run,
    an_optimizer,
    changed,
    fingerprint,
    places,
    problem,
)
from kfac_lab.cli import main
from kfac_lab.core import archive

pytestmark = pytest.mark.filterwarnings("ignore")

Calls = dict[str, Callable[[], Any]]
DEEP = 100_000


def refused(calls: Calls, look: Callable[[], Any]) -> int:
    """How many calls raised an error of ours, with one sentence, and changed nothing."""
    wrong, before = [], look()
    for name, call in calls.items():
        try:
            call()
            wrong.append(f"{name[:90]!r} was accepted")
        except kl.KfacLabError as error:
            if not str(error) or len(str(error)) > 2000 or "Traceback" in str(error):
                wrong.append(f"{name[:90]!r} says {str(error)[:200]!r}")
        except BaseException as error:
            wrong.append(f"{name[:90]!r} gives {type(error).__name__}: {str(error)[:100]}")
        if look() != before:
            wrong.append(f"{name[:90]!r} has changed something")
            before = look()
    assert not wrong, "\n".join(wrong)
    return len(calls)


# ---- recipes -------------------------------------------------------------------------------------

VALUES = [
    "inf", "-inf", "nan", "-1", "'a'", "1/0", "(1,)", "[1]", "{}", "1e999", "1j", "...", "1+1",
    "__import__('os')", "lambda: 0", "-" * 900 + "1", "1" + "/1" * 900, "1" + "0" * 400,
    "0x" + "f" * 2000, "(" * 900, "", "*", "x", "lam", "b'1'", "1 2", "1;2", "\0", "١,",
]  # fmt: skip
FIELDS = {
    "damping": "constant(lam={})",
    "batch": "constant(size={})",
    "average": "polyak(xi={})",
    "schedule": "periodic(T1={})",
}
TEXTS = [
    "constant(", "constant)", "constant(lam)", "constant(lam=)", "constant(=1)", "constant(1)",
    "constant(lam=1, lam=2)", "constant(lam=1,,)", "constant(salt=1)", "Constant", "constant()()",
    "constant.lam", "no such part", "", " ", "\n", "constant\nconstant", "1", "None", "(" * DEEP,
]  # fmt: skip
OBJECTS = [1, 1.5, True, b"tied", [], ["tied"], {}, {"tied": 1}, (), object(), nn.Linear(1, 1), int]


def swaps(run: kl.Run) -> Calls:
    found: Calls = {}
    for slot, text in FIELDS.items():
        for value in VALUES:
            part = text.format(value)
            found[f"{slot}={part}"] = lambda s=slot, p=part: run.swap(**{s: p})
    for text in TEXTS:
        found[f"damping={text[:40]!r}"] = lambda t=text: run.swap(damping=t)
    for value in OBJECTS:
        found[f"damping={value!r}"] = lambda v=value: run.swap(damping=v)
    for slot in ("", "sauce", "method", "layers", "Damping", "lam"):
        found[f"slot {slot!r}"] = lambda s=slot: run.swap(**{s: "tied"})
    found["no slot"] = lambda: run.swap()
    return found


def test_recipe_texts_and_swaps() -> None:
    run = a_run()
    print(refused(swaps(run), lambda: fingerprint(run)), "swaps")


SOURCES = [
    "damping = constant(", "= tied", "damping tied", "damping = ", "sauce = tied", "damping",
    "a = 1", "damping = tied\ndamping = tied", "method = no such", "method = kfac\nlr = 1", "\0",
    "{}", "[]",
    "a=" + "[" * DEEP, "[" * DEEP, "{" * 9000, "a = 1e", "[damping]", "damping = 3", '"', "]",
    "<xml/>",
    "damping = [1]", "damping = {a = 1}", "[[damping]]", "damping = 1979-05-27", "#\n=\n",
]  # fmt: skip
JSON = ["", "{", "[1]", "1", '"a"', "null", "true", '{"damping": 1}', '{"damping": null}',
        '{"": ""}', '{"damping": ["tied"]}', '{"damping": {"a": 1}}', '{"sauce": "tied"}',
        "{'damping': 'tied'}",
        '{"damping": "tied"} x', "NaN", "[" * DEEP, '{"damping": "tied(lam=inf)"}',
        json.dumps({"damping": "-" * 5000}), '{"layers": 3}', '{"fallback": 3}']  # fmt: skip


def test_texts_toml_and_json() -> None:
    found: Calls = {}
    for name, sources in (("from_toml", SOURCES), ("from_json", JSON), ("from_text", SOURCES)):
        read = getattr(kl.Recipe, name)
        for text in sources:
            found[f"{name} {text[:30]!r}"] = lambda r=read, t=text: r(t)
        for value in (None, b"damping = 'tied'", 3, [], Path("x")):
            found[f"{name} {value!r}"] = lambda r=read, v=value: r(v)
    print(refused(found, lambda: kl.Recipe.named("paper").text()), "recipes as text")


# ---- runs, arguments, paths ----------------------------------------------------------------------


def test_arguments_and_paths(tmp_path: Path) -> None:
    run = a_run()
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").touch()
    with zipfile.ZipFile(tmp_path / "zip", "w") as made:
        made.writestr("a", "b")
    whole = run.save(tmp_path / "run.pt").read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    paths: list[Any] = [
        "", None, 3, b"run.pt", [], "\0", "a\0b", tmp_path, tmp_path / "folder",
        tmp_path / "none" / "run.pt", tmp_path / ("n" * 300), tmp_path / "text" / "run.pt", 1.5,
    ]  # fmt: skip
    found: Calls = {}
    for path in paths:
        found[f"save {path!r}"] = lambda p=path: run.save(p)
        if path is not None:
            found[f"to_csv {path!r}"] = lambda p=path: run.history.to_csv(p)
            found[f"autosave {path!r}"] = lambda p=path: run.autosave(p, every=1)
        found[f"load {path!r}"] = lambda p=path: kl.Run.load(p, problem=problem())
    for name in ("text", "empty", "zip", "half", "nothing"):
        found[f"load a file: {name}"] = lambda n=name: kl.Run.load(tmp_path / n, problem=problem())
    for value in (-1, 1.5, "2", None, True, float("nan"), 10**400, [], object()):
        if value is not None:
            found[f"advance({value!r})"] = lambda v=value: run.advance(v)
        found[f"rewind({value!r})"] = lambda v=value: run.rewind(v)
        found[f"seed={value!r}"] = lambda v=value: kl.Run(
            problem(), "small_batch", v if not isinstance(v, int) or v is True else "x"
        )
        found[f"bad_batches={value!r}"] = lambda v=value: kl.Run(
            problem(), "small_batch", bad_batches=v if v != 10**400 else -(10**400)
        )
    for value in (-1, "1", float("nan"), [], object()):
        found[f"advance(seconds={value!r})"] = lambda v=value: run.advance(seconds=v)
        found[f"autosave(every={value!r})"] = lambda v=value: run.autosave(
            tmp_path / "a.pt", every=v
        )
        found[f"evaluate(cases={value!r})"] = lambda v=value: run.evaluate("train", cases=v)
        found[f"evaluate({value!r})"] = lambda v=value: run.evaluate(v)
        found[f"evaluate(at={value!r})"] = lambda v=value: run.evaluate("train", at=v)
        found[f"rewind(until={value!r})"] = lambda v=value: run.rewind(1, until=v)
        found[f"device={value!r}"] = lambda v=value: kl.Run(problem(), "small_batch", device=v)
        found[f"problem {value!r}"] = lambda v=value: kl.Run(v, "small_batch")
    names = sorted(p.name for p in tmp_path.rglob("*"))

    def look() -> Any:
        files = sorted(p.name for p in tmp_path.rglob("*"))
        return fingerprint(run), files == names, torch.get_num_threads(), run._autosave

    print(refused(found, look), "arguments and paths")


# ---- checkpoints and state dicts -----------------------------------------------------------------

ODD: list[Any] = [None, True, -1, 10**400, 1.5, float("nan"), "", "x", b"x", [], {}, ["x"]]


def spoilt(tree: Any, share: int) -> dict[str, Any]:
    """Trees with a part exchanged, taken out or doubled; every so many of all."""
    found = {}
    where = places(tree)
    for n, path in enumerate(where):
        if len(path) > 1 and n % share:
            continue
        how = ("take out", "exchange", "double")[n % 3] if len(path) > 1 else "take out"
        value = ODD[n % len(ODD)]
        made = changed(tree, path, how, value)
        if how == "exchange":
            at = tree
            for key in path:
                at = at[key]
            if type(at) is type(value) and at == value:
                continue
        found[f"{how} {path} {value!r}"] = made
    return found


#: what a file or a state may lack, or say otherwise: it is no part of what was saved
FREE = ("notes", "bad_batches", "where", "seal", "digests")


def test_checkpoint_trees(tmp_path: Path) -> None:
    run = a_run()
    content = archive.load(run.save(tmp_path / "run.pt"))
    del content["digests"]
    own = problem()
    found: Calls = {}
    for n, (name, tree) in enumerate(spoilt(content["stepper"], 12).items()):
        path = tmp_path / f"{n}.pt"
        try:
            archive.save(path, {**content, "stepper": tree})
        except Exception:
            continue  # no such tree gets to a disk
        found[f"stepper: {name}"] = lambda p=path: kl.Run.load(p, problem=own)
    for key in content:
        if key in FREE:
            continue
        for value in ODD[:6]:
            valid = [("problem", None), ("seed", -1), ("tf32", True)]
            if any(key == k and value is v for k, v in valid) or (key == "seed" and value == -1):
                continue
            path = tmp_path / f"{key}{len(found)}.pt"
            try:
                archive.save(path, {**content, key: value})
            except Exception:
                continue
            found[f"{key}={value!r}"] = lambda p=path: kl.Run.load(p, problem=own)
    before = copy.deepcopy(own.model.state_dict())
    look = lambda: all(torch.equal(v, before[k]) for k, v in own.model.state_dict().items())  # noqa: E731
    print(refused(found, look), "checkpoint trees")


@pytest.mark.parametrize("make", [an_optimizer, a_preconditioner])
def test_state_dicts(make: Callable[[], Any]) -> None:
    made, other = make(), make()
    state = made.state_dict()
    found: Calls = {
        f"{value!r}": lambda v=value: other.load_state_dict(v)
        for value in (None, 3, [], {}, "x", {"state": {}}, {"kfac_lab": 9}, (), state.items())
    }
    inner = state["state"] if isinstance(made, kl.KFAC) else state
    for name, tree in spoilt(inner, 12).items():
        if any(f"'{free}'" in name for free in FREE):
            continue
        odd = {**state, "state": tree} if isinstance(made, kl.KFAC) else tree
        found[name] = lambda o=odd: other.load_state_dict(o)

    def look() -> Any:
        return {k: archive.digest(v) for k, v in archive.tensors(other.state_dict())}

    print(refused(found, look), "state dicts of", type(made).__name__)


# ---- commands ------------------------------------------------------------------------------------

TRAIN = ["train", "digits_small", "--steps", "1"]
COMMANDS = [
    [], ["no-such"], ["train"], ["train", "no such"], ["train", "digits", "--steps"],
    ["train", "digits", "--steps", "x"], ["train", "digits", "--steps", "-1"],
    ["train", "digits", "--seconds", "nan"], ["train", "digits", "--seconds", "x"],
    [*TRAIN, "--set", "damping"], [*TRAIN, "--set", "=x"], [*TRAIN, "--set", "sauce=tied"],
    [*TRAIN, "--set", "damping=no such"], [*TRAIN, "--set", "damping=constant(lam=inf)"],
    [*TRAIN, "--swap", "x"], [*TRAIN, "--swap", "5"], [*TRAIN, "--swap", "5:"],
    [*TRAIN, "--swap", "x:damping=tied"], [*TRAIN, "--swap", "-1:damping=tied"],
    [*TRAIN, "--swap", "1:damping=no such"], [*TRAIN, "--seed", "x"], [*TRAIN, "--seed", "1.5"],
    [*TRAIN, "--device", "no such"], [*TRAIN, "--device", "cuda:99"], [*TRAIN, "--device", "meta"],
    [*TRAIN, "--save-every", "2"], [*TRAIN, "--save", "none/run.pt"], [*TRAIN, "--save", ""],
    [*TRAIN, "--recipe", "no such"], [*TRAIN, "--recipe", "damping = constant("],
    [*TRAIN, "--no-such"], [*TRAIN, "--csv", "none/a.csv"], [*TRAIN, "--evaluate", "no such"],
    [*TRAIN, "--resume", "none.pt"],
    ["reproduce"], ["reproduce", "no such"], ["reproduce", "digits", "--only", "TYPO"],
    ["reproduce", "digits", "--until", "x"], ["reproduce", "digits", "--until", "-1"],
    ["bench", "no such"], ["bench", "digits", "--steps", "0"], ["bench", "digits", "--steps", "x"],
    ["components", "no such"], ["check", "no such"], ["check", "damping", "no such"],
    ["new-plugin"], ["new-plugin", "1 2"], ["new-plugin", "x", "--slot", "no such"],
    ["race", "no such"], ["demo", "--no-such"],
]  # fmt: skip
THREADS = ["100000", "0", "-1", "x", "1.5", "", "1e9", "nan", "9" * 400]


def test_command_lines_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    threads, count, wrong = torch.get_num_threads(), 0, []
    commands = [list(words) for words in COMMANDS]
    for words in (TRAIN, ["bench", "digits"], ["race", "digits"], ["reproduce", "digits"]):
        commands += [[*words, "--threads", number] for number in THREADS]
    for words in commands:
        count += 1
        try:
            code: Any = main(words)
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            code = f"{type(error).__name__}: {str(error)[:100]}"
        told = capfd.readouterr().err
        if code != 2 or not told.strip() or "Traceback" in told:
            wrong.append(f"{words}: {code}, {told[-200:]!r}")
        if any(tmp_path.iterdir()) or torch.get_num_threads() != threads:
            wrong.append(f"{words}: changed something")
    assert not wrong, "\n".join(wrong)
    with capfd.disabled():
        print(count, "command lines, those with threads included")
