"""In a single process both parts are what they stand for: the inner structure, and nothing."""

import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ddp_scenarios import network, numbers, run_of
from kfac_lab_ddp import Distributed, Sharded, ShardedFactors, collective, sharded

import kfac_lab as kl
from kfac_lab.core import linalg

pytestmark = pytest.mark.filterwarnings("ignore:a batch of:UserWarning")


@pytest.fixture
def group_of_one():
    """torch.distributed with this process alone in it."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{Path(folder) / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def after(steps=9, **parts):
    run = run_of(1, **parts).advance(steps)
    return numbers(run.stepper, run.history)


def same_bits(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(a.nan_to_num(7.0), other[key].nan_to_num(7.0)) for key, a in one.items()
    )


def test_the_entry_point_registers_both():
    assert kl.lab.entry("collective", "distributed").owner == "kfac-lab-ddp"
    recipe = kl.Recipe.of("paper").replace(
        collective="distributed(bucket=8)", structure="sharded(inner='block_tridiagonal')"
    )
    assert recipe["collective"] == Distributed(8)
    assert recipe["structure"] == Sharded("block_tridiagonal")


@pytest.mark.parametrize("inner", ["block_diagonal", "block_tridiagonal"])
def test_without_a_process_group(inner):
    alone = after(collective="single_process", structure=inner)
    assert same_bits(after(structure=f"sharded(inner={inner!r})"), alone)


@pytest.mark.parametrize("inner", ["block_diagonal", "block_tridiagonal"])
def test_with_a_process_group_of_one(inner, group_of_one):
    assert (Distributed().rank, Distributed().size) == (0, 1)
    alone = after(collective="single_process", structure=inner)
    assert same_bits(after(structure=f"sharded(inner={inner!r})"), alone)


def test_messages_to_nobody():
    tensor = torch.arange(3.0)
    Distributed().mean_([tensor])
    Distributed().broadcast_([tensor], 0)
    assert tensor.tolist() == [0.0, 1.0, 2.0]


def test_the_low_rank_products_are_the_inner_structures():
    assert not Sharded().traits.by_case and Sharded("block_diagonal(low_rank=True)").traits.by_case
    parts = {"estimator": "sampled(fraction=1.0)", "batch": "constant(size=4)"}

    def deltas(structure):
        torch.manual_seed(0)
        x, y = torch.randn(4, 6).double(), torch.rand(4, 3).double()
        problem = kl.Problem(model=network(), likelihood="bernoulli", inputs=x, targets=y)
        recipe = kl.Recipe.of("paper").replace(structure=structure, **parts)
        return kl.Run(problem, recipe, device="cpu").advance(3).stepper.state_.previous

    ours = deltas("sharded(inner='block_diagonal(low_rank=True)')")
    theirs = deltas("block_diagonal(low_rank=True)")
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ("nonsense", "there is no structure 'nonsense'"),
        ("sharded", "is shared out already"),
        ("block_tridiagonal(sigma='no')", "sigma='no'"),
    ],
)
def test_an_inner_structure_that_is_none(inner, said):
    with pytest.raises(kl.RecipeError, match=said.replace("(", r"\(")):
        kl.Recipe.of("paper").replace(structure=f"sharded(inner={inner!r})")


# --- who builds what ------------------------------------------------------------------------------


def owners(costs, size):
    class Of(Distributed):
        pass

    Of.size = size
    return Of().owner(list("abcdefgh")[: len(costs)], costs)


def test_costs_are_balanced_greedily():
    assert owners([8.0, 7.0, 6.0, 5.0, 4.0], 2) == [0, 1, 1, 0, 0]  # 17 and 13
    assert owners([1.0, 100.0, 1.0, 1.0], 2) == [1, 0, 1, 1]
    assert owners([3.0, 3.0, 3.0], 3) == [0, 1, 2]
    assert owners([3.0], 3) == [0] and owners([], 2) == []
    assert owners([2.0, 1.0], 1) == [0, 0]


def test_no_process_has_more_than_its_share_and_one_item():
    generator = torch.Generator().manual_seed(0)
    for n in range(20):
        costs = torch.rand(3 + n % 6, generator=generator).tolist()
        for size in (1, 2, 3, 5):
            found = owners(costs, size)
            loads = [
                sum(c for c, o in zip(costs, found, strict=True) if o == r) for r in range(size)
            ]
            assert max(loads) <= sum(costs) / size + max(costs)


# --- messages -------------------------------------------------------------------------------------


def held_elsewhere():
    """A tensor, and what holds it besides, out of Python's sight: a graph that saved it."""
    message = torch.ones(3)
    return message, [torch.ones(3, requires_grad=True) * message]


@pytest.mark.parametrize(("waits", "least", "most"), [(True, 0.15, 0.9), (False, 0.0, 0.1)])
def test_a_message_is_waited_for_where_torch_needs_it(monkeypatch, waits, least, most):
    monkeypatch.setattr(collective, "JOINS_WITH_LOCK", waits)
    message, holders = held_elsewhere()
    threading.Timer(0.2, holders.clear).start()
    start = time.monotonic()
    collective.let_go(message)
    assert least <= time.monotonic() - start <= most
    assert message._use_count() == (1 if waits else 2)


def test_a_message_that_somebody_keeps_is_not_waited_for_long(monkeypatch):
    monkeypatch.setattr(collective, "JOINS_WITH_LOCK", True)
    message, holders = held_elsewhere()
    start = time.monotonic()
    collective.let_go(message)
    assert 0.9 < time.monotonic() - start < 3.0 and holders


# --- no device is assumed -------------------------------------------------------------------------


@pytest.mark.parametrize("shared_out", [False, True])
def test_whole_steps_on_the_meta_device(monkeypatch, shared_out):
    """With ``shared_out`` the way of several processes is taken, by one that owns everything."""

    def canned(tensors):
        assert all(t.device.type == "meta" and t.dim() == 0 for t in tensors)
        return [1.0 if not t.dtype.is_floating_point or n else 0.0 for n, t in enumerate(tensors)]

    monkeypatch.setattr(linalg.reading, "transfer", canned)
    if shared_out:
        monkeypatch.setattr(Sharded, "alone", lambda self: False)
        # every status is good, and so is the first, which the engine's canned answer says is 0
        monkeypatch.setattr(linalg.Attempt, "failed", lambda self, values: ())
    run = run_of(1)
    problem = run.problem
    problem.model.to("meta")
    problem.inputs, problem.targets = problem.inputs.to("meta"), problem.targets.to("meta")
    recipe = run.recipe.replace(structure="sharded")
    stepper = recipe["method"].attach(problem, recipe, 0)
    for _ in range(7):
        stepper.step()
    assert isinstance(stepper.state_.factored, ShardedFactors) == shared_out
    assert all(t.device.type == "meta" for t in stepper._theta)


def test_the_way_of_several_processes_gives_what_one_gives(monkeypatch):
    alone = after(structure="block_tridiagonal")
    monkeypatch.setattr(Sharded, "alone", lambda self: False)
    assert same_bits(after(structure="sharded(inner='block_tridiagonal')"), alone)


def test_a_process_builds_its_own_share_and_no_more(monkeypatch):
    """Of costs 3, 1, 2 the second of two processes has the last two."""
    monkeypatch.setattr(Distributed, "size", 2)
    monkeypatch.setattr(Distributed, "rank", 1)
    handed = {}

    def exchanged(collective, owners, mine, known, told, device):
        handed.update(mine)
        return [None] * len(owners), []

    monkeypatch.setattr(sharded, "exchanged", exchanged)
    built = []

    def work(i):
        built.append(i)
        return f"result {i}"

    sharded._shared_out("abc", [3.0, 1.0, 2.0], work, [None] * 3, torch.device("cpu"))
    assert built == [1, 2]
    assert handed == {1: "result 1", 2: "result 2"}
