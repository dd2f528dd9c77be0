"""Parameters that stand alone, and tables shared with the output: their blocks, and who is claimed.

A vector's block is the Fisher's own, in any net; that of more rows is exact where no two rows meet
in one output, and has the Fisher's trace anywhere.
"""

import pytest
import torch
from dense_fisher import gaussian_fisher
from devices import here
from layer_samples import double, network_of
from test_fisher import blocks_of, check_blocks, of_fisher
from torch import nn

import kfac_lab as kl


class Patches(nn.Module):
    """A class token before the places, positions on all of them; nothing linear behind."""

    def __init__(self, spelled="add"):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 3))
        self.position = nn.Parameter(torch.randn(1, 5, 3))
        self.gamma = nn.Parameter(torch.randn(3))
        self.mix, self.head, self.spelled = nn.Linear(3, 3), nn.Linear(15, 2), spelled

    def forward(self, x):
        """Of ``[N, 4, 3]``."""
        first = self.cls_token.expand(len(x), -1, -1)
        if self.spelled == "repeat":
            first = self.cls_token.repeat(len(x), 1, 1)
        x = torch.cat([first, x], 1) + self.position
        x = torch.tanh(x + self.gamma * self.mix(x))
        return self.head(x.flatten(1))


def test_alone_in_a_net_that_is_not_linear():
    """Token and scale: the Fisher's own blocks. Positions: its trace."""
    model, x = double(Patches()), torch.randn(6, 4, 3).double()
    F = gaussian_fisher(model, x).detach()
    found = check_blocks(model, x, only={"cls_token", "gamma"})
    assert {"cls_token", "position", "gamma", "mix", "head"} == set(found)
    block, names, layer = found["position"]
    assert (layer.d_out, layer.d_in) == (3, 5)
    expected = of_fisher(F, model, names, layer)
    torch.testing.assert_close(block.trace(), expected.trace(), rtol=1e-9, atol=0)
    assert float((block - expected).norm() / expected.norm()) > 0.05


class Sum(nn.Module):
    """Numbers plus positions, each place an output of its own."""

    def __init__(self, leading):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(*leading, 4, 3))
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        """Of ``[N, 4, 3]``."""
        return self.head(x + self.pos_embed)


@pytest.mark.parametrize("leading", [(1,), ()])
def test_positions_of_a_linear_net(leading):
    """The mean of the rows' blocks, as of an Embedding: exact in a linear net."""
    model = double(Sum(leading))
    found = check_blocks(model, torch.randn(6, 4, 3).double(), only={"pos_embed"})
    assert found["pos_embed"][1] == ("pos_embed",)


def rows_of(model, x, **slots):
    problem = kl.Problem(model=model, likelihood="gaussian", inputs=x, targets=model(x).detach())
    recipe = kl.Recipe.named("small_batch").replace(batch=f"constant(size={len(x)})", **slots)
    run = kl.Run(problem, recipe, device=here())
    return run, {row.parameter: row for row in run.coverage()}


def test_where_a_copy_for_each_case_does_not_go():
    """``repeat`` would repeat the copies too: then the rows are those of all cases, and say so."""
    x = torch.randn(6, 4, 3).double()
    _, plain = rows_of(double(Patches()), x)
    assert plain["cls_token"].kind == "Whole" and "all cases" not in plain["cls_token"].rows
    run, other = rows_of(double(Patches("repeat")), x)
    assert "all cases" in other["cls_token"].rows
    assert "all cases" not in other["position"].rows
    run.advance(3)
    assert not set(vars(run.problem.model)) & {"cls_token", "position", "gamma"}


def test_the_sum_over_cases_has_the_right_trace():
    """Over many samples, as the Fisher's dense block of the same net."""
    torch.manual_seed(1)
    model, x = double(Patches("repeat")), torch.randn(3, 4, 3).double()
    F = gaussian_fisher(model, x).detach()
    problem = kl.Problem(model=model, likelihood="gaussian", inputs=x, targets=model(x).detach())
    recipe = kl.Recipe.named("paper").replace(
        estimator="sampled(fraction=1.0, limit=0.9999)", batch="constant(size=3)",
        quadratic_model="none", momentum="fixed(lr=1e-12)", average="none",
        damping="constant(lam=1, gamma=1)",
        schedule="periodic(T1=500, T2=500, T3=500, burn_in=1)",  # the moments alone are asked for
    )  # fmt: skip
    run = kl.Run(problem, recipe, device=here()).advance(400)
    table = run.stepper.store.table(spare=False)
    (i,) = [n for n, u in enumerate(run.stepper.network.uses) if u.parameters == ("cls_token",)]
    trace = table[i]["A"].trace() * table[i]["G"].trace()
    use = run.stepper.network.uses[i]
    expected = of_fisher(F, model, use.parameters, use.layer).trace()
    assert 0.85 < float(trace / expected) < 1.15  # of 400 samples: 5 standard errors


def test_who_is_claimed():
    """By shape, and matrices by name."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.shift = nn.Parameter(torch.ones(1, 3, 1, 1))
            self.query_tokens = nn.Parameter(torch.ones(4, 3))
            self.inner = nn.Linear(3, 3)

    uses = network_of(Odd()).uses
    kinds = {use.parameters[0]: (type(use.layer).__name__, use.layer.d_out) for use in uses}
    assert kinds["scale"] == ("Whole", 1) and kinds["shift"] == ("Whole", 3)
    assert kinds["query_tokens"] == ("Whole", 3) and kinds["inner.weight"] == ("Linear", 3)
    model = Odd()
    model.kernel = nn.Parameter(torch.ones(4, 3))
    with pytest.raises(kl.CoverageError, match=r"claims 4 parameters: scale .*kernel \(4, 3\)"):
        network_of(model)


# --- tied -----------------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    """Token vectors that serve as the output's weights too."""

    def __init__(self, bias=False):
        super().__init__()
        self.table, self.mix = nn.Embedding(5, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=bias)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        """Logits for each position."""
        return self.head(torch.tanh(self.mix(self.table(tokens))))


@pytest.mark.parametrize("bias", [False, True])
def test_a_table_tied_with_the_output_trains(bias):
    """One block for both uses, without a fallback; the gradient is the sum over both."""
    model, tokens = LanguageModel(bias), torch.randint(0, 5, (32, 3))
    problem = kl.Problem(model=model, likelihood="categorical", inputs=tokens, targets=tokens)
    recipe = kl.Recipe.named("robust").replace(batch="constant(size=32)")
    run = kl.Run(problem, recipe, device=here())
    rows = {row.parameter: row.kind for row in run.coverage()}
    expected = {"table.weight": "Whole", "mix.weight": "Linear", "mix.bias": "Linear"}
    assert rows == (expected | {"head.bias": "Whole"} if bias else expected)
    run.advance(20)
    assert run.history["loss"][-1] < 0.5 * run.history["loss"][0]


def test_the_block_of_a_tied_table():
    """Its trace is the Fisher's where the two uses do not meet, over random signs of the cases."""

    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x):
            token, state = x[:, 0].long(), x[:, 1:]
            return torch.cat([self.table(token), self.head(state)], 1)

    torch.manual_seed(2)
    x = torch.cat([torch.randint(0, 5, (1, 1)).double(), torch.randn(1, 4).double()], 1)
    model = double(Apart())
    F = gaussian_fisher(model, x).detach()
    ((block, names, layer),) = blocks_of(model, x).values()
    assert (layer.d_out, layer.d_in) == (4, 5) and names == ("table.weight",)
    expected = of_fisher(F, model, names, layer)
    torch.testing.assert_close(block.trace(), expected.trace(), rtol=1e-9, atol=0)
