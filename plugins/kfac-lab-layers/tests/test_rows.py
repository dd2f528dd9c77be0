"""Rows of every claimed module: Σ g āᵀ is autograd's gradient, and calls keep their values."""

import pytest
import torch
from layer_samples import Around, attention, attentions, double, network_of, norms
from torch import nn

import kfac_lab as kl
from kfac_lab.core.record import Recorder


def check_rows(model, x, cases):
    """Records one call of ``model`` and compares; the rows of each layer."""
    network = network_of(model)
    plain = model(x)
    recorder = Recorder(network)
    with recorder.recording():
        outputs = model(x)
    torch.testing.assert_close(outputs, plain, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(0.5, 1.5, plain.numel(), dtype=plain.dtype).view(plain.shape)
    truth = torch.autograd.grad((plain.sin() * weights).sum(), network.tensors)
    (outputs.sin() * weights).sum().backward()
    rows_in, rows_out = recorder.rows_in(), recorder.rows_out()
    matrices = []
    for layer, a, g in zip(network.layers, rows_in, rows_out, strict=True):
        assert a.shape[0] == g.shape[0] == cases and a.shape[1] == g.shape[1]
        assert a.shape[2] == layer.d_in and g.shape[2] == layer.d_out
        matrices.append(torch.einsum("nso,nsi->oi", g, a.to_dense()))
    found = network.unpack(matrices)
    for got, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    again = network.unpack(network.pack(truth))  # pack and unpack are inverse to each other
    for got, expected in zip(again, truth, strict=True):
        assert torch.equal(got, expected)
    return network, rows_in, rows_out


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 2, 3)])
def test_embedding(shape, padding):
    """One-hot rows, none at the padding."""
    model = Around(double(nn.Embedding(7, 3, padding_idx=padding)))
    tokens = torch.randint(0, 7, shape)
    tokens[0] = 2
    network, (a,), _ = check_rows(model, tokens, 6)
    assert a.is_sparse and (network.layers[0].d_out, network.layers[0].d_in) == (3, 7)
    counted = torch.nn.functional.one_hot(tokens, 7).reshape(6, -1, 7).double()
    if padding is not None:
        counted[..., padding] = 0
    assert torch.equal(a.to_dense(), counted)


@pytest.mark.parametrize("name", norms())
@pytest.mark.parametrize("training", [True, False])
def test_normalisation(name, training):
    """One row for each case."""
    module, shape = norms()[name]
    x = torch.randn(shape, dtype=torch.float64) * 2 + 1
    model = Around(double(module))
    for _ in range(2 * training):
        model(x + 1)  # running statistics that are not 0 and 1
    model.train(training)
    network, (a,), _ = check_rows(model, x, 6)
    parameters = sum(p.numel() for p in module.parameters())
    assert torch.equal(a, torch.ones(6, 1, 1, dtype=torch.float64))
    assert network.layers[0].d_out == parameters


@pytest.mark.parametrize("name", attentions())
@pytest.mark.parametrize("training", [True, False])
def test_attention(name, training):
    """Two layers, whose rows stand case by case whatever comes first."""
    arguments, call = attentions()[name]
    first = arguments.get("batch_first", True)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    model = Around(double(attention(**arguments)), call).train(training)
    network, rows_in, rows_out = check_rows(model, x if first else x.transpose(0, 1), 5)
    assert [type(layer).__name__ for layer in network.layers] == ["InProjection", "OutProjection"]
    assert [g.shape[2] for g in rows_out] == [12, 4] and rows_out[1].shape[1] == 3
    if "cross" not in name and name != "memory":
        assert torch.equal(rows_in[0][..., :4], x)


def test_attention_with_key_and_value_biases():
    """``bias_k`` and ``bias_v`` are the fallback's; the projections' rows are exact."""
    model = Around(double(attention(add_bias_kv=True)), lambda m, x: m(x, x, x)[0])
    with pytest.raises(kl.CoverageError, match=r"2 parameters: module\.bias_k .*module\.bias_v"):
        network_of(model)
    for parameter in (model.module.bias_k, model.module.bias_v):
        parameter.requires_grad_(False)
    check_rows(model, torch.randn(5, 3, 4, dtype=torch.float64), 5)


def test_a_layer_called_twice_has_further_positions():
    """A norm layer and an embedding, each used twice in one pass."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm = nn.Embedding(7, 3), nn.LayerNorm(3)

        def forward(self, tokens):
            first = self.norm(self.table(tokens))
            return self.norm(first.cos() + self.table(tokens.flip(1)))

    _, rows_in, _ = check_rows(double(Twice()), torch.randint(0, 7, (6, 4)), 6)
    assert [a.shape[1] for a in rows_in] == [8, 2]


def test_an_activation_in_place_behind_them():
    """What follows may overwrite a module's output."""
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    for module in (nn.LayerNorm(4), nn.GroupNorm(1, 3)):
        check_rows(Around(double(module), lambda m, x: m(x).relu_()), x, 6)
    check_rows(Around(double(attention()), lambda m, x: m(x, x, x)[0].relu_()), x, 6)
    check_rows(
        Around(double(nn.Embedding(7, 3)), lambda m, x: m(x).relu_()),
        torch.randint(0, 7, (6, 4)),
        6,
    )


def test_shared_modules_of_equal_geometry():
    """Two attention modules that share every tensor are one entry each; each call is its own."""
    one, two = double(attention()), attention(num_heads=1)
    two.in_proj_weight, two.in_proj_bias = one.in_proj_weight, one.in_proj_bias
    two.out_proj = one.out_proj

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = one, two

        def forward(self, x):
            x = self.one(x, x, x)[0]
            return self.two(x, x, x)[0]

    _, rows_in, _ = check_rows(Shared(), torch.randn(5, 3, 4, dtype=torch.float64), 5)
    assert [a.shape[1] for a in rows_in] == [6, 6]


@pytest.mark.parametrize("weights", [True, False])
def test_attention_drops_out_as_torch_does(weights):
    """In training the recorded call draws the mask that the module itself would have drawn."""
    module = attention(dropout=0.5).double().train()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    layer, _ = kl.lab.claim(module, "").answer
    torch.manual_seed(3)
    plain, _ = module(x, x, x, need_weights=weights)
    torch.manual_seed(3)
    recorded = layer.record(module, (x, x, x), {"need_weights": weights}, None)
    torch.testing.assert_close(recorded.output[0], plain, rtol=1e-12, atol=1e-12)
    torch.manual_seed(4)
    other = layer.record(module, (x, x, x), {"need_weights": weights}, None)
    assert not torch.allclose(other.output[0], plain)
