"""`kfac-lab reproduce`: what it writes, what a kill costs, and what it says it will cost."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kfac_lab as kl
from kfac_lab.cli import experiments, main, reproduce
from kfac_lab.cli.experiments import Planned, planned
from kfac_lab.cli.flops import run_flops, step_flops
from kfac_lab.cli.reproduce import FIRST, Maker, fingerprint
from kfac_lab.cli.sweep import STRENGTHS, WAYS
from kfac_lab.run import Run
from kfac_lab.study import points, read

RESULTS = Path(__file__).resolve().parents[2] / "results"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # small batches


def plan(label="block-diagonal", steps=30, evaluate=10):
    recipe = kl.Recipe.named("paper").replace(batch="constant(size=200)").text(complete=True)
    return Planned(label, "digits", recipe, 3, steps, evaluate)


def lines_of(folder: Path, one: Planned, *until: int) -> list[dict]:
    for steps in until:
        Maker(one, folder / "x.jsonl", folder / "work").make(steps)
    return read(folder / "x.jsonl")


def without_time(lines):
    return [{k: v for k, v in x.items() if "seconds" not in k} for x in lines]


def test_a_run_line_says_what_it_takes_to_make_it_again(tmp_path):
    head, *rest = lines_of(tmp_path, plan(), 10)
    assert head["type"] == "run" and {x["type"] for x in rest} == {"point"}
    for name in ("hardware", "threads", "seed", "recipe", "commit", "data", "torch", "package"):
        assert head[name] not in (None, ""), name
    run = Run(head["problem"], kl.Recipe.from_text(head["recipe"]), head["seed"], "cpu")
    assert fingerprint(run) == head["data"]
    for row in (x for x in rest if x["step"] <= FIRST):
        run.advance(1)
        assert row["loss"] == pytest.approx(run.history["loss"][-1], rel=1e-5)
        assert row["lam"] == pytest.approx(run.history["lam"][-1], rel=1e-5)


def test_points_are_at_the_first_steps_and_at_evaluations(tmp_path):
    rows = lines_of(tmp_path, plan(), 30)[1:]
    assert [x["step"] for x in rows][:FIRST] == [1, 2, 3, 4, 5]
    assert [x["step"] for x in rows if "train" in x] == [10, 20, 30]
    assert all("test" in x for x in rows if "train" in x)
    run = Run("digits", kl.Recipe.from_text(plan().recipe), 3, "cpu").advance(30)
    assert rows[-1]["train"] == pytest.approx(run.evaluate("train", at="best"), rel=1e-5)
    columns = points(tmp_path / "x.jsonl", "block-diagonal", 3)
    assert columns["step"] == [x["step"] for x in rows]


def test_a_run_in_two_parts_is_a_run_in_one(tmp_path):
    (tmp_path / "one").mkdir()
    whole = lines_of(tmp_path / "one", plan(), 30)
    parts = lines_of(tmp_path / "two", plan(), 11, 24, 30)
    steps = {x.get("step") for x in whole}
    kept = [x for x in parts if x.get("step") in steps]  # a part's end has a line of its own
    extra = {"train", "train_theta", "test", "test_theta"}
    for one, other in zip(without_time(whole), without_time(kept), strict=True):
        assert {k: v for k, v in one.items() if k not in extra} == {
            k: v for k, v in other.items() if k not in extra
        }
    assert whole[-1]["train"] == kept[-1]["train"]


def test_a_killed_run_makes_the_points_after_its_snapshot_again(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    one = plan()
    Maker(one, tmp_path / "x.jsonl", tmp_path / "work").make(10)
    append = Maker._append

    def killing(self, run, record, measured):
        append(self, run, record, measured)
        if run.step == 20:
            raise Killed

    monkeypatch.setattr(Maker, "_append", killing)
    with pytest.raises(Killed):
        Maker(one, tmp_path / "x.jsonl", tmp_path / "work").make(30)
    assert max(x.get("step", 0) for x in read(tmp_path / "x.jsonl")) == 20
    monkeypatch.undo()
    rows = lines_of(tmp_path, one, 30)
    steps = [x["step"] for x in rows if x["type"] == "point"]
    assert steps == sorted(set(steps)) and steps[-1] == 30
    (tmp_path / "whole").mkdir()
    whole = lines_of(tmp_path / "whole", one, 30)
    assert rows[-1]["train"] == whole[-1]["train"]


def test_another_plan_does_not_go_on_with_a_snapshot(tmp_path):
    Maker(plan(), tmp_path / "x.jsonl", tmp_path / "work").make(5)
    other = Planned("block-diagonal", "digits", plan().recipe.replace("200", "300"), 3, 30, 10)
    with pytest.raises(kl.CheckpointError, match="remove the folder"):
        Maker(other, tmp_path / "x.jsonl", tmp_path / "work").make(10)


def test_the_command(tmp_path, capsys):
    arguments = ["--results", str(tmp_path), "--work", str(tmp_path / "w"), "--until", "6"]
    assert main(["reproduce", "digits", *arguments, "--only", "block-tridiagonal"]) == 0
    out = capsys.readouterr().out
    assert "TFLOP to go" in out and out.index("TFLOP") < out.index("from step 0")
    rows = read(tmp_path / "digits.jsonl")
    assert {x["run"] for x in rows} == {"block-tridiagonal, seed 0"}
    assert max(x.get("step", 0) for x in rows) == 6
    assert main(["reproduce", "digits", *arguments, "--only", "block-tridiagonal"]) == 0
    assert "6 / 6" in capsys.readouterr().out
    assert main(["reproduce", "digit"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err


class Products(TorchDispatchMode):
    """Counts 2·rows·inner·columns of every matrix product."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.rstrip("_") in ("aten::mm", "aten::addmm", "aten::bmm"):
            left, right = [t for t in args if isinstance(t, torch.Tensor)][-2:]
            self.flops += 2 * left.numel() * right.shape[-1]
        return func(*args, **(kwargs or {}))


def test_the_estimate_counts_the_matrix_products_of_a_step():
    recipe = kl.Recipe.named("paper").replace(batch="constant(size=1437)")
    run = Run("digits", recipe, 0, "cpu").advance(30)
    estimated = 0.0
    with Products() as counted:
        for k in range(31, 40):  # no inverse is due
            run.advance(1)
            estimated += step_flops([64, 32, 16, 4, 16, 32, 64], recipe, k, 1437)
    assert estimated == pytest.approx(counted.flops, rel=0.05)


def test_the_known_totals():
    """500 iterations of the paper's schedule: about 27 TFLOP (CURVES), 211 (MNIST), 927 (FACES).

    Those count a forward pass of its own for S2, which this engine shares with the gradient.
    """
    recipe = kl.Recipe.named("paper")
    for sizes, cases, known in (
        ([784, 400, 200, 100, 50, 25, 6, 25, 50, 100, 200, 400, 784], 20_000, 27),
        ([784, 1000, 500, 250, 30, 250, 500, 1000, 784], 60_000, 211),
        ([625, 2000, 1000, 500, 30, 500, 1000, 2000, 625], 103_500, 927),
    ):
        estimated = run_flops(sizes, recipe, 500, cases) / 1e12
        assert 0.8 * known < estimated < known


@pytest.mark.parametrize("name", sorted(experiments.EXPERIMENTS))
def test_plans_have_one_run_per_key_and_readable_recipes(name):
    plans = planned(name)
    assert len({p.key for p in plans}) == len(plans)
    for one in plans:
        assert kl.Recipe.from_text(one.recipe).text(complete=True) == one.recipe or (
            one.label in ("nag", "adam", "muon")
        )


def files_of_runs() -> list[Path]:
    """What `reproduce` wrote: the head of a run comes first. Other results have no heads."""
    found = []
    for path in sorted(RESULTS.glob("*.jsonl")):
        with path.open() as file:
            if json.loads(next(file)).get("type") == "run":
                found.append(path)
    return found


def test_every_result_of_an_experiment_is_a_file_of_runs():
    names = {path.stem for path in RESULTS.glob("*.jsonl")}
    made = {path.stem for path in files_of_runs()}
    assert made == names & set(experiments.EXPERIMENTS) and made


@pytest.mark.parametrize("path", files_of_runs(), ids=lambda p: p.stem)
def test_a_random_row_of_each_file_is_made_again(path, request):
    """One run of the file, its first steps: the same numbers on this machine.

    Of the largest network its data, its λ and its h before any step, which no inverse has touched:
    its blocks are identities here. ``make soak`` inverts them.
    """
    if path.stem == "faces":
        again(path, request, 1, "block-diagonal", ("loss", "lam"), block="identity")
    else:
        again(path, request, FIRST)


@pytest.mark.soak
def test_all_first_steps_of_a_row_of_faces_are_made_again(request):
    """The same with all five steps, the adapted λ too, of the largest network."""
    again(RESULTS / "faces.jsonl", request, FIRST)


def again(
    path: Path,
    request: pytest.FixtureRequest,
    steps: int,
    label: str = "",
    names: tuple[str, ...] = ("loss", "lam", "alpha"),
    **parts: str,
) -> None:
    rows = read(path)
    head = random.choice([x for x in rows if x["type"] == "run" and label in x["run"]])
    print(f"{path.name}: {head['run']}")
    if head["problem"] in ("mnist", "faces"):
        request.getfixturevalue("data_folder")
    recipe = kl.Recipe.from_text(head["recipe"]).replace(**parts)
    run = Run(head["problem"], recipe, head["seed"], "cpu")
    # Curves are computed, with last bits that are the processor's own: the steps compare them.
    assert fingerprint(run) == head["data"] or head["problem"] == "curves"
    first = [x for x in rows if x["run"] == head["run"] and x.get("step", 99) <= FIRST]
    assert [x["step"] for x in first] == [1, 2, 3, 4, 5]
    run.advance(steps)
    for name in names:
        for row in first[:steps]:
            now = run.history[name][row["step"] - 1]
            if row[name] is not None:
                assert now == pytest.approx(row[name], rel=1e-3), (name, row["step"])


def test_the_sweep_of_figure_7_is_made_at_its_step_and_leaves_the_run_alone(tmp_path):
    one = plan()
    plain = lines_of(tmp_path / "plain", one, 30)
    rows = lines_of(tmp_path / "swept", replace(one, sweep=20), 30)
    swept = [x for x in rows if x["run"] != one.key]
    assert without_time([x for x in rows if x["run"] == one.key]) == without_time(plain)
    heads = [x for x in swept if x["type"] == "sweep"]
    assert {x["label"]: x["momentum"] for x in heads} == WAYS
    assert all((x["from"], x["step"]) == (one.key, 20) for x in heads)
    run = Run("digits", kl.Recipe.from_text(one.recipe), one.seed, "cpu").advance(20)
    before = run.evaluate("train", at="theta").loss
    lam = run.fork().advance(1).history["lam"][-1]
    for way, momentum in WAYS.items():
        found = points(tmp_path / "swept" / "x.jsonl", way, one.seed)
        assert found["gamma"] == pytest.approx(STRENGTHS)
        assert found["lam"] == pytest.approx([lam] * len(STRENGTHS), rel=1e-5)
        n = random.randrange(len(STRENGTHS))
        parts = {"momentum": momentum, "schedule": "every_step"}
        step = run.fork().swap(damping=f"constant(gamma={STRENGTHS[n]})", **parts).advance(1)
        gained = before - step.evaluate("train", at="theta").loss
        assert found["improvement"][n] == pytest.approx(gained, rel=1e-4, abs=1e-4)
    assert set(points(tmp_path / "swept" / "x.jsonl", "no re-scaling", one.seed)["alpha"]) == {1.0}


def test_a_sweep_that_was_cut_is_made_again(tmp_path, monkeypatch):
    one = replace(plan(), sweep=6)
    rows = iter(range(20))
    append = reproduce._append

    def killing(path, line):
        if "gamma" in line and line["run"] != one.key and next(rows) == 17:
            raise KeyboardInterrupt
        append(path, line)

    monkeypatch.setattr(reproduce, "_append", killing)
    with pytest.raises(KeyboardInterrupt):
        Maker(one, tmp_path / "x.jsonl", tmp_path / "work").make(8)
    monkeypatch.undo()
    lines = lines_of(tmp_path, one, 8)
    made = [(x["run"], x["gamma"]) for x in lines if x["type"] == "point" and x["run"] != one.key]
    assert len(made) == len(set(made)) == len(WAYS) * len(STRENGTHS)


def test_lines_are_json_without_nan(tmp_path):
    Maker(plan(), tmp_path / "x.jsonl", tmp_path / "work").make(5)
    for text in (tmp_path / "x.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert torch.get_num_threads() == 1


def test_a_run_is_made_and_taken_up_on_the_device_that_is_asked_for(tmp_path, monkeypatch):
    seen = []

    class Spy(kl.Run):
        def __init__(self, *given):
            seen.append(given[3])
            super().__init__(*given)

        @classmethod
        def load(cls, path, device):
            seen.append(device)
            return kl.Run.load(path, device=device)

    monkeypatch.setattr(reproduce, "Run", Spy)
    for steps in (2, 3):
        Maker(plan(), tmp_path / "x.jsonl", tmp_path / "work", device="cpu:0").make(steps)
    assert seen == ["cpu:0", "cpu:0"]
