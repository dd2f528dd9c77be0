"""Modules told by what they compute: their rows, and what is not taken for one of them."""

import pytest
import torch
from layer_samples import Around, double
from test_fisher import check_blocks
from test_rows import check_rows
from torch import nn
from torch.nn import functional

import kfac_lab as kl
from kfac_lab.core.layers import Linear


class Turned(nn.Module):
    """A Linear that keeps its weight as ``[in, out]``, as GPT-2's Conv1D does."""

    def __init__(self, bias=True):
        super().__init__()
        self.mix = nn.Parameter(torch.randn(5, 5) / 2)
        self.shift = nn.Parameter(torch.zeros(5)) if bias else None

    def forward(self, x):
        y = x @ self.mix
        return y if self.shift is None else y + self.shift


class OwnLinear(nn.Module):
    """A Linear of somebody else's."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(3))

    def forward(self, x):
        return functional.linear(x, self.weight, self.bias)


class Root(nn.Module):
    """An RMSNorm under another name; ``offset`` is added to the weight."""

    def __init__(self, offset=0.0):
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.ones(5)), offset

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (self.offset + self.gain)


class ChannelsFirst(nn.LayerNorm):
    """A LayerNorm over channels that stand before the places."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class SameThere(nn.LayerNorm):
    """A forward of its own that is its parent's in the end."""

    def forward(self, x):
        return super().forward(x)


class Scale(nn.Module):
    """A layer scale."""

    def __init__(self, wide=5):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((wide,), 0.1))

    def forward(self, x):
        return x * self.gamma


AFFINE = {"turned": Turned, "turned, no bias": lambda: Turned(bias=False), "linear": OwnLinear}
SCALES = {
    "root": (Root, (6, 3, 5)),
    "root, one input": (Root, (6, 5)),
    "root with an offset": (lambda: Root(1.0), (6, 3, 5)),
    "channels first": (lambda: ChannelsFirst(5), (6, 5, 3, 2)),
    "own forward": (lambda: SameThere(5), (6, 3, 5)),
    "scale": (Scale, (6, 2, 3, 5)),
    "one number": (lambda: Scale(1), (6, 3, 5)),
    "prelu": (lambda: nn.PReLU(5), (6, 5, 3)),
    "prelu of one": (nn.PReLU, (6, 3)),
    "instance norm": (lambda: nn.InstanceNorm1d(5, affine=True), (6, 5, 4)),
}


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 5), (6, 2, 3, 5)])
def test_affine(name, shape):
    """Rows as of a Linear."""
    x = torch.randn(shape, dtype=torch.float64)
    network, (a,), _ = check_rows(Around(double(AFFINE[name]())), x, 6)
    assert type(network.layers[0]).__name__ == "Affine"
    assert a.shape[1] == torch.Size(shape[1:-1]).numel()


@pytest.mark.parametrize("name", SCALES)
def test_scales_and_shifts(name):
    """A row of ones for each case, or for each place of one."""
    make, shape = SCALES[name]
    x = torch.randn(shape, dtype=torch.float64) * 2 + 1
    network, (a,), _ = check_rows(Around(double(make())), x, 6)
    assert type(network.layers[0]).__name__ == "Elementwise"
    assert a.shape[0] == 6 and a.shape[2] == 1 and bool((a == 1).all())


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_the_whole_block_of_a_root_norm(likelihood):
    """Against the dense Fisher, in a net that is not linear, summed over positions."""
    x = torch.randn(7, 4, 5).double()
    net = nn.Sequential(nn.Linear(5, 5), Root(), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3))
    check_blocks(double(net), x, only={"1"}, likelihood=likelihood)


def test_a_linear_net_of_turned_weights():
    """Exact, as of Linears."""
    net = double(nn.Sequential(Turned(), OwnLinear()))
    assert set(check_blocks(net, torch.randn(9, 5).double())) == {"0", "1"}


# --- what is none of them -------------------------------------------------------------------------


class Squared(nn.Module):
    """Not affine in its vector."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((5,), 2.0))

    def forward(self, x):
        return x * self.gamma**2


class Doubled(nn.Linear):
    """Not its matrix."""

    def forward(self, x):
        return 2 * super().forward(x)


class Counting(nn.Module):
    """Has a buffer that a call changes: it is not tried."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(5))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * self.gamma


class Noisy(nn.Module):
    """Draws, and takes two inputs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        return functional.linear(x, self.weight) * torch.rand(())


@pytest.mark.parametrize("make", [Squared, lambda: Doubled(5, 5), Counting, Noisy])
def test_what_computes_something_else(make):
    """It is not taken for what it is not; it is as it was, and so is the generator.

    A vector of a module that is not understood is a layer of its own, a matrix is nobody's.
    """
    module = make()
    torch.manual_seed(4)
    before = torch.get_rng_state()
    found = kl.lab.claim(module, "here")
    if hasattr(module, "gamma"):
        assert [type(layer).__name__ for layer in found.answer] == ["Whole"]
    else:
        assert found is None
    assert torch.equal(torch.get_rng_state(), before)
    assert not set(vars(module)) & {"gamma", "weight", "bias"}
    if isinstance(module, Counting):
        assert float(module.calls) == 0


class Knows:
    """A plugin that knows one of these modules by its type."""

    @kl.hookimpl
    def kfac_claim_layer(self, module, path):
        """By exact type."""
        return Linear(module, path) if type(module) is OwnLinear else None


def test_a_claim_by_type_goes_first():
    """A plugin that knows the module need not mention this one."""
    lab = type(kl.lab)()
    lab.load()
    assert lab.claim(OwnLinear(), "x").owner == "kfac-lab-layers/layers"
    lab.load_module(Knows(), "knows")
    assert lab.claim(OwnLinear(), "x").owner == "knows/knows"
    assert lab.claim(Turned(), "x").owner == "kfac-lab-layers/layers"
    preferred = lab.claim(OwnLinear(), "x", "kfac-lab-layers/layers")
    assert type(preferred.answer).__name__ == "Affine"
