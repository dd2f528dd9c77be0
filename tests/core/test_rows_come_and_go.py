"""Rows that come and go by the batch, and networks that take no fewer cases."""

import pytest
import torch
from core.row_models import engine_of, factors
from torch import nn

import kfac_lab as kl
from kfac_lab.core import moments as moments_module
from kfac_lab.core.problem import Drawn
from kfac_lab.core.rows import UnassignedRows

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
