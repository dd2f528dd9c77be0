"""Random sequences of swaps: nothing breaks, nothing is lost, all of it replays."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from devices import here

import kfac_lab as kl
from invariants.helpers import problem_of, run_of, same
from invariants.sequences import TEXTS, Sequence, image, play, sequence, start, through

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SEQUENCES, SOAK = 80, 2000
TESTS = Path(__file__).resolve().parents[1]


def met(seed: int) -> set[tuple[str, str]]:
    """Slot and text of every part that a sequence goes through."""
    swaps = [parts for many in sequence(seed).swaps.values() for parts in many]
    return {(slot, str(value)) for parts in swaps for slot, value in parts.items()}


def chosen() -> list[int]:
    """Of so many sequences those that bring a part which no two before them have met."""
    times: Counter[tuple[str, str]] = Counter()
    found = []
    for seed in range(SEQUENCES):
        if any(times[part] < 2 for part in met(seed)):
            found.append(seed)
            times.update(met(seed))
    return found


SEEDS = chosen()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_sequence_of_swaps(seed: int) -> None:
    through(sequence(seed))


@pytest.mark.soak
@pytest.mark.parametrize("hundred", range(SOAK // 100))
def test_many_more_of_them(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * (hundred + 1)):
        try:
            through(sequence(seed))
        except BaseException:
            print(f"sequence {seed}: {sequence(seed)}")
            raise


def test_the_sequences_go_through_every_slot_and_every_part() -> None:
    found = {part for seed in SEEDS for part in met(seed)}
    assert found >= {(slot, str(text)) for slot, texts in TEXTS.items() for text in texts}
    assert {("fallback", "identity"), ("fallback", "diagonal")} <= found
    assert {slot for slot, _ in found} == {*kl.Recipe.named("paper")} - {"method"} | {"fallback"}


# --- saved in the middle ------------------------------------------------------------------------


def middle(what: Sequence) -> int:
    """A step with swaps before it, where there is one."""
    return max((k for k in what.swaps if k < what.steps), default=what.steps // 2)


@pytest.mark.parametrize("seed", range(0, SEQUENCES, 8))
def test_a_run_saved_after_swaps_goes_on_bit_for_bit(seed: int, tmp_path: Path) -> None:
    what = sequence(seed)
    run = start(what)
    play(run, what._replace(steps=middle(what)))
    path = run.save(tmp_path / "run.pt")
    play(run, what, done=True)
    other = kl.Run.load(path, problem=problem_of(what.kind), device=here())
    play(other, what, done=True)
    same(image(other), image(run))


@pytest.mark.parametrize("seed", [3, 11])
def test_also_in_a_new_process(seed: int, tmp_path: Path) -> None:
    what = sequence(seed)
    run = start(what)
    play(run, what._replace(steps=middle(what)))
    path = run.save(tmp_path / "run.pt")
    play(run, what, done=True)
    code = f"from invariants.test_random_swaps import go_on; go_on({seed}, {str(path)!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    done = warm.run([sys.executable, "-W", "ignore", "-c", code], env=environment)
    assert done.returncode == 0, done.stderr
    there = torch.load(path.with_suffix(".end"), weights_only=True)
    same(there, plain(image(run)))


def go_on(seed: int, path: str) -> None:
    """Run by the new process: loads, plays the rest, and leaves what came of it."""
    torch.set_num_threads(1)
    what = sequence(seed)
    run = kl.Run.load(path, problem=problem_of(what.kind), device=here())
    play(run, what, done=True)
    torch.save(plain(image(run)), Path(path).with_suffix(".end"))


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """Without what only this process knows how to read back."""
    return {"stepper": found["stepper"], "model": found["model"], "recipe": found["recipe"]}


def test_the_tangents_path_survives_going_back() -> None:
    """The path is found where the model asks for tangents, and conjugate gradients use it after."""
    run = run_of("generic").advance(2)
    run.swap(quadratic_model="approximate_fisher", momentum="conjugate_gradient(steps=3)").advance(
        2
    )
    before = run.stepper.passes.tangent_path, image(run)
    run.rewind(3).advance(1)
    assert run.stepper.passes.tangent_path == before[0]
    same(image(run), before[1])
