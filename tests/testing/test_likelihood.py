"""The laws of likelihoods: the built-in ones obey, on given outputs and targets too."""

import pytest
import torch
from torch import nn

from kfac_lab.core.likelihood import (
    Bernoulli,
    Categorical,
    Criterion,
    Gaussian,
    HeteroscedasticGaussian,
    Joint,
    Poisson,
    resolve,
)
from kfac_lab.core.likelihood.protocol import is_residual
from kfac_lab.testing import LawError, check, dense, report

BUILT_IN = [Gaussian(), Gaussian("full"), Bernoulli(), Categorical()]


@pytest.mark.parametrize("likelihood", BUILT_IN, ids=repr)
def test_built_in(likelihood):
    found = check(likelihood)
    assert found.slot == "likelihood"
    exempt = {r.law for r in found.results if r.status == "exempt"}
    by_weights = {"fisher_of_known_targets", "chunks_of_a_batch"}
    assert exempt == (set() if isinstance(likelihood, Categorical) else by_weights)


def test_on_given_outputs_and_targets():
    z, y = torch.randn(6, 5), torch.randint(5, (6,))
    assert check(Categorical(), outputs=z, targets=y).passed
    assert check(Gaussian(), outputs=torch.randn(3, 2, 2), targets=torch.randn(3, 2, 2)).passed


def test_a_scale_that_is_wrong_in_one_place():
    class Half(Bernoulli):
        def sampled_gradient(self, outputs, uniforms):
            return super().sampled_gradient(outputs, uniforms) / 2

    with pytest.raises(LawError, match="sample_second_moment"):
        check(Half())


def test_an_error_that_is_not_the_gradients():
    class Twice(Bernoulli):
        gradient = Bernoulli.gradient

        def error(self, outputs, targets):
            return (torch.sigmoid(outputs) - targets).square().flatten(1).sum(1)

        def error_of(self, gradient):
            return 2 * gradient.square().flatten(1).sum(1)

    with pytest.raises(LawError, match="gradient_of_loss"):
        check(Twice())


def test_a_subclass_with_an_error_of_its_own_is_asked_for_it():
    class Halves(Bernoulli):
        def error(self, outputs, targets):
            return super().error(outputs, targets) / 2

    z, y = torch.randn(5, 3), torch.rand(5, 3)
    assert is_residual(Bernoulli()) and not is_residual(Halves())
    gradient, error = Criterion(Halves(), y, 5).gradient_and_error(z, y)
    assert torch.equal(error, (torch.sigmoid(z) - y).square().sum(1) / 2)
    assert torch.equal(gradient, torch.sigmoid(z) - y)


def test_another_density():
    class Loose(Gaussian):
        def loss(self, outputs, targets):
            return 2 * super().loss(outputs, targets)

        def gradient(self, outputs, targets):
            return 2 * super().gradient(outputs, targets)

    broken = report(Loose()).broken
    assert broken == ("loss_by_density", "fisher_is_hessian")


# --- the oracle itself ----------------------------------------------------------------------------


def test_output_fisher_against_closed_forms():
    z = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64)
    p, s = torch.softmax(z, 0), torch.sigmoid(z)
    wanted = {
        Categorical(): torch.diag(p) - torch.outer(p, p),
        Bernoulli(): torch.diag(s * (1 - s)),
        Gaussian(): torch.eye(3).double(),
        Gaussian("full"): 2 * torch.eye(3).double(),
    }
    for likelihood, fisher in wanted.items():
        torch.testing.assert_close(dense.output_fisher(likelihood, z), fisher)


def test_matrix_of_a_map():
    a, g = torch.randn(4, 4).double(), torch.randn(3, 3).double()
    found = dense.of_map(lambda v: g @ v @ a.t(), (3, 4), torch.float64)
    torch.testing.assert_close(found, torch.kron(a, g))
    v = torch.randn(3, 4).double()
    torch.testing.assert_close(dense.matrix(dense.column(v), (3, 4)), v)


# --- more than the three -------------------------------------------------------------------------


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


POSITIVE = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) + 0.3
SCORES = normal(2, 5, 3)
SMOOTH = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1)
MASKED = torch.tensor([0, 1, 2, 0, -100])
HEADS = {"outputs": normal(11, 5, 4), "targets": {"a": MASKED.clamp(0), "b": normal(12, 5, 1)}}
MORE = [
    (Poisson(), {}),
    (Poisson(log_rate=False), {"outputs": POSITIVE, "targets": torch.ones(4, 4)}),
    (Gaussian(0.3), {}),
    (HeteroscedasticGaussian(), {}),
    (HeteroscedasticGaussian(False), {"outputs": POSITIVE, "targets": normal(13, 4, 2)}),
    (resolve(nn.MSELoss()), {}),
    (resolve(nn.MSELoss(reduction="sum")), {}),
    (resolve(nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))), {}),
    (resolve(SMOOTH), {"outputs": SCORES, "targets": MASKED}),
    (resolve(nn.CrossEntropyLoss()), {}),
    (
        resolve(nn.CrossEntropyLoss(reduction="sum")),
        {"outputs": normal(14, 3, 4, 2), "targets": torch.softmax(normal(30, 3, 4, 2), 1)},
    ),
    (resolve(nn.NLLLoss()), {"outputs": torch.log_softmax(SCORES, 1), "targets": MASKED.abs() % 3}),
    (resolve(nn.PoissonNLLLoss()), {}),
    (resolve(nn.GaussianNLLLoss()), {"outputs": POSITIVE, "targets": normal(15, 4, 2)}),
    (Joint(a="categorical", b=Gaussian(scale=0.5)).fitted(a=(3,), b=(1,)), HEADS),
    (
        Joint(a=SMOOTH, b=nn.MSELoss(), c="poisson").fitted(a=(3,), b=(), c=(2,)),
        {
            "outputs": normal(16, 5, 6),
            "targets": (MASKED, normal(17, 5), torch.ones(5, 2)),
        },
    ),
]


@pytest.mark.parametrize("likelihood,given", MORE, ids=[repr(each)[:40] for each, _ in MORE])
def test_more_of_the_box(likelihood, given):
    found = report(likelihood, "likelihood", **given)
    assert {r.law: r.why for r in found.results if r.status not in ("obeyed", "exempt")} == {}
    assert sum(r.status == "exempt" for r in found.results) <= 5
