"""Which layers have a block of their own, and whether their rows see every use of them."""

import pytest
import torch
from devices import here

import kfac_lab as kl

from .engine_side import laboratory, recipe, stepped
from .exhibit import Zoo
from .models import made
from .written import Derivative, pinn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def test_a_derivative_taken_inside_forward_is_refused():
    """Its gradient goes through the layers by a way that the rows do not see."""
    zoo = pinn()
    zoo = Zoo(Derivative(), zoo.inputs, zoo.targets, "gaussian", "gaussian")
    with pytest.raises(kl.CoverageError, match=r"u\.\d"):
        stepped(zoo, 64)
    engine = stepped(zoo, 64, fallback="diagonal")
    assert {row.claimed_by for row in engine.coverage()} == {"fallback"}


def test_the_nodes_of_a_graph_keep_their_places():
    """In a run on tensors too, whose batches are drawn: another order is another graph."""
    zoo = made("gcn_sparse")
    given = []
    zoo.model.register_forward_pre_hook(lambda module, args: given.append(args[0].clone()))
    problem = kl.Problem(
        model=zoo.model, likelihood="categorical", inputs=zoo.inputs, targets=zoo.targets
    )
    kl.Run(problem, recipe(zoo.batch), device=here()).advance(2)
    entire = [x for x in given if len(x) == len(zoo.inputs)]
    assert len(entire) > 4 and all(torch.equal(x, zoo.inputs) for x in entire)


def test_the_plugins_are_met():
    assert any("layers" in row for row in map(str, laboratory().plugins()))
    assert recipe(4) is not None
