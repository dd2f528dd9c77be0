"""What a baseline's step records, whatever the chunks and layouts; what it leaves alone."""

import pytest
import torch
from torch import nn

import kfac_lab as kl
from baselines.helpers import METHOD_IDS, METHODS, attach, equal, every_method, theta, tiny
from kfac_lab.baselines import Adam, Muon, Soap


@every_method
def test_the_record_is_h_before_the_move(method) -> None:
    problem = tiny(torch.float64)
    stepper = attach(method, problem)
    for k in range(1, 4):
        x, y, _ = problem.draw(k, 16, 0)
        z = problem.model(x).detach()
        h = nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum") / 16
        h += 0.5 * problem.l2 * sum(t.square().sum() for t in theta(problem))
        record = stepper.step()
        assert float(record.loss) == pytest.approx(float(h), rel=1e-12)
        error = (torch.sigmoid(z) - y).square().sum() / 16
        assert float(record.error) == pytest.approx(float(error), rel=1e-12)
        assert (record.step, record.batch, record.eta) == (k, 16, problem.l2)
        assert record.lam != record.lam and record.rho != record.rho
        assert record.seconds == stepper.seconds > 0
        assert stepper.step_count == k and stepper.record is record


def test_chunks_change_nothing_but_rounding() -> None:
    whole, parts = tiny(torch.float64), tiny(torch.float64)
    a, b = attach(Adam(), whole, size=40), attach(Adam(), parts, size=40, chunk=7)
    for _ in range(3):
        assert float(a.step().loss) == pytest.approx(float(b.step().loss), rel=1e-12)
    torch.testing.assert_close(theta(whole), theta(parts), rtol=1e-9, atol=1e-12)


class Shared(nn.Module):
    """Two parameters whose gradients are one tensor, and one that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(4, 4))
        self.b = nn.Parameter(torch.ones(4, 4))
        self.idle = nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        return x @ (self.a + self.b)


@every_method
def test_gradients_that_are_one_tensor_stay_apart(method) -> None:
    x = torch.eye(4)
    problem = kl.Problem(model=Shared(), likelihood="gaussian", inputs=x, targets=x, l2=0.5)
    _, _, found, _ = attach(method, problem, size=4, chunk=2)._evaluate(x, x, 1)
    g = (problem.model.b.detach() - x) / 4
    if isinstance(method, (Muon, Soap)):
        expected = [g, g + 0.5, torch.full((4, 4), 0.5)]
    else:
        expected = [g, g, torch.zeros(4, 4)]  # PyTorch's kernel adds the ℓ2 term
    torch.testing.assert_close(found, expected)


class Strided(nn.Module):
    """A parameter that is a view with gaps in memory, and gradients laid out unlike theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.gaps = nn.Parameter(torch.arange(32.0).view(4, 8)[:, ::2])
        self.w = nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        return (self.w.t() * x.t().contiguous() + self.gaps.t()).t()


@pytest.mark.parametrize("method", METHODS[:2], ids=METHOD_IDS[:2])
def test_memory_layout_plays_no_part(method) -> None:
    x = torch.rand(4, 4)
    states = []
    for model in (Strided(), Strided()):
        if states:
            model.gaps = nn.Parameter(model.gaps.detach().contiguous())
        problem = kl.Problem(model=model, likelihood="gaussian", inputs=x, targets=x)
        stepper = attach(method, problem, size=4)
        for _ in range(3):
            stepper.step()
        states.append(theta(problem))
    torch.testing.assert_close(states[0], states[1])


@every_method
def test_the_users_gradients_and_frozen_parameters_are_left_alone(method) -> None:
    problem = tiny()
    frozen = problem.model[0].weight.requires_grad_(False)
    before = frozen.clone()
    own = problem.model[2].weight.grad = torch.full((7, 5), 7.0)
    stepper = attach(method, problem)
    stepper.step()
    assert torch.equal(frozen, before) and "0.weight" not in stepper.names
    assert problem.model[2].weight.grad is own and torch.equal(own, torch.full((7, 5), 7.0))
    assert problem.model[4].weight.grad is None
    kinds = {row.parameter: (row.kind, row.block) for row in stepper.coverage()}
    assert len(kinds) == 6 and kinds["0.weight"] == ("frozen", "-")
    if isinstance(method, Muon):
        movers = [kinds[n][1] for n in ("2.weight", "2.bias", "4.weight")]
        assert movers == ["adam" if method.hidden_only else "muon", "adam"] + (
            ["adam"] if method.hidden_only else ["muon"]
        )


def test_a_model_given_other_memory_is_still_the_one_trained() -> None:
    problem = tiny()
    stepper = attach(Adam(), problem)
    stepper.step()
    for p in problem.model.parameters():
        p.data = p.data.clone()
    before = theta(problem)
    stepper.step()
    assert not equal(before, theta(problem))
