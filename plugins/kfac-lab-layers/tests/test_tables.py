"""EmbeddingBag, and embeddings with a forward of their own."""

import pytest
import torch
from layer_samples import Around, double, network_of
from test_fisher import check_blocks
from test_rows import check_rows
from torch import nn
from torch.nn import functional

import kfac_lab as kl

BAGS = {
    "sum": ({"mode": "sum"}, lambda m, x: m(x)),
    "mean": ({"mode": "mean"}, lambda m, x: m(x)),
    "mean, padded": ({"mode": "mean", "padding_idx": 2}, lambda m, x: m(x)),
    "sum, padded": ({"mode": "sum", "padding_idx": 2}, lambda m, x: m(x)),
    "weighted": ({"mode": "sum"}, lambda m, x: m(x, per_sample_weights=x.double().sin() + 2)),
    "offsets": (
        {"mode": "mean"},
        lambda m, x: m(x.reshape(-1), torch.tensor([0, 4, 4, 9, 12, 20])),
    ),
    "offsets, the last too": (
        {"mode": "sum", "include_last_offset": True},
        lambda m, x: m(x.reshape(-1), torch.tensor([0, 4, 8, 12, 16, 20, 24])),
    ),
}


@pytest.mark.parametrize("name", BAGS)
def test_bags(name):
    """One row a case: the counts of its tokens."""
    options, call = BAGS[name]
    model = Around(double(nn.EmbeddingBag(7, 3, **options)), call)
    tokens = torch.randint(0, 7, (6, 4))
    tokens[0, 1:] = tokens[0, 0]
    network, (a,), _ = check_rows(model, tokens, 6)
    assert type(network.layers[0]).__name__ == "Bag" and a.is_sparse and a.shape == (6, 1, 7)
    if name == "sum":
        assert torch.equal(a.to_dense()[:, 0], functional.one_hot(tokens, 7).sum(1).double())


def test_a_bag_is_a_linear_of_its_counts():
    """Exact for any cases in a linear net, as the dense Fisher says."""
    model = double(nn.Sequential(nn.EmbeddingBag(5, 3, mode="mean"), nn.Linear(3, 2)))
    found = check_blocks(model, torch.randint(0, 5, (9, 4)))
    assert set(found) == {"0", "1"}


def test_a_bag_that_no_matrix_describes():
    """The reason comes with the error, and a fallback trains it."""
    model = nn.Sequential(nn.EmbeddingBag(5, 3, mode="max"), nn.Linear(3, 2))
    with pytest.raises(kl.CoverageError, match=r"mode='max' takes each number"):
        network_of(model)
    assert network_of(model, fallback=True).uses[-1].claimed_by == "fallback"
    layer = kl.lab.claim(nn.EmbeddingBag(5, 3, mode="sum"), "bag").answer
    with pytest.raises(kl.CoverageError, match=r"^bag \(EmbeddingBag\).*without offsets"):
        layer.record(layer.module, (torch.arange(4),), {}, None)


class Positions(nn.Embedding):
    """Vectors of the positions of tokens, the same for all cases, from an offset on."""

    def forward(self, tokens, start=0):
        return self.weight[start : start + tokens.shape[1]]


class Sinusoid(nn.Embedding):
    """No rows of its table."""

    def forward(self, tokens):
        return super().forward(tokens).sin()


def test_positions_by_an_own_forward():
    """A row of its own for each case, whose gradient is the case's."""
    model = Around(
        double(Positions(9, 3)), lambda m, x: torch.tanh(m(x, start=2) * (1 + x[..., None]))
    )
    tokens = torch.randint(0, 7, (6, 4))
    _, (a,), (g,) = check_rows(model, tokens, 6)
    assert a.shape == (6, 4, 9) and g.shape == (6, 4, 3)
    assert torch.equal(a.to_dense()[3].argmax(1), torch.arange(2, 6))
    assert float((g[0] - g[1]).abs().max()) > 0
    assert kl.lab.claim(Sinusoid(9, 3), "here") is None


class Net(nn.Module):
    """Numbers plus the vectors of their positions, spelled in two ways."""

    def __init__(self, own):
        super().__init__()
        self.place = Positions(4, 3) if own else nn.Embedding(4, 3)
        self.head, self.own = nn.Linear(3, 2), own

    def forward(self, x):
        """Two outputs for each position."""
        places = x if self.own else torch.arange(4).expand(len(x), -1)
        return self.head(x[..., None] + self.place(places))


def test_the_positions_of_a_linear_net():
    """As an Embedding of [N, T] position numbers: the same block, and the Fisher's own."""
    one, two = double(Net(True)), Net(False).double()
    two.load_state_dict(one.state_dict())
    x = torch.randint(0, 5, (6, 4))
    a = check_blocks(one, x, only={"place"})["place"][0]
    b = check_blocks(two, x, only={"place"})["place"][0]
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
