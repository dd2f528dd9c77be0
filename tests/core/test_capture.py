"""Recording of calls: a layer that records itself, sparse rows, several layers of one module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kfac_lab.core.capture import Network
from kfac_lab.core.layers import Declined, Linear, Recorded, dense
from kfac_lab.core.moments import MomentLayout
from kfac_lab.core.record import Recorder
from kfac_lab.errors import CoverageError


class Bilinear(nn.Module):
    """y = first(x) ⊙ second(x), both without calling a module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> tuple[Tensor, str]:
        """The product, in a tuple as some modules answer."""
        one = x @ self.first.weight.t() + self.first.bias
        return scale * one * (x @ self.second.weight.t() + self.second.bias), "beside"


class Net(nn.Module):
    """A bilinear module that has no parameters of its own, and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.last = Bilinear(), nn.Linear(2, 2)
        self.both.register_parameter("gain", nn.Parameter(torch.ones(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Real numbers ``[N, 2]``."""
        out: Tensor = self.last(self.both(x, scale=2.0)[0] * self.both.gain)
        return out


@dataclass(frozen=True, eq=False)
class Gain:
    """The bilinear module's one own number; its recorded call calls the two Linears."""

    module: Any
    path: str
    d_out = d_in = 1
    names = ("gain",)

    def record(self, module: Any, args: Any, named: Any, output: Any) -> Recorded:
        """Anew from the parts; the gain is applied by the caller, so here it stays out."""
        x, scale = args[0], named["scale"]
        watched = scale * module.first(x)
        return Recorded(x, watched, (watched * module.second(x), output[1]))

    def rows_in(self, inputs: Tensor) -> Tensor:
        """Nothing that is used."""
        return inputs.new_ones(len(inputs), 1, 1)

    def rows_out(self, gradients: Tensor) -> Tensor:
        """Of the watched tensor, which the module's output does not show."""
        return gradients.sum(1).reshape(-1, 1, 1)

    def pack(self, tensors: Any) -> Tensor:
        """1 × 1."""
        packed: Tensor = tensors[0].reshape(1, 1).clone()
        return packed

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """One number."""
        return (matrix.reshape(1),)


def claim(module: nn.Module, path: str) -> Any:
    """All three layers of the bilinear module at once; the built-in's for the last."""
    if type(module) is Bilinear:
        parts = ((module.first, f"{path}.first"), (module.second, f"{path}.second"))
        return (Gain(module, path), *(Linear(m, p) for m, p in parts)), "test"
    return (Linear(module, path), "test") if path == "last" else None  # type: ignore[arg-type]


def test_a_call_that_is_recorded_anew() -> None:
    """Its parts are recorded as calls of their own, in firing order; the values are the same."""
    torch.manual_seed(0)
    model = Net().double()
    network, x = Network.of(model, claim, False), torch.randn(5, 3, dtype=torch.float64)
    assert [use.layer.path for use in network.uses] == ["both", "both.first", "both.second", "last"]
    plain = model(x)
    recorder = Recorder(network)
    with recorder.recording():
        outputs = model(x)
    assert recorder.fired == [0, 1, 2, 3]
    torch.testing.assert_close(outputs, plain)
    outputs.sin().sum().backward()
    truth = torch.autograd.grad(plain.sin().sum(), network.tensors)
    watched, *of_linears = zip(recorder.rows_in(), recorder.rows_out(), strict=True)
    products = [torch.einsum("nso,nsi->oi", g, a) for a, g in of_linears]  # type: ignore[arg-type]
    found = network.unpack([torch.zeros(1, 1), *products])[1:]  # type: ignore[arg-type]
    for got, expected in zip(found, truth[1:], strict=True):
        torch.testing.assert_close(got, expected)
    other = x @ model.both.second.weight.t() + model.both.second.bias
    back = torch.cos(plain) @ model.last.weight * other  # at the watched tensor
    torch.testing.assert_close(watched[1], back.sum(1).reshape(5, 1, 1).detach())


def test_a_module_claimed_twice_is_recorded_once() -> None:
    """As where two attention modules share their output projection."""
    torch.manual_seed(0)
    shared = nn.Linear(3, 3)

    def twice(module: nn.Module, path: str) -> Any:
        return ((Linear(shared, "a"), Linear(shared, "b")), "test") if module is shared else None

    recorder = Recorder(Network.of(nn.Sequential(shared), twice, False))
    with recorder.recording():
        shared(torch.randn(4, 3))
    assert recorder.fired == [0]
    rows = recorder.rows_in()[0]
    assert rows is not None and rows.shape == (4, 1, 4)


@pytest.mark.parametrize("served", [True, False])
def test_a_claim_that_is_declined(served: bool) -> None:
    """The reason stands beside the parameter; a fallback serves it unless it cannot."""

    def no(module: nn.Module, path: str) -> Any:
        if path == "0":
            return Declined("it is odd: make it even", fallback=served), "test"
        return Linear(module, path), "test"  # type: ignore[arg-type]

    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with pytest.raises(CoverageError, match=r"0\.weight.*it is odd: make it even"):
        Network.of(model, no, False)
    if served:
        kinds = [use.claimed_by for use in Network.of(model, no, True).uses]
        assert kinds == ["test", "fallback", "fallback"]
    else:
        with pytest.raises(CoverageError, match=r"^0\.weight: it is odd: make it even; 0\.bias"):
            Network.of(model, no, True)
    model[1].weight, model[1].bias = model[0].weight, model[0].bias  # also where another claims it
    with pytest.raises(CoverageError, match="it is odd"):
        Network.of(nn.Sequential(model[0], model[1]), no, False)


def some_rows() -> tuple[Tensor, Tensor]:
    """The same rows sparse and dense, ``[6, 4, 5]``, some of them zero."""
    torch.manual_seed(0)
    plain = torch.zeros(6, 4, 5, dtype=torch.float64)
    case, position = torch.meshgrid(torch.arange(6), torch.arange(4), indexing="ij")
    column = torch.randint(0, 5, (6, 4))
    values = torch.randn(6, 4, dtype=torch.float64) * (column != 2)
    plain[case, position, column] = values
    index = torch.stack([case.reshape(-1), position.reshape(-1), column.reshape(-1)])
    return torch.sparse_coo_tensor(
        index, values.reshape(-1), (6, 4, 5), check_invariants=True
    ), plain


def test_sparse_rows_give_the_moments_of_dense_ones() -> None:
    """Sums of squares and means straight from the entries, products and cross moments dense."""
    sparse, plain = some_rows()
    assert torch.equal(dense(sparse), plain) and dense(plain) is plain
    layers = (Linear(nn.Linear(4, 3), "0"), Linear(nn.Linear(4, 3), "1"))
    wants = [("A", "A.diagonal", "A.mean"), ("A", "G")]
    other = torch.randn(6, 4, 5, dtype=torch.float64)
    tables = []
    for rows in (sparse, plain):
        store = MomentLayout(layers, wants, [(0, 1)], torch.zeros((), dtype=torch.float64)).opened()
        accumulation = store.accumulate(0.0, 6)
        accumulation.inputs([rows, other])
        accumulation.finish()
        tables.append(store.spare)
    for key, expected in tables[1].items():
        torch.testing.assert_close(tables[0][key], expected, msg=str(key))
    assert float(tables[1]["A.diagonal", 0, 0].sum()) > 0
