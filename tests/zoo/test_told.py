"""What no rows describe: one sentence that names the layer and what to do, or the fallback."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import kfac_lab as kl

from .spelled import SEQUENCES, VECTORS, Of, labels, line, linear, updated

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Doubled(nn.Linear):
    """A forward of its own, which is not Linear's."""

    def forward(self, x):
        return 2 * super().forward(x)


def nested(s, x):
    given = torch.nested.nested_tensor([c[: 3 + n % 3] for n, c in enumerate(x)])
    return s.h(torch.stack([t.mean(0) for t in torch.relu(s.l(given)).unbind()]))


def reentrant(s, x):
    inner = checkpoint(lambda v: torch.tanh(s.l(v)), x.clone().requires_grad_(), use_reentrant=True)
    return s.h(inner)


def reentrant_head(s, x):
    return checkpoint(s.h, torch.tanh(s.l(x)), use_reentrant=True)


def stack(first):
    return lambda: nn.Sequential(first(), nn.Tanh(), linear(5, 3))


def by_weight(s, x):
    return s.h(torch.tanh(functional.linear(x, s.l.weight, s.l.bias)))


def mapped(s, x):
    return s.h(torch.tanh(torch.vmap(s.l)(x)))


UNSEEN = {
    "its weight in a product": (VECTORS, line(by_weight), "l recorded nothing", "l"),
    "vmap": (VECTORS, line(mapped), "l recorded nothing.*vmap", "l"),
    "nested": (SEQUENCES, line(nested), "l recorded nothing.*nested", "l"),
    "Bilinear": (
        VECTORS,
        lambda: Of(
            lambda s, x: s.h(torch.tanh(s.b(x[:, :3], x[:, 3:]))),
            b=nn.Bilinear(3, 3, 5),
            h=linear(5, 3),
        ),
        "b.weight .* of Bilinear",
        "b",
    ),
    "weight_norm": (
        VECTORS,
        stack(lambda: parametrizations.weight_norm(linear(6, 5))),
        "original0",
        "0",
    ),
    "a forward of its own": (VECTORS, stack(lambda: Doubled(6, 5)), "0.weight .* of Doubled", "0"),
    "a bare parameter": (
        VECTORS,
        lambda: Of(
            lambda s, x: s.h(torch.tanh(x @ s.W)),
            W=nn.Parameter(torch.ones(6, 5)),
            h=linear(5, 3),
        ),
        r"W \(6, 5\)",
        "W",
    ),
}


@pytest.mark.parametrize("face", ["Preconditioner", "KFAC"])
@pytest.mark.parametrize("name", UNSEEN)
def test_what_no_rows_describe_is_told_or_left_to_the_fallback(name, face):
    inputs, make, words, path = UNSEEN[name]
    with pytest.raises(kl.CoverageError, match=words):
        updated(make, inputs, labels(), face=face)
    step, optimiser = updated(make, inputs, labels(), "diagonal", face)
    assert step.isfinite().all() and float(step.norm()) > 0
    for row in optimiser.coverage():
        own = row.parameter == path or row.parameter.startswith(path + ".")
        assert (row.claimed_by == "fallback") == own, row.parameter


REFUSED = {
    "reentrant": (line(reentrant), kl.CoverageError, "use_reentrant=False"),
    "reentrant behind a layer": (line(reentrant_head), kl.CoverageError, "use_reentrant=False"),
    "lazy": (stack(lambda: nn.LazyLinear(5)), kl.RecipeError, "call the model once"),
    "complex": (
        lambda: Of(
            lambda s, x: s.h(s.l(x.to(torch.complex128)).abs()),
            l=nn.Linear(6, 5, dtype=torch.complex64),
            h=linear(5, 3),
        ),
        kl.RecipeError,
        "complex",
    ),
    "scripted": (
        stack(lambda: torch.jit.script(linear(6, 5))),
        kl.RecipeError,
        "0 is a module of torch.jit",
    ),
}


@pytest.mark.parametrize("face", ["Preconditioner", "KFAC"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_sentence(name, face):
    make, error, words = REFUSED[name]
    with pytest.raises(error, match=words) as told:
        updated(make, VECTORS, labels(), "diagonal", face)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("masks", ["causal", "padding"])
def test_torchs_transformer_with_masks(masks):
    """Every parameter claimed, and the rows make its gradient, or the probe would have told."""
    hidden = torch.triu(torch.ones(8, 8, dtype=torch.bool), 1)

    def forward(s, x):
        more = {"src_key_padding_mask": x[:, :, 0] > 1.5} if masks == "padding" else {}
        return s.h(s.t(x, x.flip(1), tgt_mask=hidden, **more))

    def make():
        return Of(
            forward,
            t=nn.Transformer(6, 2, 1, 1, 12, dropout=0.0, batch_first=True),
            h=linear(6, 3),
        )

    for face in ("Preconditioner", "KFAC"):
        _, optimiser = updated(make, SEQUENCES, labels(8), face=face)
        assert "fallback" not in {row.claimed_by for row in optimiser.coverage()}
