"""J v through every claimed module, in forward mode, against differences."""

import pytest
import torch
from layer_samples import Around, attention, attentions, double, network_of, norms
from torch import nn

from kfac_lab.core.likelihood import Gaussian
from kfac_lab.core.passes import Passes
from kfac_lab.core.state import Place


def check_tangents(model, x):
    """J v of two directions, on the rows of one step, against central differences."""
    network = network_of(model)
    place = Place(seed=0)
    passes = Passes(network, Gaussian(), 0.0, lambda: place)
    targets = torch.zeros_like(model(x))
    place = place._replace(bound=passes.probe(x, targets, tangents=True))
    assert passes.tangent_path == "forward"
    quiet = [False] * len(network.uses)
    seen, _ = passes.evaluate(x, targets, None, 1, len(x), None, quiet)
    directions = [[torch.randn_like(t) for t in seen.theta] for _ in range(2)]
    ((outputs, products),) = seen.tangents([network.pack(d) for d in directions])
    function = passes.function
    plain = function(None, function.buffers(), x).detach()
    torch.testing.assert_close(outputs, plain)
    step = 1e-6
    for direction, product in zip(directions, products, strict=True):
        sides = []
        for sign in (step, -step):
            moved = [t + sign * d for t, d in zip(seen.theta, direction, strict=True)]
            sides.append(function(moved, function.buffers(), x))
        difference = (sides[0] - sides[1]).detach() / (2 * step)
        assert float(difference.norm()) > 0.1
        torch.testing.assert_close(product, difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", norms())
def test_normalisation(name, training):
    """Behind a Linear whose own tangent goes through it; BatchNorm couples cases in training."""
    module, shape = norms()[name]
    before = nn.Linear(shape[-1], shape[-1])
    model = double(nn.Sequential(before, module)).train(training)
    check_tangents(model, torch.randn(shape).double())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [n for n in attentions() if "sequence first" not in n])
def test_attention(name, training):
    """In eval mode without gradients torch would take a path that knows no tangents."""
    arguments, call = attentions()[name]
    model = double(nn.Sequential(nn.Linear(4, 4), Around(attention(**arguments), call)))
    check_tangents(model.train(training), torch.randn(5, 3, 4).double())


def test_embedding():
    """Tangents of a table."""
    model = double(nn.Sequential(nn.Embedding(7, 3, padding_idx=2), nn.Tanh(), nn.Linear(3, 2)))
    check_tangents(model, torch.randint(0, 7, (6, 4)))
