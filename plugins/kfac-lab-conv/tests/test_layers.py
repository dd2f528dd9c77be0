"""The geometry of every kind of convolution, against autograd and torch.func in float64."""

import itertools

import pytest
import torch
from devices import here
from torch import nn

import kfac_lab as kl
from kfac_lab.core.layers import Linear

SIZES = {1: (11,), 2: (9, 7), 3: (5, 6, 5)}
PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


ODD = {"kernel_size": (3, 2), "stride": (1, 3), "padding": (2, 0), "dilation": (1, 2), "groups": 2}


def _plain():
    for n in (1, 2, 3):
        base = {"kernel_size": 3}
        yield n, base
        for groups, bias in itertools.product((1, 2, 4), (True, False)):
            yield n, {"kernel_size": 3, "stride": 2, "padding": 1, "groups": groups, "bias": bias}
        yield n, {"kernel_size": 2, "dilation": 2, "padding": "same", "groups": 2}
        yield n, {"kernel_size": 3, "padding": "valid", "stride": 3}
        for mode in ("reflect", "replicate", "circular"):
            if (n, mode) != (3, "reflect") or hasattr(nn, "ReflectionPad3d"):
                yield (
                    n,
                    {
                        "kernel_size": 3,
                        "stride": 2,
                        "padding": 1,
                        "padding_mode": mode,
                        "groups": 2,
                    },
                )
                yield n, {"kernel_size": 2, "padding": "same", "padding_mode": mode}
        yield n, {"kernel_size": 1}
        yield n, {"kernel_size": SIZES[n]}  # one position
    yield (
        2,
        {
            "kernel_size": (3, 2),
            "stride": (1, 3),
            "padding": (2, 0),
            "dilation": (1, 2),
            "groups": 2,
        },
    )
    yield 2, {"kernel_size": (1, 3), "padding": (0, 2), "stride": (3, 4), "bias": False}


def _transposed():
    for n in (1, 2, 3):
        yield n, {"kernel_size": 3}
        for groups, bias in itertools.product((1, 2, 4), (True, False)):
            yield n, {"kernel_size": 3, "stride": 2, "padding": 1, "groups": groups, "bias": bias}
        yield n, {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}
        yield n, {"kernel_size": 2, "stride": 3, "output_padding": 2}
        yield n, {"kernel_size": 3, "stride": 1, "dilation": 2, "padding": 2, "output_padding": 1}
        yield n, {"kernel_size": 1, "stride": 2}
        yield n, {"kernel_size": 2, "padding": 2, "stride": 1}  # more padding than kernel
    yield (
        2,
        {
            "kernel_size": (3, 2),
            "stride": (1, 3),
            "padding": (2, 0),
            "dilation": (1, 2),
            "groups": 2,
        },
    )


GRID = [(PLAIN[n], n, given) for n, given in _plain()]
GRID += [(TRANSPOSED[n], n, given) for n, given in _transposed()]


def name(entry):
    kind, _, given = entry
    return f"{kind.__name__}({', '.join(f'{k}={v}' for k, v in given.items())})"


def made(entry, cases=3):
    """(module, its layer, inputs, a cotangent), float64."""
    kind, n, given = entry
    torch.manual_seed(1)
    module = kind(4, 8, **given).double()
    layer = kl.lab.claim_layer(module, "conv")
    x = torch.randn(cases, 4, *SIZES[n], dtype=torch.float64)
    return module, layer, x, torch.randn_like(module(x))


def close(left, right):
    torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)


each = pytest.mark.parametrize("entry", GRID, ids=map(name, GRID))


@each
def test_the_rows_make_each_case_s_gradient(entry):
    module, layer, x, g = made(entry)
    rows, cotangents = layer.rows_in(x), layer.rows_out(g)
    positions = g[0, 0].numel() * module.groups
    assert rows.shape == (len(x), positions, layer.d_in)
    assert cotangents.shape == (len(x), positions, layer.d_out)
    for case in range(len(x)):
        z = module(x[case : case + 1])
        found = torch.autograd.grad(z, list(module.parameters()), g[case : case + 1])
        close(cotangents[case].t() @ rows[case], layer.pack(found))


@each
def test_the_matrix_acts_on_the_rows_as_the_module_on_its_inputs(entry):
    module, layer, x, _g = made(entry)
    matrix = layer.pack([p.detach() for p in module.parameters()])
    assert matrix.shape == (layer.d_out, layer.d_in)
    z = (layer.rows_in(x) @ matrix.t()).unflatten(1, (-1, module.groups))
    own = layer.d_out // module.groups
    parts = [z[:, :, j, j * own : (j + 1) * own] for j in range(module.groups)]
    close(torch.cat(parts, 2), module(x).detach().flatten(2).transpose(1, 2))


@each
def test_unpack_undoes_pack(entry):
    module, layer, _, _ = made(entry)
    tensors = [p.detach() for p in module.parameters()]
    packed = layer.pack(tensors)
    back = layer.unpack(packed)
    assert tuple(n for n, _ in module.named_parameters()) == layer.names
    assert all(torch.equal(a, b) for a, b in zip(back, tensors, strict=True))
    packed.zero_()  # a matrix of its own
    assert all(p.abs().max() > 0 for p in module.parameters())


@each
def test_tangent_is_the_forward_mode_product(entry):
    module, layer, x, g = made(entry)
    names = [n for n, _ in module.named_parameters()]
    theta = tuple(p.detach() for p in module.parameters())

    def function(parameters, inputs):
        return torch.func.functional_call(
            module, dict(zip(names, parameters, strict=True)), (inputs,)
        )

    directions = [tuple(torch.randn_like(t) for t in theta) for _ in range(2)]
    moving = torch.randn(2, *x.shape, dtype=x.dtype)
    matrices = [layer.pack(d) for d in directions]
    with torch.no_grad():
        still, moved = layer.tangent(matrices, x, None), layer.tangent(matrices, x, moving)
    assert still.shape == moved.shape == (2, *g.shape)
    for j, direction in enumerate(directions):
        zero = torch.zeros_like(x)
        close(still[j], torch.func.jvp(function, (theta, x), (direction, zero))[1])
        close(moved[j], torch.func.jvp(function, (theta, x), (direction, moving[j]))[1])


@each
def test_pullback_is_the_reverse_mode_product(entry):
    module, layer, x, g = made(entry)
    with torch.no_grad():
        pulled = layer.pullback(g, x)
    close(pulled, torch.func.vjp(module, x)[1](g)[0].detach())


def test_rows_of_a_channels_last_image_and_of_a_slice():
    _module, layer, x, _ = made((nn.Conv2d, 2, {"kernel_size": 3, "padding": 1, "groups": 2}))
    rows = layer.rows_in(x)
    assert torch.equal(layer.rows_in(x.to(memory_format=torch.channels_last)), rows)
    wide = torch.cat([x, x], 3)[..., : x.shape[3]]
    assert torch.equal(layer.rows_in(wide), rows)


# --- what is claimed ------------------------------------------------------------------------------


class Halved(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) / 2


def test_a_subclass_is_nobody_s():
    assert kl.lab.claim_layer(Halved(4, 8, 3), "conv") is None
    x, y = torch.randn(4, 4, 3, 3), torch.randn(4, 8, 1, 1)
    problem = kl.Problem(model=Halved(4, 8, 3), likelihood="gaussian", inputs=x, targets=y)
    with pytest.raises(kl.CoverageError, match="Halved"):
        kl.Run(problem, "robust", device=here())


def test_it_is_this_distribution_s_claim_and_leaves_the_others_alone():
    assert kl.lab.claim(nn.Conv2d(1, 1, 1), "c").owner == "kfac-lab-conv/conv"
    assert type(kl.lab.claim_layer(nn.Linear(2, 2), "l")) is Linear
    for module in (nn.BatchNorm2d(3), nn.Embedding(3, 3), nn.Bilinear(2, 2, 2)):
        claimed = kl.lab.claim(module, "m")
        assert claimed is None or not claimed.owner.startswith("kfac-lab-conv/")


def test_an_output_size_of_its_own_is_refused():
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose1d(2, 2, 3, stride=2)

        def forward(self, x):
            return self.up(x, output_size=(10,))

    x = torch.randn(4, 2, 4)  # 9 positions by the module's own settings
    problem = kl.Problem(model=Up(), likelihood="gaussian", inputs=x, targets=torch.randn(4, 2, 10))
    with pytest.raises(kl.CoverageError, match="output_padding"):
        kl.Run(problem, "robust", device=here())


def test_inputs_without_cases_are_refused():
    with pytest.raises(kl.DataError, match="cases first"):
        kl.lab.claim_layer(nn.Conv2d(4, 8, 3), "conv").rows_in(torch.randn(4, 9, 9))
