"""The claim that an error offers: it runs as printed, and the model trains."""

import textwrap

import pytest
import torch
from devices import here
from torch import nn

import kfac_lab as kl
from kfac_lab.hooks.manager import Lab


class Mixed(nn.Module):
    """Nobody's: a product of two matrices of its own."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return torch.tanh(x @ self.left) @ self.right


def test_the_snippet_of_a_coverage_error(monkeypatch):
    lab = Lab()
    lab.load()
    monkeypatch.setattr(kl, "lab", lab)
    x, y = torch.randn(32, 6), torch.randint(0, 4, (32,))
    model = nn.Sequential(Mixed(), nn.Linear(4, 4))
    problem = kl.Problem(model=model, likelihood="categorical", inputs=x, targets=y)
    recipe = kl.Recipe.named("robust", lab=lab).replace(batch="constant(size=32)")
    with pytest.raises(kl.CoverageError, match=r"2 parameters: 0\.left") as caught:
        kl.Run(problem, recipe, device=here())
    code = str(caught.value).partition("claim them yourself:\n")[2]
    assert "['Mixed']" in code
    exec(textwrap.dedent(code), {})
    run = kl.Run(problem, recipe, device=here())
    rows = {row.parameter: (row.kind, row.claimed_by) for row in run.coverage()}
    assert rows["0.left"] == rows["0.right"] == ("Whole", "mine/mine")
    run.advance(20)
    assert run.history["loss"][-1] < 0.6 * run.history["loss"][0]
