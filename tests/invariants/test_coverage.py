"""No parameter is silently skipped."""

import pytest
import torch
from devices import here
from torch import nn

import kfac_lab as kl
from invariants.helpers import recipe_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
Y = torch.sigmoid(X[:, :4])


class Special(nn.Linear):
    """A Linear that somebody changed: its geometry is its own business."""

    def forward(self, x):
        return super().forward(x) * 2


class Odd(nn.Module):
    """Unclaimed parameters of its own beside Linears; ``unused`` never fires."""

    def __init__(self, unused=False):
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)
        self.scale = nn.Parameter(torch.ones(5))
        self.last = nn.Linear(5, 4)
        if unused:
            self.spare = nn.Linear(5, 4)

    def forward(self, x):
        return self.last(self.norm(torch.tanh(self.first(x)) * self.scale))


def run_on(network, **slots):
    problem = kl.Problem(model=network, likelihood="bernoulli", inputs=X, targets=Y, l2=1e-4)
    return kl.Run(problem, recipe_of(**slots), device=here())


def test_unclaimed_parameters_are_one_error_that_lists_all_with_the_remedy():
    with pytest.raises(kl.CoverageError) as caught:
        run_on(Odd())
    text = str(caught.value)
    assert "no layer claims 3 parameters" in text
    for part in (
        "scale (5,) of Odd",
        "norm.weight (5,) of LayerNorm",
        "norm.bias (5,) of LayerNorm",
        "fallback='diagonal'",
        "fallback='identity'",
        "requires_grad_(False)",
        "plugin",
    ):
        assert part in text, (part, text)
    assert "first" not in text  # what is claimed is no part of the complaint


@pytest.mark.parametrize("fallback", ["diagonal", "identity"])
@pytest.mark.parametrize("structure", ["block_diagonal", "block_tridiagonal"])
def test_a_fallback_serves_and_trains_them(structure, fallback):
    model = Odd()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run = run_on(
        model,
        structure=structure,
        fallback=fallback,
        batch="constant(size=24)",
        estimator="sampled(fraction=1.0)",
        quadratic_model="exact_fisher(fraction=1.0)",
    )
    start = run.evaluate("train").loss
    run.advance(30)
    assert run.evaluate("train").loss < 0.98 * start
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    rows = {row.parameter: row for row in run.coverage()}
    assert set(rows) == set(before)
    for name in ("scale", "norm.weight", "norm.bias"):
        assert rows[name].claimed_by == "fallback" and rows[name].chain == "-"
        assert rows[name].block.lower() == fallback
    assert rows["first.weight"].claimed_by not in ("fallback", "-", "")
    assert rows["first.weight"].block == "Kronecker" and rows["first.bias"].layer == "first"


def test_the_table_exists_before_the_first_step():
    run = run_on(Odd(), fallback="diagonal")
    assert run.step == 0
    for row in run.coverage():
        for part in ("parameter", "layer", "kind", "block", "claimed_by", "chain", "tangents"):
            assert getattr(row, part), (row, part)
    chains = {row.layer: row.chain for row in run.coverage()}
    assert (chains["first"], chains["last"]) == ("1.1", "1.2")
    assert {row.tangents for row in run.coverage()} == {"forward"}
    explicit = run_on(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)))
    assert {row.tangents for row in explicit.coverage()} == {"explicit"}


def test_frozen_parameters_are_listed_and_left_alone():
    model = Odd()
    for parameter in (model.scale, *model.norm.parameters()):
        parameter.requires_grad_(False)
    run = run_on(model)
    frozen = [row.parameter for row in run.coverage() if row.kind == "frozen"]
    assert sorted(frozen) == ["norm.bias", "norm.weight", "scale"]
    before = model.scale.clone()
    run.advance(3)
    assert torch.equal(model.scale, before)


def test_a_partly_frozen_layer_is_no_whole_layer():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    model[0].bias.requires_grad_(False)
    with pytest.raises(kl.CoverageError, match=r"0\.weight \(5, 6\) of Linear"):
        run_on(model)
    before = model[0].bias.detach().clone()
    run = run_on(model, fallback="diagonal").advance(3)
    assert torch.equal(model[0].bias, before)
    assert {r.parameter: r.kind for r in run.coverage()}["0.bias"] == "frozen"


def test_nothing_to_train_is_an_error():
    model = nn.Linear(6, 4).requires_grad_(False)
    with pytest.raises(kl.CoverageError, match="no trained parameters"):
        run_on(model)


def test_a_claimed_layer_that_never_fires_is_an_error_naming_it():
    with pytest.raises(kl.CoverageError, match="claimed layer spare recorded nothing"):
        run_on(Odd(unused=True), fallback="diagonal")


def test_it_is_found_at_the_first_batch_where_data_come_from_a_callable():
    model = Odd(unused=True)
    problem = kl.Problem(model=model, likelihood="bernoulli", data=lambda k, m: (X[:m], Y[:m]))
    run = kl.Run(problem, recipe_of(fallback="diagonal"), device=here())
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        with pytest.raises(kl.CoverageError, match="spare"):
            run.advance(1)
    assert run.step == 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_claims_go_by_exact_type():
    with pytest.raises(kl.CoverageError, match=r"0\.weight \(5, 6\) of Special.*0\.bias"):
        run_on(nn.Sequential(Special(6, 5), nn.Tanh(), nn.Linear(5, 4)))
    run = run_on(nn.Sequential(Special(6, 5), nn.Tanh(), nn.Linear(5, 4)), fallback="diagonal")
    rows = {row.parameter: row.claimed_by for row in run.coverage()}
    assert rows["0.weight"] == "fallback" != rows["2.weight"]
    run.advance(2)


class Tied(nn.Module):
    """Two modules that share a weight, of equal geometry or not."""

    def __init__(self, equal):
        super().__init__()
        self.first, self.middle = nn.Linear(6, 6), nn.Linear(6, 6, bias=equal)
        self.last = nn.Linear(6, 4)
        self.middle.weight = self.first.weight
        if equal:
            self.middle.bias = self.first.bias

    def forward(self, x):
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))


def test_a_parameter_used_twice_has_one_entry():
    run = run_on(Tied(equal=True)).advance(3)
    names = [row.parameter for row in run.coverage()]
    assert names == ["first.weight", "first.bias", "last.weight", "last.bias"]
    chains = {row.layer: row.chain for row in run.coverage()}
    assert chains["first"] == "-"  # fired twice: it ends the chain


def test_of_unequal_geometry_it_has_a_block_of_its_own():
    run = run_on(Tied(equal=False)).advance(3)
    rows = {row.parameter: (row.kind, row.claimed_by) for row in run.coverage()}
    assert rows["first.weight"] == rows["first.bias"] == ("Whole", "kfac-lab/core")
    assert rows["last.weight"][0] == "Linear" and len(rows) == 4


def test_baselines_list_every_parameter_too():
    problem = kl.Problem(model=Odd(), likelihood="bernoulli", inputs=X, targets=Y)
    problem.model.scale.requires_grad_(False)
    run = kl.Run(problem, "method = adam\nbatch = constant(size=16)\naverage = none", device=here())
    rows = {row.parameter: row.kind for row in run.coverage()}
    assert set(rows) == {n for n, _ in problem.model.named_parameters()}
    assert rows["scale"] == "frozen"
