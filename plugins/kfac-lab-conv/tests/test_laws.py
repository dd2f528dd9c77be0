"""The conformance kit's laws on small layers of every kind, and on the block."""

import pytest
import torch
from kfac_lab_conv import KroneckerReduce
from torch import nn

import kfac_lab as kl

pytestmark = pytest.mark.host("the kit makes its own tensors on the host; device_follows is a law")


LAYERS = [
    (nn.Conv1d(4, 4, 3, stride=2, padding=1), (5,)),
    (nn.Conv1d(4, 2, 2, padding="same", padding_mode="replicate", bias=False), (4,)),
    (nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2), (4, 3)),
    (nn.Conv2d(4, 4, (2, 1), dilation=2, groups=4, padding_mode="circular", padding=1), (3, 3)),
    (nn.Conv2d(4, 2, (3, 4)), (3, 4)),
    (nn.Conv3d(4, 2, 2, padding=(1, 0, 0), padding_mode="reflect"), (3, 2, 2)),
    (nn.ConvTranspose1d(4, 4, 3, stride=2, groups=2), (3,)),
    (nn.ConvTranspose2d(4, 2, 2, stride=2, padding=1, output_padding=1), (3, 2)),
    (nn.ConvTranspose2d(4, 4, (1, 2), dilation=2, groups=4, bias=False), (2, 2)),
    (nn.ConvTranspose3d(4, 2, 2), (2, 1, 2)),
]


@pytest.mark.parametrize(("module", "sizes"), LAYERS, ids=lambda value: str(value)[:60])
def test_layer(module, sizes):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 4, *sizes, generator=generator)
    layer = kl.lab.claim_layer(module, "conv")
    found = kl.testing.check(layer, inputs=x)
    others = {r.law: r.why for r in found.results if r.status != "obeyed"}
    assert others.pop("swapped_rows").startswith("its module does not take the cases second")
    assert not others


def test_block():
    kl.testing.check(KroneckerReduce())
