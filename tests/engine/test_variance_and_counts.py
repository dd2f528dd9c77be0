"""Gaussians of given variance, counts, positions whose number varies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kfac_lab as kl
from engine.spelled_inputs import N, tensor
from kfac_lab.core.likelihood import resolve


def test_positions_may_vary_from_batch_to_batch() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.tag, self.word = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.tag(x), self.word(x.mean(1))

    opt = kl.KFAC(Tagger(), kl.Joint(tag="categorical", word="bernoulli"))
    for length in (3, 5, 3):
        x = torch.randn(6, length, 4)
        record = opt.step(x, (torch.zeros(6, length).long(), torch.full((6, 2), 0.5)))
        assert float(record.loss) > 0


class Normal(nn.Module):
    def __init__(self, pair: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.pair = nn.Linear(1, 16), nn.Linear(16, 2), pair
        self.double()

    def forward(self, x: Tensor) -> Any:
        z = self.head(torch.tanh(self.body(x)))
        return (z[:, 0], z[:, 1:]) if self.pair else z


def test_a_gaussian_of_given_variance_learns_both() -> None:
    x = torch.linspace(-2, 2, 400, dtype=torch.float64)[:, None]
    deviation = 0.1 + 0.4 * (x > 0)
    y = torch.sin(2 * x) + deviation * tensor(3, 400, 1)
    found = []
    for pair in (False, True):
        model = Normal(pair)
        opt = kl.KFAC(model, kl.HeteroscedasticGaussian())
        for _ in range(60):
            record = opt.step(x, y)
        found.append(float(record.loss))
        out = model(x)
        mean, log = (out[0][:, None], out[1]) if pair else out.chunk(2, 1)
        assert float((mean - torch.sin(2 * x)).detach().square().mean()) < 0.06  # of 0.57
        spread = (log / 2).exp().detach()  # 0.1 and 0.5 are true
        assert 0.07 < float(spread[x < -0.5].mean()) < 0.2
        assert 0.4 < float(spread[x > 0.5].mean()) < 0.7
    assert found[0] == pytest.approx(found[1])


def test_means_and_variances_of_the_shapes_that_torch_takes() -> None:
    mean, variance, y = tensor(1, N, 3), tensor(2, N, 3).exp(), tensor(3, N, 3)
    for spread in (variance, variance[:, :1], variance[:, 0]):
        wanted = nn.GaussianNLLLoss()(mean, y, spread)
        z, likelihood = resolve(nn.GaussianNLLLoss()).joined((mean, spread))
        torch.testing.assert_close(likelihood.loss(z, y).mean(), wanted)
    with pytest.raises(kl.DataError, match=r"variances .24, 2. came with means .24, 3."):
        resolve(nn.GaussianNLLLoss()).joined((mean, variance[:, :2]))
    with pytest.raises(kl.DataError, match="needs two tensors"):
        kl.HeteroscedasticGaussian().joined((mean, mean, mean))


def test_counts() -> None:
    x = tensor(1, 500, 2)
    rate = (0.5 * x[:, :1] - x[:, 1:] + 1).exp()
    y = torch.poisson(rate.cpu(), generator=torch.Generator().manual_seed(0)).to(rate.device)
    model = nn.Linear(2, 1).double()
    opt = kl.KFAC(model, "poisson")
    for _ in range(25):
        opt.step(x, y)
    assert torch.allclose(model.weight, torch.tensor([[0.5, -1.0]]).double(), atol=0.08)
    assert float(model.bias.detach()) == pytest.approx(1.0, abs=0.08)


def test_a_classifier_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.BertForTokenClassification(config)
    batch = {
        "input_ids": torch.randint(0, 30, (8, 5)),
        "attention_mask": torch.ones(8, 5).long(),
    }
    y = torch.where(torch.rand(8, 5) < 0.3, -100, torch.randint(0, 3, (8, 5)))
    recipe = kl.Recipe.named("robust").replace(fallback="diagonal")
    loss = nn.CrossEntropyLoss()
    with torch.no_grad():
        logits = model(**batch).logits
        wanted = float(loss(logits.transpose(1, 2), y))
    opt = kl.KFAC(model, loss, recipe, outputs=lambda out: out.logits.transpose(1, 2))
    losses = [float(opt.step(batch, y).loss) for _ in range(6)]
    assert losses[0] == pytest.approx(wanted, rel=1e-5)
    assert losses[-1] < 0.7 * losses[0]
