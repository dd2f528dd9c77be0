"""Trees: every kind of container is walked, changed and gated, down to the last tensor."""

import collections
import dataclasses
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from kfac_lab.core import cases, trees
from kfac_lab.core.vector import Vec


@dataclasses.dataclass(frozen=True)
class Data:
    x: Any
    note: str = "kept"


class Pair(NamedTuple):
    x: Any
    y: Any = 1.0


def tensor(value: float) -> torch.Tensor:
    return torch.full((2,), value)


#: one tensor in a container of each kind
KINDS = {
    "tensor": lambda t: t,
    "vector": lambda t: Vec([t]),
    "dict": lambda t: {"a": t},
    "list": lambda t: [t, "text"],
    "tuple": lambda t: (t,),
    "named tuple": lambda t: Pair(t),
    "dataclass": lambda t: Data(t),
    "dataclass in a dict in a dataclass": lambda t: Data({"a": Data(t)}),
    "mapping": lambda t: MappingProxyType({"a": t}),
    "dict of a class of its own": lambda t: collections.OrderedDict(a=t),
    "dict with a factory": lambda t: collections.defaultdict(list, {"a": t}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_where_keeps_the_old_tensor_of_a_step_that_is_not_ok(kind):
    made = KINDS[kind]
    for ok, wanted in ((True, 2.0), (False, 1.0)):
        found = trees.where(torch.tensor(ok), made(tensor(2.0)), made(tensor(1.0)))
        ((_, got),) = trees.tensors(found)
        assert torch.equal(got, tensor(wanted))
        assert isinstance(found, dict) or type(found) is type(made(tensor(0.0)))


def test_where_takes_what_has_no_like():
    not_ok = torch.tensor(False)
    for new, old in (
        (Data(tensor(2.0)), Pair(tensor(1.0))),
        (Data(tensor(2.0)), None),
        (Data(tensor(2.0)), Data(torch.ones(3))),
        ({"a": tensor(2.0)}, {"b": tensor(1.0)}),
        ([tensor(2.0)], []),
    ):
        ((_, got),) = trees.tensors(trees.where(not_ok, new, old))
        assert torch.equal(got, tensor(2.0))


@pytest.mark.parametrize("kind", KINDS)
def test_mapped_changes_every_tensor_and_nothing_else(kind):
    given = KINDS[kind](tensor(1.0))
    found = trees.mapped(given, lambda t: t + 1)
    assert [leaf for _, leaf in trees.leaves(found) if not isinstance(leaf, torch.Tensor)] == [
        leaf for _, leaf in trees.leaves(given) if not isinstance(leaf, torch.Tensor)
    ]
    ((_, got),), ((_, before),) = trees.tensors(found), trees.tensors(given)
    assert torch.equal(got, tensor(2.0)) and torch.equal(before, tensor(1.0))
    if kind != "mapping":
        assert type(found) is type(given)
    if kind == "dict with a factory":
        assert found["new"] == []


def test_a_dict_s_own_fields_go_with_it():
    class Named(dict):
        pass

    given = Named(a=tensor(1.0))
    given.name = "mine"
    assert trees.mapped(given, torch.clone).name == "mine"


def test_the_leaves_of_a_module_are_its_state():
    paths = [path for path, _ in trees.leaves({"net": nn.BatchNorm1d(2)})]
    assert paths == [
        f"['net']['{name}']"
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]


def test_cases_are_cut_in_the_containers_they_came_in():
    given = cases.Cases({"a": torch.arange(4), "b": [Pair(torch.arange(8).view(4, 2), "text")]})
    cut = given[1:3]
    assert len(cut) == 2 and isinstance(cut.tree["b"][0], Pair) and cut.tree["b"][0].y == "text"
    assert torch.equal(cut.tree["b"][0].x, torch.tensor([[2, 3], [4, 5]]))
    assert [t.shape for t in cut.tensors] == [(2,), (2, 2)]
