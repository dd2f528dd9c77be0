"""However a command ends, what it made is there, and it goes on from it."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import warm

import kfac_lab as kl
from kfac_lab.cli import main
from kfac_lab.cli.experiments import Planned, planned
from kfac_lab.cli.reproduce import Maker
from kfac_lab.core import files
from kfac_lab.run import Run
from kfac_lab.study import read

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def started(process: warm.Process) -> None:
    for line in process.stdout:
        if line.startswith("step "):
            return
    pytest.fail(process.stderr.read())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_training_at_a_step_with_everything_kept(spawn, tmp_path, name) -> None:
    file, table = tmp_path / "run.pt", tmp_path / "run.csv"
    process = spawn("train", "digits", "--steps", 10**6, "--save", file, "--csv", table)
    started(process)
    time.sleep(0.3)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name), out + err
    assert f"{name} after step" in out and "Traceback" not in err
    run = Run.load(file)
    assert 1 <= run.step < 10**6 and len(table.read_text().splitlines()) == run.step + 1
    if run.step < 2000:
        twin = Run("digits", "paper", seed=0).advance(run.step + 2)
        assert list(run.advance(2).history["loss"]) == list(twin.history["loss"])


def test_a_kill_leaves_the_last_save(spawn, tmp_path) -> None:
    file, table = tmp_path / "run.pt", tmp_path / "run.csv"
    words = ["--save", file, "--save-every", 3, "--csv", table]
    process = spawn("train", "digits", "--steps", 10**6, *words)
    started(process)
    time.sleep(0.5)
    process.kill()
    process.communicate(timeout=60)
    run = Run.load(file)
    assert run.step >= 1 and run.step % 3 == 1  # after the first step, then every three
    assert len(table.read_text().splitlines()) - 1 in (run.step, run.step - 3)
    assert [p for p in tmp_path.iterdir() if p.suffix == ".tmp"] == [] or run.save(file)
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".run.pt")] == []


def test_the_last_good_file_stays_and_every_output_is_tried(command, tmp_path, monkeypatch) -> None:
    file, table, picture = tmp_path / "run.pt", tmp_path / "run.csv", tmp_path / "run.png"
    assert command("train", "digits", "--steps", 2, "--save", file).code == 0
    old = file.read_bytes()

    def full(self, path):
        raise kl.CheckpointError(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr(Run, "save", full)
    done = command(
        "train", "digits", "--steps", 4, "--save", file, "--csv", table, "--plot", picture
    )
    assert done.code == 2 and "run.pt cannot be written: No space left" in done.err
    assert done.out.count("not saved at step 1") == 1 and re.search(r"^error ", done.out, re.M)
    assert file.read_bytes() == old
    assert len(table.read_text().splitlines()) == 5 and picture.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "digits", "--threads", "100000"], "threads are too many"),
        (["train", "digits", "--steps", "9" * 5000], "is not a whole number"),
        (["train", "digits", "--steps", "٣"], "is not a whole number"),
        (["train", "digits", "--save", "a", "--save-every", "0"], "neither a number of steps"),
        (["train", "digits", "--save", "a", "--save-every", "5x"], "neither a number of steps"),
        (["train", "digits", "--device", "meta"], "cannot be used here"),
    ],
)
def test_what_an_option_does_not_take(capsys, words, told) -> None:
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "digits", "--steps", 2, "--swap", "9:damping=tied"], "the run ends at step 2"),
        (["train", "digits", "--save-every", 5], "--save-every needs --save"),
        (["train", "digits", "--plot", "x.xyz"], "use .png"),
        (["reproduce", "digits", "--only", "block-diagnal"], "did you mean 'block-diagonal'"),
        (["reproduce", "digits", "--seed", 77], "no run of seed 77"),
    ],
)
def test_nothing_is_accepted_in_silence(command, words, told) -> None:
    done = command(*words)
    assert done.code == 2 and told in done.err and done.err.count("\n") == 1


# ---- reproduce -----------------------------------------------------------------------------------


def plan(steps=12) -> Planned:
    recipe = kl.Recipe.named("paper").replace(batch="constant(size=200)").text(complete=True)
    return Planned("block-diagonal", "digits", recipe, 3, steps, 4)


def made(folder: Path, steps: int) -> list[dict]:
    Maker(plan(), folder / "x.jsonl", folder / "work").make(steps)
    lines = read(folder / "x.jsonl")
    return [{k: v for k, v in x.items() if "seconds" not in k} for x in lines]


def test_a_torn_line_is_made_whole_from_the_snapshot(tmp_path) -> None:
    whole = made(tmp_path / "whole", 12)
    made(tmp_path / "torn", 8)
    path = tmp_path / "torn" / "x.jsonl"
    for cut in (b'{"type": "point", "run": "block-', b"\xff\xfe\n", b"[[[[\n", b'{"type": 3}\n'):
        path.write_bytes(path.read_bytes()[:-40] + cut)
        assert max(x.get("step", 0) for x in read(path)) < 8
        assert [x for x in made(tmp_path / "torn", 8) if x["type"] == "point"][-1]["step"] == 8
    assert made(tmp_path / "torn", 12) == whole
    path.unlink()  # the whole file may be gone
    assert made(tmp_path / "torn", 12) == whole


def test_a_snapshot_of_an_older_version_goes_on(tmp_path) -> None:
    whole = made(tmp_path / "whole", 12)
    made(tmp_path / "old", 8)
    folder = tmp_path / "old" / "work"
    run = Run.load(folder / "run.pt")
    run.notes = {}
    run.save(folder / "run.pt")
    with pytest.raises(kl.CheckpointError, match="remove the folder"):
        made(tmp_path / "old", 12)
    kept = {"step": 8, "cpu_seconds": 1.0, "recipe": plan().recipe}
    (folder / "run.json").write_text(json.dumps(kept))
    assert made(tmp_path / "old", 12) == whole


def test_two_processes_do_not_make_one_run(tmp_path) -> None:
    made(tmp_path, 4)
    with files.locked(tmp_path / "work" / ".lock"):
        with pytest.raises(kl.CheckpointError, match="another process is at work"):
            made(tmp_path, 8)
    own = tmp_path / ".x.jsonl.block-diagonal-seed-3.lock"
    with files.locked(own), pytest.raises(kl.CheckpointError, match="another process"):
        Maker(plan(), tmp_path / "x.jsonl", tmp_path / "another").make(8)
    assert made(tmp_path, 8)[-1]["step"] == 8


KILLED = """
import os, sys
from kfac_lab.core import files
from kfac_lab.cli import main, reproduce
reproduce.SAVE_EVERY, count = 0.0, [0]
def killing(name):
    real = getattr(os, name)
    def call(*arguments, **more):
        count[0] += 1
        if count[0] == int(sys.argv[1]):
            os.kill(os.getpid(), 9)
        return real(*arguments, **more)
    return call
class Os:
    def __getattr__(self, name):
        return getattr(os, name)
for name in ("open", "write", "fsync", "replace", "ftruncate"):
    setattr(Os, name, staticmethod(killing(name)))
files.os = Os()
words = ["--results", "r", "--work", "w", "--only", "nag", "--until", "8"]
sys.exit(main(["reproduce", "digits", *words]))
"""


def test_killed_at_any_call_it_goes_on(tmp_path) -> None:
    """Each life of the process ends at another call of the system, until one gets through."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    at, lives = 3, 0
    while True:
        lives += 1
        words = [sys.executable, "-c", KILLED, str(at)]
        done = warm.run(words, tmp_path, environment)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        at += 11 if lives < 3 else 10**6
    rows = [x for x in read(tmp_path / "r" / "digits.jsonl") if x["type"] == "point"]
    assert lives == 4
    assert [x["step"] for x in rows] == sorted({x["step"] for x in rows}) and rows[-1]["step"] == 8
    one = next(one for one in planned("digits") if one.label == "nag")
    run = Run("digits", kl.Recipe.from_text(one.recipe), one.seed, "cpu").advance(8)
    for row in rows:
        assert row["loss"] == pytest.approx(run.history["loss"][row["step"] - 1], rel=1e-5)
