"""Torch's losses mean what torch means: h, ∇h and F of the very same object, by autograd.

The oracle is torch: the loss object called on the whole batch, its gradient, and the matrix of its
second derivatives in the outputs of all cases together; where those depend on the targets, their
mean over targets of the model. What is compared goes the way of the passes: a Criterion of the
batch, asked chunk by chunk.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from kfac_lab.core.cases import Weighed
from kfac_lab.core.likelihood import Criterion, of_torch, resolve
from kfac_lab.errors import DataError, RecipeError

few = settings(max_examples=24, deadline=None, derandomize=True)
fewer = settings(few, max_examples=8)
reductions = st.sampled_from(["mean", "sum"])
seeds = st.integers(0, 2**31)
shapes = st.lists(st.integers(1, 3), min_size=0, max_size=2).map(tuple)


def pieces(n, cut):
    """Rows of a batch in two chunks, one of them perhaps empty of nothing."""
    return [slice(0, cut), slice(cut, n)] if 0 < cut < n else [slice(0, n)]


def compared(loss, z, y, cut=1, hessian=None, weights=None):
    """The loss object against the likelihood; ``hessian`` is the oracle's, where not of ``y``."""
    n = len(z)
    targets = y if weights is None else Weighed(y, weights)

    def h(at):
        if weights is None:
            return called(loss, at, y)
        each = [called(loss, at[i : i + 1], y[i : i + 1]) * weights[i] for i in range(n)]
        return torch.stack(each).sum() / n

    leaf = z.clone().requires_grad_()
    wanted = h(leaf)
    (slope,) = torch.autograd.grad(wanted, leaf)
    likelihood = of_torch(loss)
    criterion = Criterion(likelihood, targets, n)
    parts = pieces(n, cut)
    got = torch.cat([criterion.loss(z[p], targets[p]) for p in parts])
    assert got.shape == (n,)
    torch.testing.assert_close(got.mean(), wanted.detach())
    gradient = torch.cat([criterion.gradient(z[p], targets[p]) for p in parts])
    torch.testing.assert_close(gradient / n, slope)
    if hessian is None:
        hessian = torch.autograd.functional.hessian(h, z)
    hessian = hessian.reshape(z.numel(), z.numel())
    # F of all cases together, by each of the ways that the engine takes to it.
    side = z[0].numel()
    units = torch.eye(side, dtype=z.dtype).repeat_interleave(n, 0).reshape(side, *z.shape)
    by_fisher, by_columns, by_tangents = [], [], []
    for p in parts:
        at, known = z[p], targets[p]
        own = criterion.given(at, known)
        by_fisher += [torch.stack([own.fisher(at, u[p]).reshape(len(at), -1) for u in units], -1)]
        b = [own.factor_column(at, j).reshape(len(at), -1) for j in range(own.factor_columns(at))]
        b = torch.stack(b, -1)
        by_columns += [b @ b.mT]
        rooted = criterion.rooted(at, known, units[:, p])
        rooted = criterion.bare.factor_transposed(at, rooted)
        rooted = rooted.reshape(side, len(at), -1).permute(1, 0, 2)
        by_tangents += [rooted @ rooted.mT]
    for found in (by_fisher, by_columns, by_tangents):
        dense = torch.block_diag(*torch.cat(found)) / n
        torch.testing.assert_close(dense, hessian, atol=1e-9, rtol=1e-7)
    return criterion


def called(loss, z, y):
    if isinstance(loss, nn.GaussianNLLLoss):
        mean, variance = z.chunk(2, -1)
        return loss(mean, y, variance)
    return loss(z, y)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- h, ∇h and F --------------------------------------------------------------------------------


@few
@given(st.integers(1, 4), shapes, reductions, seeds, st.integers(0, 4))
def test_mse(n, rest, reduction, seed, cut):
    z, y = normal(seed, n, *rest), normal(seed + 1, n, *rest)
    compared(nn.MSELoss(reduction=reduction), z, y, cut)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("positive", [False, True])
@fewer
@given(st.integers(1, 4), st.integers(1, 3), shapes, seeds, st.integers(0, 4))
def test_binary_cross_entropy(reduction, weighted, positive, n, d, rest, seed, cut):
    z, y = normal(seed, n, *rest, d), drawn(seed + 1, n, *rest, d)
    loss = nn.BCEWithLogitsLoss(
        weight=2 * drawn(seed + 2, d) if weighted else None,
        pos_weight=3 * drawn(seed + 3, d) if positive else None,
        reduction=reduction,
    )
    compared(loss, z, y, cut)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["numbers", "probabilities", "any sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@fewer
@given(
    st.integers(1, 4),
    st.integers(2, 4),
    shapes,
    st.sampled_from([-100, 1]),
    seeds,
    st.integers(0, 4),
)
def test_cross_entropy(reduction, kind, weighted, smoothing, n, c, rest, ignored, seed, cut):
    z = normal(seed, n, c, *rest)
    if kind == "numbers":
        y = (drawn(seed + 1, n, *rest) * c).long()
        y = torch.where(drawn(seed + 4, n, *rest) < 0.3, ignored, y)
        assume(reduction == "sum" or bool((y != ignored).any()))
    else:
        y = drawn(seed + 1, n, c, *rest)
        y = y / y.sum(1, keepdim=True) if kind == "probabilities" else y
        ignored = -100  # torch takes no other with probabilities
    loss = nn.CrossEntropyLoss(
        weight=2 * drawn(seed + 2, c) if weighted else None,
        ignore_index=ignored,
        label_smoothing=smoothing,
        reduction=reduction,
    )
    compared(loss, z, y, cut)


@few
@given(st.integers(1, 4), shapes, reductions, st.booleans(), st.booleans(), seeds)
def test_poisson(n, rest, reduction, log_input, full, seed):
    z = normal(seed, n, *rest)
    z = z if log_input else z.exp() + 0.1
    y = (4 * drawn(seed + 1, n, *rest)).round()
    loss = nn.PoissonNLLLoss(log_input=log_input, full=full, reduction=reduction)
    # Affine in y: the mean over counts of the model is the value at the mean count.
    count = z.exp() if log_input else z + loss.eps
    plain = nn.PoissonNLLLoss(log_input=log_input, reduction=reduction)
    hessian = torch.autograd.functional.hessian(lambda at: plain(at, count), z)
    compared(loss, z, y, 1, hessian)


@few
@given(st.integers(1, 3), st.integers(1, 2), shapes, reductions, st.booleans(), seeds)
def test_gaussian_nll(n, d, rest, reduction, full, seed):
    mean, variance = normal(seed, n, *rest, d), normal(seed + 1, n, *rest, d).exp()
    z, y = torch.cat([mean, variance], -1), normal(seed + 2, n, *rest, d)
    loss = nn.GaussianNLLLoss(full=full, reduction=reduction)
    # Quadratic in y: two targets one deviation off have the first two moments of the model's.
    parts = [
        torch.autograd.functional.hessian(lambda at, y=y: called(loss, at, y), z)
        for y in (mean + variance.sqrt(), mean - variance.sqrt())
    ]
    compared(loss, z, y, 1, sum(parts) / 2)


@few
@given(st.integers(1, 3), st.integers(2, 3), shapes, reductions, st.booleans(), seeds)
def test_nll_of_log_softmax(n, c, rest, reduction, weighted, seed):
    """Seen through log_softmax: outputs are its logits, J is its Jacobian."""
    weight = 2 * drawn(seed + 2, c) if weighted else None
    y = (drawn(seed + 1, n, *rest) * c).long()
    a = normal(seed, n, c, *rest)
    loss = nn.NLLLoss(weight=weight, ignore_index=0, reduction=reduction)
    assume(reduction == "sum" or bool((y != 0).any()))
    z = torch.log_softmax(a, 1)
    criterion = Criterion(of_torch(loss), y, n)
    torch.testing.assert_close(criterion.loss(z, y).mean(), loss(z, y))
    leaf = z.clone().requires_grad_()
    torch.testing.assert_close(
        criterion.gradient(z, y) / n, torch.autograd.grad(loss(leaf, y), leaf)[0]
    )
    same = nn.CrossEntropyLoss(weight=weight, ignore_index=0, reduction=reduction)
    hessian = torch.autograd.functional.hessian(lambda at: same(at, y), a)
    jacobian = torch.autograd.functional.jacobian(lambda at: torch.log_softmax(at, 1), a)
    jacobian = jacobian.reshape(a.numel(), a.numel())
    own, side = criterion.given(z, y), z[0].numel()
    units = torch.eye(side, dtype=z.dtype).repeat_interleave(n, 0).reshape(side, *z.shape)
    blocks = torch.stack([own.fisher(z, u).flatten(1) for u in units], -1)
    found = jacobian.t() @ torch.block_diag(*blocks) @ jacobian / n
    torch.testing.assert_close(found, hessian.reshape(found.shape), atol=1e-9, rtol=1e-7)


@few
@given(st.integers(1, 4), seeds, reductions)
def test_weights_of_cases(n, seed, reduction):
    """h is the mean over cases of weight times loss, for a loss that is a mean over each case."""
    w = 2 * drawn(seed + 5, n)
    z, y = normal(seed, n, 3), normal(seed + 1, n, 3)
    compared(nn.MSELoss(), z, y, 1, weights=w)
    compared(nn.CrossEntropyLoss(), z, y.argmax(1), 1, weights=w)
    compared(nn.BCEWithLogitsLoss(), z, torch.sigmoid(y), 1, weights=w)


# --- samples ------------------------------------------------------------------------------------


def second_moment(own, z, seed, many=20_000):
    wide = z.expand(many, *z.shape[1:]).contiguous()
    u = drawn(seed, *wide.shape).clamp(1e-12, 1 - 1e-12)
    g = own(wide).sampled_gradient(wide, u).flatten(1)
    products = (g[:, :, None] * g[:, None, :]).flatten(1)
    return products.mean(0), products.std(0) / math.sqrt(many)


LOSSES = [
    (nn.MSELoss(), normal(1, 1, 3), normal(2, 1, 3)),
    (nn.MSELoss(reduction="sum"), normal(1, 1, 3), normal(2, 1, 3)),
    (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0, 0.5])),
        normal(3, 1, 2),
        torch.tensor([[1.0, 0.0]], dtype=torch.float64),
    ),
    (
        nn.CrossEntropyLoss(torch.tensor([1.0, 4.0, 2.0]), label_smoothing=0.1),
        normal(4, 1, 3, 2),
        torch.tensor([[1, -100]]),
    ),
    (nn.CrossEntropyLoss(), normal(5, 1, 3), 2 * drawn(6, 1, 3)),
    (nn.PoissonNLLLoss(), normal(7, 1, 2), torch.ones(1, 2, dtype=torch.float64)),
    (nn.GaussianNLLLoss(), drawn(8, 1, 4) + 0.3, drawn(9, 1, 2)),
]


@pytest.mark.parametrize("loss,z,y", LOSSES, ids=[str(n) for n in range(len(LOSSES))])
def test_samples_have_the_fisher(loss, z, y):
    criterion = Criterion(of_torch(loss), y, 1)
    own = criterion.given(z, y)
    side = z.numel()
    units = torch.eye(side, dtype=z.dtype).reshape(side, *z.shape)
    fisher = torch.stack([own.fisher(z, u).flatten() for u in units], -1).flatten()

    def given(wide):
        return criterion.given(wide, y.expand(len(wide), *y.shape[1:]))

    mean, error = second_moment(given, z, 11)
    assert bool(((mean - fisher).abs() <= 5 * error + 1e-9).all())
    assert not bool(((mean - 2 * fisher).abs() <= 5 * error + 1e-9).all())  # and not any scale


@pytest.mark.parametrize("positions", [1, 7])
@pytest.mark.parametrize("kind", ["categorical", "torch"])
def test_label_gradients_are_on_the_scale_of_samples(positions, kind):
    """Labels drawn from the model: the second moment of what ``empirical`` uses is F_R."""
    from kfac_lab.core.likelihood import Categorical
    from kfac_lab.paper.estimators import Empirical

    many = 20_000
    z = normal(1, 1, positions, 3).expand(many, positions, 3)
    y = torch.distributions.Categorical(logits=z).sample()
    if kind == "torch":
        z = z.movedim(-1, 1).contiguous()
    likelihood = Categorical() if kind == "categorical" else of_torch(nn.CrossEntropyLoss())
    own = Criterion(likelihood, y, many).given(z, y)
    (g,) = Empirical().cotangents(own, z, y, None)
    square = g.flatten(1).square().sum(1)
    p = torch.softmax(z[:1], -1 if kind == "categorical" else 1)
    trace = float((p * (1 - p)).sum()) / positions
    assert abs(float(square.mean()) - trace) < 5 * float(square.std()) / math.sqrt(many)


# --- what a subset of the batch has ---------------------------------------------------------------


def test_a_subset_keeps_the_denominator_of_the_batch():
    """The mean over all subsets of F on a subset is F of the batch, and no other rule has it."""
    import itertools

    z, y = normal(1, 4, 3), torch.tensor([0, -100, 1, 2])
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 3.0, 9.0]))
    criterion = Criterion(of_torch(loss), y, 4)

    def trace(criterion, rows):
        at, known = z[rows], y[rows]
        own = criterion.given(at, known)
        return sum(
            float(own.fisher(at, u.expand_as(at))[:, j].mean())
            for j, u in enumerate(torch.eye(3, dtype=z.dtype))
        )

    whole = trace(criterion, [0, 1, 2, 3])
    pairs = [list(pair) for pair in itertools.combinations(range(4), 2)]
    kept = [trace(criterion, pair) for pair in pairs]
    own = [trace(Criterion(of_torch(loss), y[pair], 2), pair) for pair in pairs]
    assert sum(kept) / 6 == pytest.approx(whole)
    assert abs(sum(own) / 6 - whole) > 0.02 * whole
    assert trace(criterion, [1]) == 0.0  # nothing counts there


def test_two_processes_share_one_denominator():
    z, y = normal(1, 4, 3), torch.tensor([0, -100, -100, 2])
    loss = nn.CrossEntropyLoss()
    totals = [of_torch(loss).totals(y[rows])[0] for rows in (slice(0, None, 2), slice(1, None, 2))]

    def mean(tensors):
        tensors[0].copy_(sum(totals) / 2)

    shares = []
    for rank in (0, 1):
        own = slice(rank, None, 2)
        totals = [of_torch(loss).totals(y[r])[0] for r in (slice(0, None, 2), slice(1, None, 2))]
        shares.append(
            Criterion(of_torch(loss), y[own], 2, processes=2, mean=mean).loss(z[own], y[own]).mean()
        )
    torch.testing.assert_close(sum(shares) / 2, loss(z, y))


# --- what is refused ------------------------------------------------------------------------------


def test_reduction_none_is_explained():
    with pytest.raises(RecipeError, match=r"reduction='none'.*weights"):
        resolve(nn.MSELoss(reduction="none"))


@pytest.mark.parametrize(
    "loss,z,y,what",
    [
        (nn.CrossEntropyLoss(), normal(1, 3, 4), torch.tensor([0, 4, -100]), "from 0 to 3"),
        (nn.CrossEntropyLoss(), normal(1, 3, 4), torch.tensor([0, -1, 1]), "the first is -1"),
        (
            nn.CrossEntropyLoss(torch.ones(4)),
            normal(1, 3, 4),
            torch.tensor([0, 4, 1]),
            "the first is 4",
        ),
        (nn.CrossEntropyLoss(), normal(1, 3, 4), -drawn(1, 3, 4), "none may be below 0"),
        (nn.CrossEntropyLoss(), normal(1, 3, 4), torch.tensor([-100] * 3), "no target of the"),
        (nn.CrossEntropyLoss(), normal(1, 3, 5, 4), torch.ones(3, 5).long(), "'categorical'"),
        (nn.CrossEntropyLoss(), normal(1, 3, 4), torch.ones(3).int(), "targets.long"),
        (nn.BCEWithLogitsLoss(), normal(1, 3, 1), -torch.ones(3, 1).double(), r"\[0, 1\]"),
        (nn.MSELoss(), normal(1, 3, 1), torch.full((3, 1), math.nan).double(), "NaN or"),
        (nn.MSELoss(), normal(1, 3, 1), normal(1, 3), "one target for each output"),
        (nn.PoissonNLLLoss(), normal(1, 3, 1), -torch.ones(3, 1).double(), "counts"),
        (nn.PoissonNLLLoss(log_input=False), -drawn(1, 3, 1), drawn(1, 3, 1), "Softplus"),
        (nn.GaussianNLLLoss(), -drawn(1, 3, 2), drawn(1, 3, 1), "variances down to"),
        (nn.NLLLoss(), normal(1, 3, 4), torch.tensor([0, 1, 1]), "LogSoftmax"),
        (nn.CrossEntropyLoss(ignore_index=1), normal(1, 3, 4), drawn(1, 3, 4), "class numbers"),
        (nn.CrossEntropyLoss(torch.ones(3)), normal(1, 3, 4), torch.tensor([0, 1, 1]), "3,"),
    ],
)
def test_targets_that_are_none(loss, z, y, what):
    with pytest.raises(DataError, match=what):
        Criterion(of_torch(loss), y, len(z)).loss(z, y)


def test_negative_weights():
    with pytest.raises(RecipeError, match="without a Fisher"):
        of_torch(nn.CrossEntropyLoss(torch.tensor([1.0, -1.0])))
    with pytest.raises(RecipeError, match="weights=…"):
        z = normal(1, 4, 2)
        Criterion(of_torch(nn.BCEWithLogitsLoss(torch.ones(4, 1))), z, 4).loss(z, z.sigmoid())


@pytest.mark.host("an accelerator waits for no data, and tells of them a step later")
def test_negative_weights_of_cases():
    z = normal(1, 3, 2)
    bad = Weighed(z, torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(DataError, match="weights of cases"):
        Criterion(of_torch(nn.MSELoss()), bad, 3).loss(z, bad)
