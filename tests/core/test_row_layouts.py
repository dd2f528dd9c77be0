"""Whose rows are whose: layouts found at the probe, and blocks that do not depend on the spelling.

The oracle takes each case alone through the network: torch, and nothing of the engine's.
"""

import pytest
import torch
from core.row_models import engine_of, factors
from torch import nn

import kfac_lab as kl
from kfac_lab.core import moments as moments_module
from kfac_lab.core.rows import RowLayout, UnassignedRows, grouped

N, T = 12, 4


# --- the law of spellings -------------------------------------------------------------------------


class Spelt(nn.Module):
    """One function of the same parameters, ``[N, T, 5] → [N, T, 3]``, in several spellings."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.enter, self.places, self.leave = nn.Linear(5, 6), nn.Linear(2, 6), nn.Linear(6, 3)
        g = torch.Generator().manual_seed(3)
        self.register_buffer("where", torch.randn(T, 2, generator=g, dtype=torch.float64))

    def forward(self, x):
        n, t, _ = x.shape
        how = self.how
        if how == "plain":
            place = self.places(self.where.expand(n, t, 2))
            return self.leave(torch.tanh(self.enter(x) + place))
        if how == "folded":
            place = self.places(self.where.repeat(n, 1)).view(n, t, -1)
            z = torch.tanh(self.enter(x.flatten(0, 1)).view(n, t, -1) + place)
            return self.leave(z.flatten(0, 1)).view(n, t, 3)
        if how == "folded time first":
            place = self.places(self.where)
            swapped = x.transpose(0, 1)
            z = self.enter(swapped.reshape(t * n, -1)).view(t, n, -1) + place[:, None]
            return self.leave(torch.tanh(z).reshape(t * n, -1)).view(t, n, 3).transpose(0, 1)
        if how == "swapped":
            place = self.places(self.where[:, None])
            return self.leave(torch.tanh(self.enter(x.transpose(0, 1)) + place)).transpose(0, 1)
        if how == "shared":
            return self.leave(torch.tanh(self.enter(x) + self.places(self.where[None])))
        if how == "bare":
            return self.leave(torch.tanh(self.enter(x) + self.places(self.where)))
        if how == "one by one":
            place = self.places(self.where)
            steps = [self.leave(torch.tanh(self.enter(x[:, k]) + place[k])) for k in range(t)]
            return torch.stack(steps, 1)
        assert how == "unequal calls"
        place = self.places(self.where)
        parts = [slice(0, 1), slice(1, t)]
        return torch.cat([self.leave(torch.tanh(self.enter(x[:, p]) + place[p])) for p in parts], 1)


HOWS = ["folded", "swapped", "shared", "bare", "one by one"]

# Here the places' rows cannot be repeated for each case: their sum over cases is what there is.
SUMMED = ["folded time first", "unequal calls"]


def spelt(how):
    torch.manual_seed(0)
    return Spelt(how).double()


def data(n=N):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, T, 5, generator=g, dtype=torch.float64)
    return x, torch.randint(0, 3, (n, T), generator=g)


@pytest.mark.parametrize("block", ["kronecker", "diagonal"])
@pytest.mark.parametrize("how", HOWS)
def test_two_spellings_get_the_same_update(how, block):
    x, y = data()
    moved = []
    for spelling in ("plain", how):
        model = spelt(spelling)
        engine = engine_of(model, x, y, text=f"block = {block}\n", lr=1.0)
        for _ in range(2):
            engine.step()
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("how", HOWS)
def test_two_spellings_get_the_same_update_by_samples(how):
    """The samples are of the outputs, which are the same; so are the blocks, to rounding."""
    x, y = data()
    found = []
    text = "estimator = sampled(fraction=1.0)\n"
    for spelling in ("plain", how):
        found.append(factors(spelt(spelling), x, y, text))
    for path, pair in found[0].items():
        for one, other in zip(pair, found[1][path], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", HOWS)
def test_rows_can_be_reduced_whatever_the_spelling(how):
    x, _ = data()
    y = torch.randint(0, 3, (N,))
    moments = []
    for spelling in ("plain", how):

        class Pooled(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return self.inner(x).mean(1)

        engine = engine_of(Pooled(spelt(spelling)), x, y)
        wants = [("A.reduced", "G.reduced")] * len(engine.network.uses)
        store = moments_module.MomentLayout(engine.network.layers, wants, (), x[0]).opened()
        accumulation = store.accumulate(0.0, N)
        given = N, engine.parts["estimator"], accumulation
        engine.passes.observe(x, y, None, 1, given, [False] * 3)
        accumulation.finish()
        moments.append(store.spare)
        assert all("reduce" in row.rows for row in engine.coverage())
    for key, value in moments[0].items():
        torch.testing.assert_close(value, moments[1][key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("estimator", "draws"), [("sampled", 300), ("exact", 100)])
@pytest.mark.parametrize("how", SUMMED)
def test_rows_that_all_share_have_the_fishers_block_in_the_mean(how, estimator, draws):
    """The sum over cases of independent g, or of columns of B with a sign for each case.

    The exact estimator draws signs for each of 12 columns, and needs fewer passes.
    """
    cases = 24
    x, y = data(cases)
    engine = engine_of(spelt(how), x, y, text=f"estimator = {estimator}(fraction=1.0)\n")
    assert {r.layer: r.rows for r in engine.coverage()}["places"] == f"{T} for all cases"

    store = engine.store
    for k in range(1, draws + 1):  # the mean so far
        moments = store.accumulate(1 - 1 / k, cases)
        given = cases, engine.parts["estimator"], moments
        engine.passes.observe(x, y, None, k, given, [False] * 3)
        moments.finish()
        store = store.exchanged()
    found = store.table(spare=False)
    wanted = factors(spelt("plain"), x, y)
    for i, path in enumerate(("enter", "places", "leave")):
        A, G = wanted[path]
        torch.testing.assert_close(found[i]["A"], A, rtol=1e-9, atol=1e-12)
        loose = 0.1 if path == "places" or estimator == "sampled" else 1e-9
        assert float((found[i]["G"] - G).norm()) < loose * float(G.norm()), path


# --- the Fisher's own trace -----------------------------------------------------------------------


def fisher_trace(model, inputs, names):
    """tr F of the parameters ``names``, every case alone and every column of B (categorical)."""
    named, total = dict(model.named_parameters()), 0.0
    for n in range(len(inputs)):
        z = model(inputs[n : n + 1])
        flat = z.reshape(-1, z.shape[-1])
        for t in range(len(flat)):
            p = torch.softmax(flat[t], -1).detach()
            for c in range(len(p)):
                column = torch.zeros_like(flat)
                column[t] = -p * p[c].sqrt()
                column[t, c] += p[c].sqrt()
                grads = torch.autograd.grad(
                    z, [named[k] for k in names], column.view_as(z) / len(flat) ** 0.5,
                    retain_graph=True,
                )  # fmt: skip
                total += sum(float((g * g).sum()) for g in grads)
    return total / len(inputs)


@pytest.mark.parametrize("how", ["plain", *HOWS])
def test_the_trace_of_a_block_is_the_fishers(how):
    """Inputs of one length (‖ā‖ is the same in all rows) and a loss that is apart by position:
    expand is then exact in trace, for the last layer, and for the places' before it.
    """
    x, y = data()
    model = spelt(how)
    with torch.no_grad():
        model.where.copy_(torch.nn.functional.normalize(model.where, dim=-1))
        x = torch.nn.functional.normalize(x, dim=-1)
    found = factors(model, x, y)
    for path, names in {
        "enter": ("enter.weight", "enter.bias"),
        "places": ("places.weight", "places.bias"),
    }.items():
        A, G = found[path]
        expected = fisher_trace(model, x, names)
        assert float(A.trace() * G.trace()) == pytest.approx(expected, rel=1e-9), path


@pytest.mark.parametrize("how", ["folded", "swapped", "shared"])
def test_a_wrong_layout_is_seen_by_the_trace(monkeypatch, how):
    """Control: with the first dimension taken for the cases the trace is off by T or by N."""

    def first(rows, layout, cases):
        return rows

    monkeypatch.setattr("kfac_lab.core.record.grouped", first)
    monkeypatch.setattr("kfac_lab.core.passes.layouts._repeated", lambda *given: None)
    x, y = data()
    model = spelt(how)
    found = factors(model, x, y)
    wrong = 0
    for path in ("enter", "places"):
        A, G = found[path]
        expected = fisher_trace(model, x, (f"{path}.weight", f"{path}.bias"))
        ratio = float(A.trace() * G.trace()) / expected
        wrong += not 0.67 < ratio < 1.5
    assert wrong


# --- layouts by themselves ------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((4, 3), RowLayout("per_case")),
        ((12, 2), RowLayout("per_case", 0, 1, 3, 6)),
        ((12, 2), RowLayout("per_case", 0, 3, 1, 6)),
        ((24, 2), RowLayout("per_case", 0, 2, 3, 12)),
        ((3, 4), RowLayout("per_case", 1, 1, 1, 3)),
        ((3, 8), RowLayout("per_case", 1, 2, 1, 6)),
    ],
)
def test_rows_go_to_their_cases(shape, layout, sparse):
    cases = 4
    owner = torch.zeros(shape)
    for b in range(shape[0]):
        for s in range(shape[1]):
            along = (b, s)[layout.axis]
            owner[b, s] = along // layout.inner % cases
    marked = owner.unsqueeze(-1) + 1
    given = marked.to_sparse() if sparse else marked
    found = grouped(given, layout, cases)
    assert not isinstance(found, UnassignedRows)
    found = found.to_dense() if sparse else found
    assert found.shape == (cases, shape[0] * shape[1] // cases, 1)
    assert torch.equal(found[..., 0], torch.arange(1.0, cases + 1)[:, None].expand(found.shape[:2]))


def test_more_positions_than_at_the_probe_are_still_whose_they_are():
    rows = torch.arange(40.0).view(40, 1, 1)
    found = grouped(rows, RowLayout("per_case", 0, 1, 3, 3), 4)
    assert torch.equal(found[1, :, 0], torch.arange(10.0, 20.0))
    odd = grouped(rows[:39], RowLayout("per_case", 0, 1, 3, 3), 4)
    assert isinstance(odd, UnassignedRows) and odd.values.shape == (39, 1, 1)


def test_coverage_says_whose_rows_are_whose():
    x, y = data()
    text = {}
    for how in ("plain", "folded", "swapped", "shared"):
        optimiser = kl.KFAC(spelt(how))
        optimiser.step(x, y)
        text[how] = {row.layer: row.rows for row in optimiser.coverage()}
    assert text["plain"]["enter"] == f"{T} a case"
    assert text["folded"]["enter"] == f"{T} a case, folded"
    assert text["swapped"]["enter"] == f"{T} a case, cases second"
    assert text["shared"]["places"] == f"{T} a case, repeated"


class Differences(nn.Module):
    """u″ by differences of neighbouring points, or by its own formula: rows ``[N, 3]``."""

    def __init__(self, step):
        super().__init__()
        self.step, self.one, self.two = step, nn.Linear(1, 12), nn.Linear(12, 1)

    def forward(self, x):
        at = torch.stack([x - self.step, x, x + self.step], 1)
        u = self.two(torch.tanh(self.one(at)))
        return (u[:, 0] - 2 * u[:, 1] + u[:, 2]) / self.step**2


def test_rows_that_cancel_are_told():
    """Of finite differences expand makes the block far larger than the Fisher's: said, with by how
    much, and so is what to do; a diagonal block then has the Fisher's diagonal.
    """
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 32, dtype=torch.float64)[:, None]
    for step, told in ((1e-2, True), (1.0, False)):
        model = Differences(step).double()
        optimiser = kl.KFAC(model, "gaussian")
        optimiser.step(x, torch.zeros(32, 1, dtype=torch.float64))
        rows = {row.layer: row.rows for row in optimiser.coverage()}
        assert all(("a case's rows cancel" in text) == told for text in rows.values()), rows
    model = Differences(1e-2).double()
    recipe = kl.Recipe.named("paper").replace(
        estimator="exact(fraction=1.0, limit=0.0)", block="diagonal"
    )
    optimiser = kl.KFAC(model, "gaussian", recipe)
    wanted = 0.0
    for n in range(32):
        g = torch.autograd.grad(model(x[n : n + 1]).sum(), model.two.weight)[0]
        wanted = wanted + g.detach() ** 2 / 32
    optimiser.step(x, torch.zeros(32, 1, dtype=torch.float64))
    found = optimiser._engine.state_.block_states[1]["curvature"][:, :-1]
    torch.testing.assert_close(found, wanted)
