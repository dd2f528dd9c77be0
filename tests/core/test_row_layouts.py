"""Whose rows are whose: layouts found at the probe, and blocks that do not depend on the spelling.

The oracle takes each case alone through the network: torch, and nothing of the engine's.
"""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.core import moments as moments_module
from kfac_lab.core.likelihood import resolve
from kfac_lab.core.problem import Drawn
from kfac_lab.core.rows import RowLayout, UnassignedRows, grouped
from kfac_lab.engine import attach

N, T = 12, 4
EXACT = "model = approximate_fisher\nmomentum = rescaled\n" + (
    "average = none\ndamping = constant(lam=0.01, gamma=0.1)\nschedule = every_step\n"
)


def engine_of(model, inputs, targets, likelihood="categorical", text="", lr=0.0):
    if "estimator" not in text:
        text += "estimator = exact(fraction=1.0)\n"
    problem = kl.Problem(
        model=model, likelihood=resolve(likelihood), inputs=inputs, targets=targets
    )
    recipe = kl.Recipe.from_text(EXACT + f"batch = constant(size={len(inputs)})\n" + text)
    return attach(problem, recipe, 0, lr=lr)


def factors(model, inputs, targets, text="", likelihood="categorical"):
    """path → (Ā, G) after one step that moves nothing."""
    engine = engine_of(model, inputs, targets, likelihood, text)
    engine.step()
    table = engine.store.table(spare=False)
    return {
        use.layer.path: tuple(table[i][side].clone() for side in "AG")
        for i, use in enumerate(engine.network.uses)
    }


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


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
@pytest.mark.parametrize("how", SUMMED)
def test_rows_that_all_share_have_the_fishers_block_in_the_mean(how, estimator):
    """The sum over cases of independent g, or of columns of B with a sign for each case."""
    x, y = data(64)
    engine = engine_of(
        spelt(how), x, y, text=f"estimator = {estimator}(fraction=1.0, limit=0.9999)\n"
    )
    assert {r.layer: r.rows for r in engine.coverage()}["places"] == f"{T} for all cases"

    for _ in range(300):
        engine.step()
    found = engine.store.table(spare=False)
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


# --- rows that come and go ------------------------------------------------------------------------


class Experts(nn.Module):
    """Case n goes to the expert that its first input says; the gate has no parameters."""

    def __init__(self, skip=True):
        super().__init__()
        self.skip = skip
        self.experts = nn.ModuleList(nn.Linear(5, 3) for _ in range(3))

    def forward(self, x):
        chosen = x[:, 0].long()
        y = x.new_zeros(len(x), 3)
        for n, expert in enumerate(self.experts):
            rows = (chosen == n).nonzero()[:, 0]
            if len(rows) or not self.skip:
                y = y.index_add(0, rows, expert(x[rows]))
        return y


def routed(counts, seed=0):
    g = torch.Generator().manual_seed(seed)
    chosen = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    x = torch.randn(len(chosen), 5, generator=g, dtype=torch.float64)
    x[:, 0] = chosen
    return x, torch.randint(0, 3, (len(chosen),), generator=g)


@pytest.mark.parametrize("skip", [True, False])
def test_rows_as_they_come(skip):
    """A = (1/N) Σ over the rows that came, G their mean; the trace of the block follows."""
    torch.manual_seed(0)
    model = Experts(skip).double()
    x, y = routed([5, 6, 1])
    found = factors(model, x, y)
    for n in range(3):
        own = x[x[:, 0] == n]
        a = torch.cat([own, own.new_ones(len(own), 1)], 1)
        A, G = found[f"experts.{n}"]
        torch.testing.assert_close(A, a.t() @ a / 12)
        p = torch.softmax(model.experts[n](own), -1).detach()
        expected = torch.diag(p.mean(0)) - p.t() @ p / len(own)
        torch.testing.assert_close(G, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("block", ["kronecker", "diagonal"])
@pytest.mark.parametrize("skip", [True, False])
def test_what_got_nothing_keeps_its_moments(skip, block):
    torch.manual_seed(0)
    model = Experts(skip).double()
    batches = [routed([5, 6, 1]), routed([7, 5, 0], 1), routed([4, 4, 4], 2)]
    engine = engine_of(model, *batches[0], text=f"block = {block}\n")
    moments = []
    for batch in batches:
        engine.step_on(Drawn(*batch, None))
        kept = {k: v.clone() for k, v in engine.store.current.items() if k[1] == 2}
        part_state = engine.state_.block_states[2]
        moments.append([*kept.values(), *(v.clone() for v in part_state.values())])
        assert all(torch.isfinite(v).all() for v in moments[-1])
    pairs = list(zip(*moments, strict=True))
    assert pairs and all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(b, c) for _, b, c in pairs)


def test_an_expert_without_a_case_at_first_rests_until_it_gets_one():
    torch.manual_seed(0)
    model = Experts().double()
    batches = [routed([7, 5, 0]), routed([4, 4, 4], 2)]
    optimiser = kl.KFAC(model)
    before = model.experts[2].weight.detach().clone()
    optimiser.step(*batches[0])
    assert torch.equal(model.experts[2].weight, before)
    assert {r.layer: r.rows for r in optimiser.coverage()}["experts.2"] == "none yet"
    for _ in range(12):
        optimiser.step(*batches[1])
    assert not torch.equal(model.experts[2].weight, before)


def test_rows_as_they_come_cannot_be_reduced():
    engine = engine_of(Experts().double(), *routed([5, 6, 1]))
    wants = [("A.reduced", "G.reduced")] * 3
    store = moments_module.MomentLayout(engine.network.layers, wants, (), torch.zeros(())).opened()
    accumulation = store.accumulate(0.0, 12)
    with pytest.raises(kl.CoverageError, match=r"experts\.0: which rows belong to a case"):
        accumulation.inputs([(UnassignedRows(torch.ones(5, 1, 6), 1),), None, None])


# --- networks that take no fewer cases ------------------------------------------------------------


class Graph(nn.Module):
    """Every node sees its neighbours; there are as many nodes as there are."""

    def __init__(self, nodes):
        super().__init__()
        ring = torch.eye(nodes, dtype=torch.float64)
        self.register_buffer("mix", (ring + ring.roll(1, 0) + ring.roll(-1, 0)) / 3)
        self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.mix @ self.two(torch.tanh(self.mix @ self.one(x)))


def test_a_graph_is_taken_whole():
    torch.manual_seed(0)
    model = Graph(20).double()
    x, y = torch.randn(20, 5).double(), torch.randint(0, 3, (20,))
    engine = engine_of(model, x, y, text="estimator = exact(fraction=0.3)\n")
    engine.step()
    a = torch.cat([x, torch.ones(20, 1)], 1)
    torch.testing.assert_close(engine.store.current["A", 0, 0], a.t() @ a / 20)
    assert engine.passes.function.whole
    kl.KFAC(model, recipe="paper").step(x, y)


def test_logits_against_the_batch_are_taken_whole():
    """A contrastive loss: as many classes as there are cases."""

    class Contrast(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 4)

        def forward(self, x):
            return self.left(x[:, 0]) @ self.right(x[:, 1]).t()

    torch.manual_seed(0)
    x, y = torch.randn(16, 2, 5), torch.arange(16)
    optimiser = kl.KFAC(Contrast())
    losses = [float(optimiser.step(x, y).loss) for _ in range(40)]
    assert optimiser._engine.passes.function.whole and losses[-1] < 0.7 * losses[0]


# --- what the rows do not see ---------------------------------------------------------------------


class Inner(nn.Module):
    """The derivative of an energy: torch.autograd.grad inside forward."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]


class Elsewhere(nn.Module):
    """The table's weight is also multiplied by, beside the table's call."""

    def __init__(self):
        super().__init__()
        self.table, self.mix = nn.Linear(4, 6, bias=False), nn.Linear(6, 6)

    def forward(self, x):
        return torch.tanh(self.mix(self.table(x))) @ self.table.weight


class Functional(nn.Module):
    """A layer's parameters go into a function, and the layer itself is called for nothing."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        self.lin(x)
        return nn.functional.linear(x, self.lin.weight, self.lin.bias)


@pytest.mark.parametrize(
    ("model", "named"),
    [(Inner, r"net\.0.*net\.2"), (Elsewhere, "table"), (Functional, "lin")],
)
@pytest.mark.parametrize("face", ["KFAC", "Preconditioner"])
def test_uses_that_rows_do_not_see_are_told(model, named, face):
    torch.manual_seed(0)
    net, x = model(), torch.randn(32, 4)
    before = [p.detach().clone() for p in net.parameters()]

    def step(recipe):
        if face == "KFAC":
            return kl.KFAC(net, "gaussian", recipe).step(x, x)
        pre = kl.Preconditioner(net, "gaussian", recipe)
        try:
            (net(x) - x).square().sum(1).mean().backward()
            return pre.step()
        finally:
            pre.remove()

    with pytest.raises(kl.CoverageError, match=f"{named} .*relative difference.*fallback"):
        step("robust")
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_fallback_looks_after_them():
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    for model in (Inner(), Elsewhere(), Functional()):
        optimiser = kl.KFAC(
            model, "gaussian", kl.Recipe.named("robust").replace(fallback="diagonal")
        )
        losses = [float(optimiser.step(x, x).loss) for _ in range(15)]
        assert losses[-1] < losses[0]
        claimed = {row.layer: row.claimed_by for row in optimiser.coverage()}
        assert "fallback" in claimed.values()
        if isinstance(model, Elsewhere):
            assert claimed["mix"] != "fallback"


def _steps(face, model, optimiser, x, count):
    """``count`` steps, and what they left: θ, or for a Preconditioner the last gradients."""
    for _ in range(count):
        if face == "KFAC":
            optimiser.step(x, x)
        else:
            model.zero_grad()
            (model(x) - x).square().sum(1).mean().backward()
            optimiser.step()
    left = [p if face == "KFAC" else p.grad for p in model.parameters()]
    return [t.detach().clone() for t in left if t is not None]


@pytest.mark.parametrize("kind", [Inner, Elsewhere, Functional])
@pytest.mark.parametrize("face", ["KFAC", "Preconditioner"])
def test_a_state_knows_what_the_fallback_looks_after(face, kind, tmp_path):
    """Saved, loaded into one that has seen no batch, and on, bit for bit."""
    torch.manual_seed(0)
    model, x = kind(), torch.randn(32, 4)
    name = "robust" if face == "KFAC" else "small_batch"
    recipe = kl.Recipe.named(name).replace(fallback="diagonal")
    first = getattr(kl, face)(model, "gaussian", recipe)
    fresh = copy.deepcopy(first.state_dict())  # of before a batch: with nothing to look after
    _steps(face, model, first, x, 6)
    torch.save([first.state_dict(), model.state_dict()], tmp_path / "state.pt")
    expected = _steps(face, model, first, x, 6)
    where = first.coverage()

    saved, parameters = torch.load(tmp_path / "state.pt")
    other = kind()
    second = getattr(kl, face)(other, "gaussian", recipe)
    second.load_state_dict(saved)
    other.load_state_dict(parameters)
    assert second.step_count == 6
    found = _steps(face, other, second, x, 6)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert [r.claimed_by for r in second.coverage()] == [r.claimed_by for r in where]
    # Back to before the first batch, and into one that has none of it.
    second.load_state_dict(fresh)
    assert second.step_count == 0
    _steps(face, other, second, x, 2)
    assert [r.claimed_by for r in second.coverage()] == [r.claimed_by for r in where]


def test_what_the_fallback_looks_after_has_to_be_paths():
    torch.manual_seed(0)
    model, x = Elsewhere(), torch.randn(32, 4)
    recipe = kl.Recipe.named("robust").replace(fallback="diagonal")
    optimiser = kl.KFAC(model, "gaussian", recipe)
    optimiser.step(x, x)
    engine, held = optimiser._engine, optimiser._engine.held
    state = engine.state_
    for wrong in ("table", ("table", 3), ("no.such.layer",), ()):
        bad = replace(state, bound=state.bound._replace(unseen=wrong))
        engine.held = replace(held, state=bad)
        saved = optimiser.state_dict()
        engine.held = held
        with pytest.raises(kl.CheckpointError, match=r"damaged|moments|fallback|does not fit"):
            optimiser.load_state_dict(saved)
        assert optimiser._engine is engine and engine.held is held


def test_autocast_inside_forward_is_no_such_use():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.two(torch.tanh(self.one(x)))

    torch.manual_seed(0)
    x = torch.randn(128, 8)
    optimiser = kl.KFAC(Half())
    losses = [float(optimiser.step(x, x[:, :3].argmax(1)).loss) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    assert all(v.dtype == torch.float32 for v in optimiser._engine.store.current.values())


def test_weights_in_bfloat16_have_factors_in_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).bfloat16()
    x = torch.randn(128, 8).bfloat16()
    optimiser = kl.KFAC(model)
    losses = [float(optimiser.step(x, x[:, :3].argmax(1)).loss) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert all(v.dtype == torch.float32 for v in optimiser._engine.store.current.values())
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


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
