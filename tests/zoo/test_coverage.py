"""Which layers have a block of their own, and whether their rows see every use of them."""

import pytest
import torch
from devices import here

import kfac_lab as kl

from .engine_side import laboratory, recipe, stepped
from .exhibit import Zoo
from .models import ZOO, made
from .written import Derivative, pinn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("name", ZOO)
def test_no_parameter_needs_a_fallback(name):
    zoo = made(name)
    engine = stepped(zoo, zoo.batch if zoo.whole else zoo.cases)
    rows = {row.parameter: row for row in engine.coverage()}
    assert set(rows) == {n for n, _ in zoo.model.named_parameters()}
    assert not [n for n, row in rows.items() if row.claimed_by == "fallback"]


# --- the certificate ------------------------------------------------------------------------------


def by_rows(engine, model, inputs, weights):
    """Σ_rows g āᵀ of a pass for ⟨weights, outputs⟩, as tensors by name."""
    from kfac_lab.core.record import Recorder

    recorder = Recorder(engine.network)
    with recorder.recording():
        outputs = model(inputs)
    a = recorder.rows_in()
    outputs.backward(weights)
    g, found = recorder.rows_out(), {}
    for use, left, right in zip(engine.network.uses, a, g, strict=True):
        if use.modules and left is not None:
            left = left.to_dense() if left.is_sparse else left
            total = torch.einsum("nso,nsi->oi", right, left)
            found |= dict(zip(use.parameters, use.layer.unpack(total), strict=True))
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", ZOO)
def test_the_rows_make_the_gradient(name):
    """Σ g āᵀ over the recorded rows is autograd's gradient, to 1e-5 of it (here in float64)."""
    zoo = made(name)
    inputs = zoo.inputs[: zoo.batch if zoo.whole else 5]
    engine = stepped(zoo, zoo.batch if zoo.whole else 5)
    zoo.flatten()
    outputs = zoo.model(inputs)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).double()
    named = dict(zoo.model.named_parameters())
    truth = torch.autograd.grad(outputs, list(named.values()), weights, allow_unused=True)
    truth = dict(zip(named, truth, strict=True))
    found = by_rows(engine, zoo.model, inputs, weights)
    assert found
    for parameter, ours in found.items():
        expected = truth[parameter]
        difference = float((ours - expected).norm())
        assert difference <= 1e-5 * float(expected.norm()) + 1e-12, parameter


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
