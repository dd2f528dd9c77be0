"""Several processes as one: threads stand in for processes, a barrier for the network.

They compute one at a time, since forward mode is no matter of several threads in torch.

Everything is in float64, so that P shares of a batch must give what the whole batch gives to
rounding, through refreshes, the search of γ and the adaptation of λ.
"""

import threading
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.core.passes import subset
from kfac_lab.core.problem import Drawn
from kfac_lab.engine import attach

pytestmark = pytest.mark.filterwarnings("ignore:a batch of:UserWarning")
STEPS = 9  # with refreshes at 1, 2, 4 and 8
CASES = 48


class Wire:
    """What connects the threads: each lays its tensors down and takes what all have laid down."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=30)
        self.turn = threading.Lock()
        self.laid: list[Any] = [None] * size

    def exchange(self, rank: int, tensors):
        self.laid[rank] = [t.clone() for t in tensors]
        self.turn.release()
        try:
            self.barrier.wait()
            everything = list(self.laid)
            self.barrier.wait()
        finally:
            self.turn.acquire()
        return everything


@dataclass(frozen=True)
class Threads:
    wire: Wire = field(compare=False)
    rank: int

    @property
    def size(self):
        return self.wire.size

    def mean_(self, tensors):
        everything = self.wire.exchange(self.rank, tensors)
        for tensor, *others in zip(tensors, *everything, strict=True):
            tensor.copy_(sum(others) / self.size)

    def owner(self, keys, costs):
        return [0] * len(keys)

    def broadcast_(self, tensors, owner):
        for tensor, sent in zip(
            tensors, self.wire.exchange(self.rank, tensors)[owner], strict=True
        ):
            tensor.copy_(sent)


class Alone(Threads):
    """Calls itself one of several, and never averages: for the negative control."""

    def mean_(self, tensors):
        self.wire.exchange(self.rank, tensors)


def data():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(CASES, 6, generator=generator, dtype=torch.float64)
    return x, (torch.rand(CASES, 3, generator=generator) < 0.4).double()


def network(kind: str = "plain", seed: int = 0):
    torch.manual_seed(seed)
    middle = {
        "plain": [nn.Tanh()],
        "generic": [nn.LayerNorm(5), nn.Tanh()],
        "dropout": [nn.Tanh(), nn.Dropout(0.5)],
        "buffers": [nn.BatchNorm1d(5), nn.Tanh()],
    }[kind]
    return nn.Sequential(nn.Linear(6, 5), *middle, nn.Linear(5, 3)).double()


def problem_of(kind="plain", seed=0):
    x, y = data()
    return kl.Problem(
        model=network(kind, seed), likelihood="bernoulli", inputs=x, targets=y, l2=1e-3
    )


RECIPE = kl.Recipe.of("paper").replace(
    estimator="sampled(fraction=0.5)",
    quadratic_model="exact_fisher(fraction=0.5)",
    damping="levenberg_marquardt(lam=1.0)",
    schedule="periodic(T1=2, T2=4, T3=4, burn_in=2)",
    batch="constant(size=32)",
)


class With:
    """A recipe whose collective is an object made here."""

    def __init__(self, recipe, collective):
        self._recipe, self._collective = recipe, collective

    def __getitem__(self, slot):
        return self._collective if slot == "collective" else self._recipe[slot]

    def __getattr__(self, name):
        return getattr(self._recipe, name)


def trained(recipe, size, kind="plain", collective=Threads, seeds=None, drawn=None, steps=STEPS):
    """Engines and records of ``size`` threads; of one without a collective where size is 1."""
    if size == 1:
        engine = attach(problem_of(kind), recipe, 0)
        return [engine], [[engine.step() for _ in range(steps)]]
    wire, engines, records, errors = Wire(size), [None] * size, [[] for _ in range(size)], []

    def work(rank):
        with wire.turn:
            try:
                problem = problem_of(kind, seeds[rank] if seeds else 0)
                engine = attach(problem, With(recipe, collective(wire, rank)), 0)
                for _ in range(steps):
                    made = engine.step() if drawn is None else engine.step_on(drawn(rank))
                    records[rank].append(made)
                engines[rank] = engine
            except BaseException as error:
                errors.append(error)
                wire.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    real = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
    if real or errors:
        raise (real or errors)[0]
    return engines, records


def numbers(engine, records):
    """Everything that a run is, as one flat list of float64 tensors."""
    r = [
        torch.stack([torch.as_tensor(getattr(x, n), dtype=torch.float64) for x in records])
        for n in ("loss", "error", "alpha", "mu", "lam", "gamma", "rho", "predicted")
    ]
    state = engine.state_
    part_states = [
        v for part_state in state.block_states for v in part_state.values() if torch.is_tensor(v)
    ]
    return [*engine._theta, *state.previous, *engine.store.current.values(), *part_states, *r]


def apart(one, other):
    """The largest relative difference; NaN stands only against NaN."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        a, b = a.nan_to_num(0.0), b.nan_to_num(0.0)
        worst = max(worst, float((a - b).abs().max() / (1e-3 + b.abs().max())))
    return worst


VARIED = {
    "the paper's": {},
    "tridiagonal": {"structure": "block_tridiagonal"},
    "conjugate gradient": {"momentum": "conjugate_gradient(steps=3)"},
    "a block with a part_state": {"block": "diagonal"},
    "sketched factors": {"block": "kronecker(factor_a='lowrank_plus_diagonal', rank=2)"},
    "approximate model": {"quadratic_model": "approximate_fisher"},
    "exact": {"estimator": "exact(fraction=0.5)"},
    # S1 as it is at least, which has to be a multiple of the processes
    "steered": {"damping": "steered(lam=1.0)", "estimator": "sampled(fraction=0.1, minimum=8)"},
}


@pytest.mark.parametrize("name", VARIED)
def test_shares_of_a_batch_make_the_whole_batch(name):
    recipe = RECIPE.replace(**VARIED[name])
    (single,), (record,) = trained(recipe, 1)
    expected = numbers(single, record)
    for size in (2, 4):
        engines, records = trained(recipe, size)
        for engine, own in zip(engines, records, strict=True):
            assert apart(numbers(engine, own), expected) < 1e-7
            assert [r.batch for r in own] == [32] * STEPS
            assert all(map(torch.equal, engine._theta, engines[0]._theta))


def test_the_generic_path():
    recipe = RECIPE.replace(fallback="identity")
    (single,), (record,) = trained(recipe, 1, "generic")
    engines, records = trained(recipe, 2, "generic")
    assert single.passes.plan is None
    assert apart(numbers(engines[1], records[1]), numbers(single, record)) < 1e-7


def test_batches_that_the_user_hands_over_are_shares_already():
    """Every second case is one process's: the whole batch is theirs in turn."""
    x, y = data()
    full = RECIPE.replace(
        estimator="sampled(fraction=1.0)", quadratic_model="exact_fisher(fraction=1.0)"
    )
    single = attach(problem_of(), full, 0)
    record = [single.step_on(Drawn(x, y, None)) for _ in range(STEPS)]
    engines, records = trained(full, 2, drawn=lambda r: Drawn(x[r::2], y[r::2], None))
    assert apart(numbers(engines[0], records[0]), numbers(single, record)) < 1e-7


def test_without_averaging_they_differ():
    """The negative control: the comparison above can fail."""
    (single,), (record,) = trained(RECIPE, 1, steps=2)
    engines, records = trained(RECIPE, 2, collective=Alone, steps=2)
    first, second = (numbers(*pair) for pair in zip(engines, records, strict=True))
    assert apart(first, second) > 1e-3
    assert apart(first, numbers(single, record)) > 1e-3


def test_rows_of_another_share_make_a_difference(monkeypatch):
    """Both take the first one's uniforms: what is compared above depends on the slices."""
    (single,), (record,) = trained(RECIPE, 1, steps=2)
    uniforms = kl.core.passes.Passes.uniforms

    def wrong(self, *args):
        place = self._place
        self._place = lambda: place()._replace(rank=0)
        try:
            return uniforms(self, *args)
        finally:
            self._place = place

    monkeypatch.setattr(kl.core.passes.Passes, "uniforms", wrong)
    engines, records = trained(RECIPE, 2, steps=2)
    assert apart(numbers(engines[0], records[0]), numbers(single, record)) > 1e-4


def test_all_start_where_the_first_starts():
    engines, records = trained(RECIPE, 2, seeds=[0, 7], steps=2)
    (single,), (record,) = trained(RECIPE, 1, steps=2)
    assert apart(numbers(engines[1], records[1]), numbers(single, record)) < 1e-9


@pytest.mark.parametrize("kind", ["dropout", "buffers"])
def test_what_each_has_of_its_own_leaves_them_together(kind):
    """Masks of their own, and normalisation by their own cases: θ and buffers stay the same."""
    engines, _ = trained(RECIPE.replace(fallback="identity"), 2, kind, steps=5)
    one, other = (engine.problem.model.state_dict() for engine in engines)
    assert all(torch.equal(one[key], other[key]) for key in one)
    masks = []
    for engine in engines:
        with engine.passes.function.mask(1, 0, torch.device("cpu")):
            masks.append(torch.rand(4))
    assert not torch.equal(*masks)


def test_cases_that_do_not_divide_are_left_out():
    recipe = RECIPE.replace(batch="constant(size=33)")
    _, records = trained(recipe, 2, steps=1)
    assert records[0][0].batch == 32
    with pytest.raises(kl.RecipeError, match="a batch of 1 has no case for each of 2 processes"):
        trained(RECIPE.replace(batch="constant(size=1)"), 2, steps=1)


def test_shares_of_the_rows_that_serve():
    estimator = RECIPE["estimator"]
    assert [subset(estimator, 32 // p, p) for p in (1, 2, 4)] == [16, 8, 4]
    assert subset(estimator, 3, 2) == 2  # 3 of 6 cases are no whole number for each of two
    least = replace(estimator, fraction=0.1, minimum=1000)
    assert subset(least, 1500, 2) == 500 and subset(least, 400, 2) == 400


def test_what_a_collective_says_may_change_where_it_is_a_property():
    from dataclasses import dataclass

    from kfac_lab.core.traits import CollectiveTraits, traits
    from kfac_lab.paper.averaging import SingleProcess

    processes = [1]

    @dataclass(frozen=True)
    class Group(SingleProcess):
        @property
        def size(self):
            return processes[0]

    group, alone = Group(), SingleProcess()
    assert traits(group, CollectiveTraits).size == 1
    processes[0] = 2
    assert traits(group, CollectiveTraits).size == 2
    assert traits(alone, CollectiveTraits) is traits(alone, CollectiveTraits)
