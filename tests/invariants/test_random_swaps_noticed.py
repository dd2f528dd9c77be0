"""Random sequences of swaps: what would go wrong there is noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kfac_lab as kl
from invariants.helpers import amend
from invariants.sequences import TEXTS, sequence, through
from kfac_lab.core.state import DampingStrength
from kfac_lab.engine import Engine
from kfac_lab.paper import damping
from kfac_lab.run import rewinding

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Counting(damping.LevenbergMarquardt):
    """λ falls by the number of adaptations, which its state counts: in place, or as it must be."""

    in_place = True

    def init(self, problem: Any) -> Any:
        strength, _ = super().init(problem)
        return strength, {"count": torch.ones((), dtype=torch.float64)}

    def adapt(self, strength: DampingStrength, part_state: Any, record: Any) -> Any:
        count = part_state["count"].add_(1) if self.in_place else part_state["count"] + 1
        return strength._replace(lam=strength.lam / count), {"count": count}


class Careful(Counting):
    """The same without the mistake."""

    in_place = False


#: sequences that go back over a step of a part that counts, and over a swap
BACK = (14, 16, 3, 11)


def swept(*first: int) -> None:
    """Through 25 sequences, those that are known to tell before the others."""
    for seed in dict.fromkeys((*first, *range(25))):
        through(sequence(seed))


@pytest.mark.parametrize("rule", [Counting, Careful])
def test_a_part_state_written_in_place_is_noticed(
    rule: type[Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    kl.lab.load()
    kl.lab.register("damping", "counting", rule)
    monkeypatch.setitem(TEXTS, "damping", ["counting"])
    try:
        if rule is Careful:
            for seed in BACK:
                through(sequence(seed))
        else:
            with pytest.raises(AssertionError, match="they differ"):
                swept(*BACK)
    finally:
        kl.lab.registry.discard("notebook", "")


def _forgets_previous(engine: Engine, *args: Any) -> None:
    SWAP(engine, *args)
    amend(engine, previous=None)


def _forgets_moments(engine: Engine, *args: Any) -> None:
    SWAP(engine, *args)
    if engine.store is not None:
        for value in engine.store.current.values():
            value.mul_(0.5)


def _forgets_lambda(engine: Engine, *args: Any) -> None:
    SWAP(engine, *args)
    amend(engine, strength=engine._strength(engine.parts["damping"].init(engine.problem)[0]))


def _restarts(engine: Engine, *args: Any) -> None:
    SWAP(engine, *args)
    amend(engine, step=0)


SWAP = Engine.swap


@pytest.mark.parametrize("wrong", [_forgets_previous, _forgets_moments, _forgets_lambda, _restarts])
def test_a_swap_that_loses_something_is_noticed(
    wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "swap", wrong)
    with pytest.raises(AssertionError):
        swept()


def test_a_replay_without_its_swaps_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(stepper: Any, recipe: Any, mark: Any) -> Any:
        return recipe

    monkeypatch.setattr(rewinding, "replayed_swap", without)
    with pytest.raises(AssertionError):
        swept(*BACK)


def test_a_state_that_lacks_a_memo_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    state = Engine.state

    def lacking(engine: Engine, **options: Any) -> Any:
        now = engine.state_
        amend(engine, part_states={**now.part_states, "damping": {}}, previous=None)
        try:
            return state(engine, **options)
        finally:
            amend(engine, **vars(now))

    monkeypatch.setattr(Engine, "state", lacking)
    with pytest.raises(AssertionError):
        swept()
