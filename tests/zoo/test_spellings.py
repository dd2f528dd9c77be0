"""Two spellings of one function of one set of parameters get the same P∇h, by the exact G."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import kfac_lab as kl

from .spelled import PICTURES, SEQUENCES, TOKENS, VECTORS, Of, labels, line, linear, updated

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def twice(s, x):
    return s.h(torch.cat([torch.tanh(s.l(x[:, :3])), torch.tanh(s.l(x[:, 3:]))], 1).mean(1))


def routed(s, x):
    chosen = x[:, 0] > 0
    z = x.new_zeros(len(x), 5)
    for name, mine in (("a", chosen), ("b", ~chosen)):
        z = z.index_put((mine.nonzero()[:, 0],), s.d[name](x[mine]))
    return s.h(torch.tanh(z))


def tied(s, x):
    return s.h((torch.tanh(s.c(x[..., :3])) + torch.tanh(s.c(x[..., 3:]))).mean((2, 3)))


def tied_folded(s, x):
    both = torch.stack([x[..., :3], x[..., 3:]], 1).flatten(0, 1)
    return s.h(torch.tanh(s.c(both)).view(len(x), 2, 5, 4, 1).sum(1).mean((2, 3)))


def shuffled(s, x):
    return s.c(x).view(len(x), 3, 2, 2, 6, 6).permute(0, 4, 2, 5, 3, 1).reshape(len(x), 12, 12, 3)


def packed(s, x):
    lengths = torch.full((len(x),), 8)
    return s.h(s.g(pack_padded_sequence(x, lengths, batch_first=True))[1][0])


def time_first(s, x):
    return s.h(s.a(*(x.transpose(0, 1),) * 3, need_weights=False)[0].transpose(0, 1))


def offsets(s, x):
    return s.h(torch.tanh(s.e(x.flatten(), torch.arange(0, x.numel(), x.shape[1]))))


def twins(s, x):
    one, two = s.l(torch.cat([x, x.flip(1)])).chunk(2)
    return s.h(torch.tanh(one) * torch.tanh(two))


def twin_at_rest(s, x):
    with torch.no_grad():
        other = s.l(x.flip(1))
    return s.h(torch.tanh(s.l(x)) + 0 * other)


def under(kind):
    """The second layer behind a checkpoint or none, in autocast or not."""

    def forward(s, x):
        inner = {
            "checkpoint": lambda v: checkpoint(lambda u: torch.tanh(s.l(u)), v, use_reentrant=False)
        }.get(kind, lambda v: torch.tanh(s.l(v)))
        return s.h(inner(x))

    return forward


def through(name):
    """Inputs go through the module of that name; pixels or places are averaged."""

    def forward(s, x):
        z = torch.tanh(getattr(s, name)(x))
        return s.h(z.flatten(2).mean(2) if z.dim() > 2 else z)

    return forward


def body():
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
        nn.Tanh(),
        nn.Conv2d(4, 6, 1, groups=2),
        nn.Flatten(),
        nn.Linear(216, 3),
    )


def experts(function):
    return lambda: Of(
        function, d=nn.ModuleDict({"a": linear(6, 5), "b": linear(6, 5)}), h=linear(5, 3)
    )


def conv(function, *how, **more):
    return lambda: Of(function, c=nn.Conv2d(*how, **more), h=linear(5, 3))


PAIRS = {
    "a module called with two lengths": (
        SEQUENCES,
        line(twice),
        line(lambda s, x: s.h(torch.tanh(s.l(x)).mean(1))),
    ),
    "depthwise, dilated, grouped; channels last": (
        PICTURES,
        body,
        lambda: Of(
            lambda s, x: s.n(x.contiguous(memory_format=torch.channels_last)),
            n=body().to(memory_format=torch.channels_last),
        ),
    ),
    "a 1×1 convolution, a Linear over channels": (
        PICTURES,
        conv(through("c"), 4, 5, 1),
        lambda: Of(
            lambda s, x: s.h(torch.tanh(s.c(x.permute(0, 2, 3, 1))).mean((1, 2))),
            c=linear(4, 5),
            h=linear(5, 3),
        ),
    ),
    "one dimension, two": (
        SEQUENCES.mT,
        lambda: Of(through("c"), c=nn.Conv1d(6, 5, 3, padding=1), h=linear(5, 3)),
        conv(lambda s, x: through("c")(s, x[:, :, None]), 6, 5, (1, 3), padding=(0, 1)),
    ),
    "patches, unfolded": (
        PICTURES,
        conv(through("c"), 4, 5, 3, stride=3),
        lambda: Of(
            lambda s, x: s.h(torch.tanh(s.c(functional.unfold(x, 3, stride=3).mT)).mean(1)),
            c=linear(36, 5),
            h=linear(5, 3),
        ),
    ),
    "a tied convolution, folded": (
        PICTURES,
        conv(tied, 4, 5, 3),
        conv(tied_folded, 4, 5, 3),
    ),
    "a shuffle of pixels": (
        PICTURES,
        lambda: Of(
            lambda s, x: functional.pixel_shuffle(s.c(x), 2).permute(0, 2, 3, 1),
            c=nn.Conv2d(4, 12, 3, padding=1),
        ),
        lambda: Of(shuffled, c=nn.Conv2d(4, 12, 3, padding=1)),
    ),
    "attention with time first": (
        SEQUENCES,
        lambda: Of(
            lambda s, x: s.h(s.a(x, x, x, need_weights=False)[0]),
            a=nn.MultiheadAttention(6, 2, batch_first=True),
            h=linear(6, 3),
        ),
        lambda: Of(time_first, a=nn.MultiheadAttention(6, 2), h=linear(6, 3)),
    ),
    "a bag with offsets": (
        TOKENS,
        lambda: Of(through("e"), e=nn.EmbeddingBag(9, 5), h=linear(5, 3)),
        lambda: Of(offsets, e=nn.EmbeddingBag(9, 5), h=linear(5, 3)),
    ),
    "a packed sequence": (
        SEQUENCES,
        lambda: Of(packed, g=nn.GRU(6, 5, batch_first=True), h=linear(5, 3)),
        lambda: Of(
            lambda s, x: s.h(s.g(x)[1][0]), g=nn.GRU(6, 5, batch_first=True), h=linear(5, 3)
        ),
    ),
    "a functional call": (
        VECTORS,
        line(
            lambda s, x: s.h(
                torch.tanh(torch.func.functional_call(s.l, dict(s.l.named_parameters()), (x,)))
            )
        ),
        line(under("")),
    ),
    "vectors one by one": (
        VECTORS,
        line(lambda s, x: torch.stack([s.h(torch.tanh(s.l(case))) for case in x])),
        line(under("")),
    ),
    "sequences one by one": (
        SEQUENCES,
        line(lambda s, x: torch.cat([s.h(torch.tanh(s.l(c)).mean(0, keepdim=True)) for c in x])),
        line(lambda s, x: s.h(torch.tanh(s.l(x)).mean(1))),
    ),
    "a batch in parts": (
        VECTORS,
        line(lambda s, x: torch.cat([under("")(s, part) for part in x.chunk(2)])),
        line(under("")),
    ),
    "places one by one": (
        SEQUENCES,
        line(lambda s, x: s.h(sum(torch.tanh(s.l(place)) for place in x.unbind(1)))),
        line(lambda s, x: s.h(torch.tanh(s.l(x)).sum(1))),
    ),
    "twins in one batch": (
        VECTORS,
        line(twins),
        line(lambda s, x: s.h(torch.tanh(s.l(x)) * torch.tanh(s.l(x.flip(1))))),
    ),
    "a twin without gradients": (VECTORS, line(twin_at_rest), line(under(""))),
    "a checkpoint": (VECTORS, line(under("checkpoint")), line(under(""))),
}


def compared(name, face):
    inputs, one, two = PAIRS[name]
    with torch.no_grad():
        outputs = one().double()(inputs)
    targets = labels(*outputs.shape[1:-1])
    (a, _), (b, _) = (updated(make, inputs, targets, face=face) for make in (one, two))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("face", ["Preconditioner", "KFAC"])
@pytest.mark.parametrize("name", PAIRS)
def test_two_spellings_have_one_update(name, face):
    assert compared(name, face) < 1e-9


def test_what_is_not_the_same_block_has_another_update():
    """A grouped convolution has one G for its groups, separate convolutions one each."""

    def apart(s, x):
        z = torch.cat([s.one(x[:, :2]), s.two(x[:, 2:])], 1)
        return s.h(torch.tanh(z).mean((2, 3)))

    torch.manual_seed(1)
    group, head = nn.Conv2d(4, 4, 3, groups=2), linear(4, 3)
    pair = [nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)]
    for n, each in enumerate(pair):
        each.weight.data = group.weight.data[2 * n : 2 * n + 2]
        each.bias.data = group.bias.data[2 * n : 2 * n + 2]
    both = Of(lambda s, x: s.h(torch.tanh(s.c(x)).mean((2, 3))), c=group, h=head)
    a, _ = updated(lambda: both, PICTURES, labels())
    b, _ = updated(lambda: Of(apart, one=pair[0], two=pair[1], h=head), PICTURES, labels())
    assert float((a.norm() - b.norm()).abs() / b.norm()) > 1e-3


@pytest.mark.parametrize("face", ["Preconditioner", "KFAC"])
def test_experts_have_one_update_whichever_cases_come_first(face):
    """A probe of three cases may see all of them go to one expert."""
    targets, found, rows = labels(), [], []
    first = VECTORS[:, 0] > 0
    apart = torch.argsort(~first, stable=True), torch.argsort(first.int(), stable=True)
    turns = torch.stack([apart[0][:3], apart[1][:3]], 1).flatten()
    rest = torch.tensor([n for n in range(len(VECTORS)) if n not in turns])
    for order in (*apart, torch.cat([turns, rest])):
        update, optimiser = updated(experts(routed), VECTORS[order], targets[order], face=face)
        found.append(update)
        rows.append({row.parameter: row.rows for row in optimiser.coverage()}["d.b.weight"])
    for update in found[1:]:
        torch.testing.assert_close(update, found[0], rtol=1e-9, atol=1e-12)
    assert rows[0] == rows[2] == "as they come"


@pytest.mark.parametrize("face", ["Preconditioner", "KFAC"])
def test_a_teacher_that_only_runs_without_gradients_rests(face):
    def taught(s, x):
        with torch.no_grad():
            known = s.t(x)
        return s.h(torch.tanh(s.l(x)) + known)

    def make():
        return Of(taught, t=linear(6, 5), l=linear(6, 5), h=linear(5, 3))

    torch.manual_seed(0)
    (own, *_) = (p.numel() for p in make().parameters())
    if face == "KFAC":
        update, optimiser = updated(make, VECTORS, labels(), face=face)
        assert not update[: own + 5].any() and update[own + 5 :].any()
        rows = {row.parameter: row.rows for row in optimiser.coverage()}
        assert rows["t.weight"] == "none yet" and rows["l.weight"] == "1 a case"
    else:
        torch.manual_seed(0)
        model = make().double()
        optimiser = kl.Preconditioner(model)
        functional.cross_entropy(model(VECTORS), labels()).backward()
        optimiser.step()
        assert model.t.weight.grad is None and model.l.weight.grad.any()
