"""The laws of layers: the Linear adapter obeys, of every shape; and what is refused."""

import dataclasses

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.core.layers import Linear
from kfac_lab.testing import LawError, check, report

MODULES = {
    "wide": (nn.Linear(7, 2), (5, 7)),
    "tall": (nn.Linear(2, 6), (5, 2)),
    "no bias": (nn.Linear(4, 3, bias=False), (3, 4)),
    "positions": (nn.Linear(3, 4), (3, 5, 3)),
    "several dimensions": (nn.Linear(3, 2), (2, 2, 2, 3)),
    "one case": (nn.Linear(3, 2), (1, 3)),
    "double": (nn.Linear(3, 2).double(), (4, 3)),
}


@pytest.mark.parametrize("name", MODULES)
def test_linear(name):
    module, shape = MODULES[name]
    before = [p.detach().clone() for p in module.parameters()]
    inputs = torch.randn(shape, dtype=module.weight.dtype)
    given = inputs.clone()
    found = check(Linear(module, "here"), inputs=inputs)
    assert found.slot == "layer" and {r.status for r in found.results} == {"obeyed"}
    assert torch.equal(inputs, given)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(p.grad is None for p in module.parameters())


def test_inputs_are_needed():
    with pytest.raises(kl.PluginError, match=r"check\(layer, inputs="):
        check(Linear(nn.Linear(2, 2), ""))


@dataclasses.dataclass(frozen=True, eq=False)
class Scale:
    """A layer without tangent and pullback: exempt from their laws, and no bias."""

    module: nn.Module
    path: str

    @property
    def d_out(self):
        return self.module.weight.shape[1]

    @property
    def d_in(self):
        return self.module.weight.shape[0]

    names = ("weight",)

    def rows_in(self, inputs):
        return inputs.reshape(len(inputs), -1, self.d_in)

    def rows_out(self, gradients):
        return gradients.reshape(len(gradients), -1, self.d_out)

    def pack(self, tensors):
        return tensors[0].t().contiguous()

    def unpack(self, matrix):
        return (matrix.t(),)


class Turned(nn.Module):
    """x W, as some models write it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        return x @ self.weight


def test_without_tangent_and_pullback():
    found = check(Scale(Turned(), ""), inputs=torch.randn(5, 4))
    exempt = {r.law for r in found.results if r.status == "exempt"}
    assert exempt == {"tangent_of_parameters", "tangent_of_inputs", "pullback_to_inputs"}


def test_a_module_that_adds_up_rows_it_does_not_report():
    """The gradient law tells a geometry that does not fit the module."""

    class Twice(Turned):
        def forward(self, x):
            return super().forward(x) + super().forward(2 * x)

    with pytest.raises(LawError, match="gradient_from_rows"):
        check(Scale(Twice(), ""), inputs=torch.randn(5, 4))


def test_whole_numbers_as_inputs():
    """An embedding by its one-hot rows."""

    class Rows(Scale):
        def rows_in(self, inputs):
            eye = torch.eye(self.d_in, dtype=self.module.weight.dtype, device=inputs.device)
            return eye[inputs].reshape(len(inputs), -1, self.d_in)

    class Checked(Scale):
        def rows_in(self, inputs):
            rows = nn.functional.one_hot(inputs, self.d_in).to(self.module.weight.dtype)
            return rows.reshape(len(inputs), -1, self.d_in)

    tokens = torch.randint(6, (5, 2))
    assert check(Rows(nn.Embedding(6, 3), ""), inputs=tokens).passed
    # one_hot looks for the largest number on the host, though it was told how many there are
    found = report(Checked(nn.Embedding(6, 3), ""), inputs=tokens)
    assert found.broken == ("no_host_read",)
