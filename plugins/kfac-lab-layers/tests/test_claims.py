"""Who is claimed and who is not, and what is said about it."""

import pytest
import torch
from devices import here
from layer_samples import attention, network_of
from torch import nn

import kfac_lab as kl

MODULES = {
    "Embedding": (nn.Embedding(5, 4), "Embedding"),
    "LayerNorm": (nn.LayerNorm(4), "ScaleShift"),
    "RMSNorm": (nn.RMSNorm(4), "ScaleShift"),
    "GroupNorm": (nn.GroupNorm(2, 4), "ScaleShift"),
    "BatchNorm1d": (nn.BatchNorm1d(4), "ScaleShift"),
    "BatchNorm2d": (nn.BatchNorm2d(4), "ScaleShift"),
    "BatchNorm3d": (nn.BatchNorm3d(4), "ScaleShift"),
    "MultiheadAttention": (attention(), "InProjection"),
    "LSTM": (nn.LSTM(4, 3), "Gates"),
    "GRU": (nn.GRU(4, 3), "Gates"),
    "RNN": (nn.RNN(4, 3), "Gates"),
    "LSTMCell": (nn.LSTMCell(4, 3), "Gates"),
    "GRUCell": (nn.GRUCell(4, 3), "Gates"),
    "RNNCell": (nn.RNNCell(4, 3), "Gates"),
}


def elsewhere(self, *args):
    """A forward that nobody can know."""
    raise NotImplementedError


@pytest.mark.parametrize("name", MODULES)
def test_claims_go_by_what_is_computed(name):
    """A subclass is its parent until it has a forward of its own."""
    module, kind = MODULES[name]
    claimed = kl.lab.claim(module, "here")
    layer = claimed.answer[0] if isinstance(claimed.answer, tuple) else claimed.answer
    assert type(layer).__name__ == kind and layer.path.startswith("here")
    assert claimed.owner == "kfac-lab-layers/layers"
    parent = type(module)
    try:
        module.__class__ = type("Same", (parent,), {"extra_repr": lambda self: ""})
        assert kl.lab.claim(module, "here").owner == "kfac-lab-layers/layers"
        module.__class__ = type("Special", (parent,), {"forward": elsewhere})
        assert kl.lab.claim(module, "here") is None
    finally:
        module.__class__ = parent


def test_the_coverage_table_says_whose_they_are():
    """Every parameter of a block of a transformer has a layer of this distribution or a Linear."""
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    x = torch.randn(6, 3, 4)
    problem = kl.Problem(model=model, likelihood="gaussian", inputs=x, targets=x)
    rows = {row.parameter: row for row in kl.Run(problem, "small_batch", device=here()).coverage()}
    assert set(rows) == {name for name, _ in model.named_parameters()}
    assert rows["self_attn.in_proj_bias"].kind == "InProjection"
    assert rows["self_attn.out_proj.weight"].kind == "OutProjection"
    assert rows["self_attn.out_proj.weight"].layer == "self_attn.out_proj"
    assert rows["norm2.bias"].kind == "ScaleShift" and rows["linear1.bias"].kind == "Linear"
    owners = {row.claimed_by for row in rows.values()}
    assert owners == {"kfac-lab-layers/layers", "kfac-lab/paper"}


REFUSED = {
    "sparse": {"sparse": True},
    "max_norm": {"max_norm": 1.0},
    "scale_grad_by_freq": {"scale_grad_by_freq": True},
}


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("option", REFUSED)
def test_embeddings_that_no_block_can_train(option, fallback):
    """Not claimed, not left to a fallback, and the reason comes with the remedy."""
    model = nn.Sequential(nn.Embedding(5, 4, **REFUSED[option]), nn.Linear(4, 2))
    with pytest.raises(kl.CoverageError, match=rf"^0\.weight: .*{option}.*: .*=") as caught:
        network_of(model, fallback)
    assert "\n" not in str(caught.value)
    model[0].weight.requires_grad_(False)
    assert network_of(model).names == ("1.weight", "1.bias")


def test_attention_with_weights_apart_is_left_to_the_fallback():
    """The reason stands in the error that lists the parameters."""
    model = nn.MultiheadAttention(4, 2, kdim=3, vdim=3)
    with pytest.raises(kl.CoverageError, match=r"k_proj_weight.*\(with kdim or vdim.*no matrix"):
        network_of(model)
    assert {use.claimed_by for use in network_of(model, fallback=True).uses} == {"fallback"}


def test_attention_frozen_in_part():
    """Its output projection goes to the fallback too: nothing would call it."""
    model = attention()
    model.in_proj_bias.requires_grad_(False)
    with pytest.raises(kl.CoverageError, match=r"in_proj_weight.*frozen in part"):
        network_of(model)
    uses = network_of(model, fallback=True).uses
    assert [use.claimed_by for use in uses] == ["fallback"] * 3
