"""The laws of likelihoods: the built-in ones obey, on given outputs and targets too."""

import pytest
import torch

from kfac_lab.core.likelihood import Bernoulli, Categorical, Gaussian
from kfac_lab.testing import LawError, check, dense, report

BUILT_IN = [Gaussian(), Gaussian("full"), Bernoulli(), Categorical()]


@pytest.mark.parametrize("likelihood", BUILT_IN, ids=repr)
def test_built_in(likelihood):
    found = check(likelihood)
    assert found.slot == "likelihood"
    assert {r.status for r in found.results} == {"obeyed"}


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
