"""J·v of a part is J·v of the same vector with its zeros written out."""

import pytest
import torch
from torch import nn

from kfac_lab.core.capture import Network
from kfac_lab.core.layers import Linear
from kfac_lab.core.passes.sequential import Sequential
from kfac_lab.core.plan import Plan
from kfac_lab.core.vector import PartialVec, Vec


class Whole(Linear):
    """A layer that knows nothing of parts."""

    partial_tangent = None


def plan(kind: type, bias: bool) -> Plan:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5, bias=bias), nn.Tanh(), nn.Linear(5, 6, bias=bias), nn.GELU()]
    layers += [nn.Linear(6, 3, bias=bias), nn.Sigmoid(), nn.Linear(3, 2, bias=bias)]
    model = nn.Sequential(*layers).double()

    def claim(module, path):
        return (kind(module, path), "test") if type(module) is nn.Linear else None

    found = Plan.of(Network.of(model, claim, False))
    assert found is not None
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [Linear, Whole])
def test_a_part_is_pushed_like_its_dense_twin(kind: type, bias: bool) -> None:
    walked = Sequential(plan(kind, bias)).record(torch.randn(7, 4).double(), 1, 0)
    shapes = [m.shape for m in walked._plan.network.pack(walked._plan.network.tensors)]
    one, two = (Vec([torch.randn(s).double() for s in shapes]) for _ in range(2))
    parts = [
        PartialVec(one, (2, 3)),
        two,
        PartialVec(one, (0,)),
        PartialVec(one, ()),
        PartialVec(two, (1, 3)),
    ]
    dense = [Vec([m.contiguous() for m in v]) for v in parts]
    expected = torch.cat([walked.products([v]) for v in dense])
    assert float(expected[3].abs().max()) == 0 < float(expected[4].abs().max())
    torch.testing.assert_close(walked.products(parts), expected, rtol=1e-12, atol=1e-14)
    for v, row in zip(parts, expected, strict=True):
        if v.layers:
            torch.testing.assert_close(walked.products([v])[0], row, rtol=1e-12, atol=1e-14)
