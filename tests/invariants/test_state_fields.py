"""Every field of the State has a fate: kept by a void step, by a rebind, by an older file.

A new field fails here until somebody has said what becomes of it.
"""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

import kfac_lab as kl
from invariants.helpers import differences
from kfac_lab.core import checkpoint, trees
from kfac_lab.core.state import GATED, HOST, State

#: what ``opt.rebind()`` of the same model does with each field of a state that has seen steps
REBOUND = {
    "kept": {"step", "seconds", "strength", "updates", "block_states"},
    "anew": {
        "previous", "moments", "build", "ages", "cross_weight", "reference", "factored", "inverse",
        "level", "spread", "curved_spread", "before", "former", "kept_inverse", "forced", "pending",
        "bound",
    },
    "by part": {"part_states", "block_ages"},
}  # fmt: skip
NAMES = {f.name for f in fields(State)}
X = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def optimizer() -> kl.KFAC:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    opt = kl.KFAC(model, likelihood="categorical", seed=0)
    for k in range(4):
        opt.step(X[24 * k : 24 * k + 24], Y[24 * k : 24 * k + 24])
    return opt


def test_each_field_is_in_one_class() -> None:
    assert set().union(*REBOUND.values()) == NAMES
    assert sum(map(len, REBOUND.values())) == len(NAMES)
    assert not HOST & set(GATED)
    # A step that is skipped keeps all it has computed but the curvature, whose gates are their own.
    free = NAMES - HOST - set(GATED)
    assert free == {"factored", "inverse", "kept_inverse", "forced"}


def test_a_rebind_does_what_the_table_says() -> None:
    opt = optimizer()
    before = opt._engine.state_
    fresh = optimizer_at_rest()._engine.state_
    opt.rebind()
    after = opt._engine.state_
    for name in REBOUND["kept"]:
        assert not list(differences(_plain(after, name), _plain(before, name))), name
    for name in REBOUND["anew"]:
        assert not list(differences(_plain(after, name), _plain(fresh, name))), name
    assert after.part_states["schedule"] == before.part_states["schedule"]
    assert float(before.part_states["average"]["count"]) > 0
    assert float(after.part_states["average"]["count"]) == 0  # it begins at the θ of now


def optimizer_at_rest() -> kl.KFAC:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return kl.KFAC(model, likelihood="categorical", seed=0)


def _plain(state: State, name: str) -> object:
    return trees.encoded(getattr(state, name))


@pytest.mark.parametrize("lost", ["level", "cross_weight", "updates", "spread", "curved_spread"])
def test_a_file_without_a_field_gives_a_state_that_a_flag_can_gate(lost: str) -> None:
    saved = checkpoint.saved(optimizer()._engine)
    content = trees.decoded(saved["tree"])
    own = {f.name: getattr(content["state"], f.name) for f in fields(State) if f.name != lost}
    content["state"] = State(**own)  # as a file gives it that has no such field
    other = optimizer_at_rest()
    checkpoint.restore(other._engine, {**saved, "tree": trees.encoded(content)})
    state = other._engine.state_
    for name in GATED:
        assert not isinstance(getattr(state, name), (int, float)), name
    assert isinstance(state.level, Tensor) and isinstance(state.cross_weight, Tensor)
    other.step(X[:24], Y[:24])


def test_a_memory_that_a_file_lacks_begins_and_what_it_has_goes_on() -> None:
    """Saved before ``layered`` kept what ``confirmed`` keeps."""
    made = [kl.KFAC(nn.Linear(6, 3), "categorical", recipe="quick", seed=0) for _ in range(2)]
    for k in range(3):
        made[0].step(X[24 * k : 24 * k + 24], Y[24 * k : 24 * k + 24])
    saved = checkpoint.saved(made[0]._engine)
    content = trees.decoded(saved["tree"])
    content["state"].part_states["momentum"] = {"made": 3}
    checkpoint.restore(made[1]._engine, {**saved, "tree": trees.encoded(content)})
    memory = made[1]._engine.state_.part_states["momentum"]
    assert memory["made"] == 3 and float(memory["share"]) == 1.0
    assert memory.keys() == made[0]._engine.state_.part_states["momentum"].keys()
    made[1].step(X[:24], Y[:24])
