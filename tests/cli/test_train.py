"""``kfac-lab train``: what it prints, what it keeps, and how Ctrl-C ends it."""

import csv
import os
import pty
import re
import signal
import time
from pathlib import Path

import pytest
import torch

import kfac_lab as kl
from kfac_lab.run import Run


def same(one: Run, other: Run) -> bool:
    """Whether two runs stand at the same step with the same parameters and the same average."""
    if one.step != other.step or list(one.history["loss"]) != list(other.history["loss"]):
        return False
    pairs = zip(one.problem.model.parameters(), other.problem.model.parameters(), strict=True)
    averages = zip(one.stepper.average(), other.stepper.average(), strict=True)
    return all(torch.equal(a, b) for a, b in [*pairs, *averages])


# ---- what it prints ------------------------------------------------------------------------------


def test_it_trains_and_tells(command) -> None:
    done = command("train", "digits", "--steps", 12, "--evaluate", 5)
    assert done.code == 0 and done.err == ""
    assert "digits 8x8, 1,437 cases: K-FAC (paper), seed 0, cpu" in done.out
    assert "step 12/12" in done.out
    assert "training error" in done.out and "after step 5" in done.out
    assert re.search(r"λ [\d.]+.*γ [\d.]+.*batch 10\d\d.*s/step", done.out)
    assert re.search(r"^\s+train\s+test$", done.out, re.MULTILINE)
    assert re.search(r"^error\s+[\d.]+\s+[\d.]+$", done.out, re.MULTILINE)
    assert "12 steps," in done.out


def test_without_a_terminal_there_are_plain_lines_only(command) -> None:
    done = command("train", "digits", "--steps", 5)
    assert "\x1b" not in done.out and "\r" not in done.out
    lines = [line for line in done.out.splitlines() if line.startswith("step ")]
    assert lines and len(lines) == len(set(lines))


def test_quiet_leaves_the_table_alone(command) -> None:
    done = command("train", "digits", "--steps", 3, "--quiet")
    assert done.code == 0
    assert "step 3" not in done.out and re.search(r"^error ", done.out, re.MULTILINE)


def test_the_errors_are_those_of_the_whole_sets(command) -> None:
    done = command("train", "digits_classifier", "--steps", 6, "--quiet")
    run = Run("digits_classifier", "paper", seed=0).advance(6)
    error = re.search(r"^error\s+([\d.]+)\s+([\d.]+)$", done.out, re.MULTILINE)
    assert error is not None and "% wrong" in done.out
    for told, split in zip(error.groups(), ("train", "test"), strict=True):
        assert float(told) == pytest.approx(run.evaluate(split, at="best"), rel=5e-3)


def test_seconds_end_it(command) -> None:
    done = command("train", "digits", "--seconds", 0.2)
    took = re.search(r"steps, ([\d.]+) s of training", done.out)
    assert took is not None and 0.1 < float(took[1]) < 5


def test_a_warning_is_a_line_of_its_own(command) -> None:
    done = command("train", "digits", "--steps", 2, "--set", "batch=constant(size=64)")
    assert done.code == 0
    assert "note: " in done.out and "small_batch" in done.out
    assert "UserWarning" not in done.out + done.err


@pytest.mark.parametrize("recipe", ["robust", "nag", "adam", "muon"])
def test_any_recipe_trains(command, recipe: str) -> None:
    if recipe == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip(f"torch {torch.__version__} has no Muon")
    done = command("train", "digits", "--recipe", recipe, "--steps", 3)
    assert done.code == 0 and "step 3/3" in done.out


def test_a_terminal_sees_lines_redrawn_and_gets_its_cursor_back(spawn) -> None:
    master, slave = pty.openpty()
    os.environ["TERM"] = "xterm-256color"
    process = spawn("train", "digits", "--seconds", 1, terminal=os.ttyname(slave))
    os.close(slave)
    seen = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    assert process.wait(60) == 0, process.stderr.read()
    text = seen.decode()
    assert "\x1b[?25l" in text and text.rstrip().rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
    redrawn = len(re.findall(r"\x1b\[\d+A", text))
    assert 2 <= redrawn <= 25  # ten times a second at most
    assert "█" in text and "left" in text and "λ" in text


# ---- parts ---------------------------------------------------------------------------------------


def test_set_puts_other_parts_in(command, tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    parts = ["--set", "damping=tied(lam=10)", "--set", "structure=block_tridiagonal"]
    assert command("train", "digits", "--steps", 3, *parts, "--save", file).code == 0
    recipe = Run.load(file).recipe
    assert type(recipe["damping"]).__name__ == "Tied" and recipe["damping"].lam == 10
    assert type(recipe["structure"]).__name__ == "BlockTridiagonal"


def test_swaps_happen_after_their_steps(command, tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    swaps = ["--swap", "4:structure=block_tridiagonal", "--swap", "2:momentum=rescaled"]
    assert command("train", "digits", "--steps", 6, *swaps, "--save", file).code == 0
    marks = Run.load(file).history.marks
    assert [(m.step, dict(m.parts)) for m in marks] == [
        (2, {"momentum": "rescaled"}),
        (4, {"structure": "block_tridiagonal"}),
    ]


# ---- files ---------------------------------------------------------------------------------------


def test_files_are_written(command, tmp_path: Path) -> None:
    table, picture = tmp_path / "a.csv", tmp_path / "a.png"
    swap = ["--swap", "4:damping=tied"]
    done = command("train", "digits", "--steps", 8, "--csv", table, "--plot", picture, *swap)
    assert done.code == 0 and f"wrote {table}" in done.out and f"wrote {picture}" in done.out
    rows = list(csv.DictReader(table.open()))
    assert [int(float(row["step"])) for row in rows] == list(range(1, 9))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_resuming_goes_on_bit_for_bit(command, tmp_path: Path) -> None:
    half, whole, two = tmp_path / "half.pt", tmp_path / "whole.pt", tmp_path / "two.pt"
    swaps = ["--swap", "3:damping=tied", "--swap", "9:structure=block_tridiagonal"]
    assert command("train", "digits", "--steps", 6, *swaps, "--save", half).code == 0
    done = command("train", "--resume", half, "--steps", 12, *swaps, "--save", two)
    assert done.code == 0 and "at step 6" in done.out
    assert command("train", "digits", "--steps", 12, *swaps, "--save", whole).code == 0
    assert same(Run.load(two), Run.load(whole))
    assert len(Run.load(two).history.marks) == 2


# ---- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "digitz"], "did you mean 'digits'?"),
        (["train"], "needs a problem's name"),
        (["train", "digits", "--recipe", "papr"], "did you mean 'paper'?"),
        (["train", "digits", "--set", "damping=tied(lam=-1)"], "must be at least 0"),
        (["train", "digits", "--set", "dampin=tied"], "did you mean 'damping'?"),
        (["train", "digits", "--set", "damping=tied", "--set", "damping=tied"], "twice"),
        (["train", "digits", "--swap", "5:damping=tide"], "did you mean 'tied'?"),
        (["train", "digits", "--swap", "5:method=adam"], "--recipe"),
        (["train", "digits", "--save", "nowhere/at/all.pt"], "there is no folder"),
        (["train", "--resume", "nothing.pt"], "there is no file nothing.pt"),
        (["components", "dampin"], "did you mean 'damping'?"),
        (["plugins", "--why", "nobody"], "there is no plugin 'nobody'"),
    ],
)
def test_errors_are_one_sentence(command, words: list[str], told: str) -> None:
    done = command(*words)
    assert done.code == 2
    assert done.err.startswith("kfac-lab: ") and done.err.count("\n") == 1
    assert told in done.err
    assert "Traceback" not in done.out + done.err


def test_a_resumed_run_keeps_what_it_is(command, tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    assert command("train", "digits", "--steps", 4, "--save", file).code == 0
    for words, told in [
        (["curves"], "a run on 'digits'"),
        (["--recipe", "robust"], "--swap"),
        (["--seed", 1], "keeps its seed"),
        (["--swap", "2:damping=tied"], "at step 4 already"),
    ]:
        done = command("train", *words, "--resume", file)
        assert done.code == 2 and told in done.err


def test_a_run_that_breaks_down_is_kept_up_to_there(command, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "run.pt"
    step = Run.step_once

    def breaks(run: Run) -> kl.StepRecord:
        if run.step == 3:
            raise kl.NumericalError("the objective is not finite at step 4")
        return step(run)

    monkeypatch.setattr(Run, "step_once", breaks)
    done = command("train", "digits", "--steps", 8, "--save", file)
    assert done.code == 2 and "not finite at step 4" in done.err
    assert Run.load(file).step == 3


# ---- Ctrl-C --------------------------------------------------------------------------------------


def test_ctrl_c_ends_at_a_step_and_keeps_everything(spawn, command, tmp_path: Path) -> None:
    file, table = tmp_path / "run.pt", tmp_path / "run.csv"
    words = ["train", "digits", "--steps", 100000, "--save", file, "--csv", table]
    process = spawn(*words)
    seen = ""
    while "step 1/" not in seen:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        seen += line
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err and "Interrupted after step" in out
    assert re.search(r"^error\s", out, re.MULTILINE)
    run = Run.load(file)
    assert 1 <= run.step < 100000 and len(table.read_text().splitlines()) == run.step + 1
    stopped, target = run.step, run.step + 4
    two = tmp_path / "two.pt"
    assert command("train", "--resume", file, "--steps", target, "--save", two).code == 0
    if stopped < 3000:  # an uninterrupted twin, where it is not too long
        twin = Run("digits", "paper", seed=0).advance(target)
        assert same(Run.load(two), twin)
