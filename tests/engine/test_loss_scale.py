"""A loop whose loss is D times as steep as the likelihood says: one sentence, and what it names."""

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.errors import NumericalError


def looped(likelihood, **options):
    """MSE after 40 steps on the squared error summed over 100 outputs."""
    g = torch.Generator().manual_seed(0)
    x = torch.tanh(torch.randn(200, 6, generator=g) @ torch.randn(6, 100, generator=g))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 6), nn.Tanh(), nn.Linear(6, 100))
    sgd = torch.optim.SGD(model.parameters(), 0.3)
    pre = kl.Preconditioner(model, likelihood, optimizer=sgd, **options)
    for _ in range(40):
        sgd.zero_grad()
        ((model(x) - x) ** 2).sum(1).mean().backward()
        pre.step()
        sgd.step()
    return float(((model(x).detach() - x) ** 2).mean())


def test_a_steeper_loss_is_one_sentence_that_names_what_helps():
    with pytest.raises(NumericalError, match="reduction='sum'") as raised:
        looped(nn.MSELoss())
    assert ". " not in str(raised.value) and "kl_clip=1e-3" in str(raised.value)


@pytest.mark.parametrize(
    ("likelihood", "options"),
    [(nn.MSELoss(reduction="sum"), {}), (nn.MSELoss(), {"kl_clip": 1e-3})],
)
def test_what_it_names_helps(likelihood, options):
    assert looped(likelihood, **options) < 0.6
