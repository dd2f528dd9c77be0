"""low_rank=True on a layer with shared positions: no case's gradient is an outer product there."""

import pytest
import torch
from devices import here
from torch import nn

import kfac_lab as kl


def step_of(low_rank):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 2)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, 30, generator=generator, dtype=torch.float64)  # 2 positions
    y = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
    recipe = kl.Recipe(
        structure=f"block_diagonal(low_rank={low_rank})", batch="constant(size=3)",
        estimator="exact(fraction=1.0)", damping="constant(lam=0.1)",
    )  # fmt: skip
    problem = kl.Problem(model=model, likelihood="gaussian", inputs=x, targets=y)
    run = kl.Run(problem, recipe, seed=0, device=here())
    run.advance(1)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_step_is_the_same():
    torch.testing.assert_close(step_of(True), step_of(False), rtol=1e-10, atol=1e-12)
