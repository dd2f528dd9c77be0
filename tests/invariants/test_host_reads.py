"""The synchronisation budget: a steady step reads nothing, a refresh reads once, through the door.

On the CPU, where a read costs nothing, every step also looks at its own flag: one call more.
"""

import pytest
import torch
from devices import here

import kfac_lab as kl
from invariants.grid import ALL, KFAC, PARTS, SOAK, recipe_named
from invariants.helpers import network, problem_of
from invariants.reads import Read, no_reads
from kfac_lab import engine as engines
from kfac_lab.core import linalg

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def classifier():
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    return kl.Problem(
        model=network("explicit"), likelihood="categorical", inputs=x, targets=torch.arange(24) % 4
    )


PROBLEMS = {
    "bernoulli": problem_of,
    "categorical": classifier,
    "gaussian": lambda: problem_of(likelihood="gaussian"),
}


#: ε is at its limit from the second step on; until it is, an accelerator's step looks at its flags
#: first, since ε goes by how many updates there were
STEADY = "sampled(limit=0.5)"


def attached(problem, recipe, seed):
    """An engine whose steps are made call by call: to record one and to try it reads."""
    return engines.attach(problem, recipe, seed, graphs=False)


def steps(engine, count):
    """Records of the steps that follow, each with the reads it made."""
    seen = []
    with no_reads() as calls:
        for _ in range(count):
            before = len(calls)
            record = engine.step()
            seen.append((record, len(calls) - before))
    return seen


def settling(engine):
    """Whether the next update's ε is not known for sure: a step that nobody has looked at may have
    made none."""
    state, decay = engine.state_, engine.parts["estimator"].decay
    unread = sum(step.fresh for step in state.pending)
    return len({decay(state.updates + 1 - lost) for lost in range(unread + 1)}) > 1


def allowed(engine, record):
    """How many reads a step may make where none of its factors failed."""
    check = getattr(engine.parts["schedule"], "check", None)
    looks = isinstance(check, int) and record.step % check == 0  # at the drift
    steered = (
        getattr(engine.parts["damping"], "steps", 0)
        if "retry" in dir(engine.parts["damping"])
        else 0
    )
    tries = len(record.candidates) if record.step <= steered else 1
    # A try of a steered step is read twice: the flags, and what the reduction was.
    refresh = (2 * tries if steered else 1) if record.due.inverse else 0
    return refresh + looks


@pytest.fixture
def crossed(monkeypatch):
    """What is copied to the device: a Python number made a tensor by as_tensor crosses over from
    pageable memory, and waits.
    """
    found = []
    for maker in ("as_tensor", "tensor"):
        work = getattr(torch, maker)

        def making(data, *args, work=work, **kwargs):
            if not isinstance(data, torch.Tensor):
                found.append(data)
            return work(data, *args, **kwargs)

        monkeypatch.setattr(torch, maker, making)
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.soak) if n in SOAK else n for n in ALL]
)
def test_every_recipe_and_part_keeps_to_the_budget(name, crossed):
    """And a steady step copies no number to the device."""
    keeps_to_the_budget(name, crossed, free=False)


#: where a read is free an engine looks otherwise, its parts do not: the recipes, and a part a slot
TELLING = [*KFAC, *(f"{slot}={texts[0]}" for slot, texts in PARTS.items()), "damping=steered"]
FREE = [name for name in ALL if name in TELLING]


def test_they_are_of_the_grid():
    """By another name, where two slots' first parts make one recipe."""
    there, wanted = ({recipe_named(n).text() for n in names} for names in (FREE, TELLING))
    assert there == wanted


@pytest.mark.parametrize(
    "name", [n if n in FREE else pytest.param(n, marks=pytest.mark.soak) for n in ALL]
)
def test_also_where_a_read_is_free(name, crossed):
    keeps_to_the_budget(name, crossed, free=True)


def keeps_to_the_budget(name, crossed, free):
    engine = attached(problem_of(), recipe_named(name), 0)
    engine._reads_are_free = free
    guarded = bool(engine.parts.declares("damping").guard)
    with no_reads() as calls:
        for k in range(1, 7):  # refreshes with and without γ; steady ones with and without λ
            first, before = settling(engine), len(calls)
            crossed.clear()
            record = engine.step()
            assert record.due.inverse or crossed == []
            assert not (first and free)
            # where a read is free a guard looks before the search, and the step at its flag
            own = first + free * (2 if guarded and k > 1 else 1)
            assert len(calls) - before <= allowed(engine, record) + own, record.due


def test_epsilon_is_settled_after_its_burn_in():
    """With paper's estimator from step 21 on: then a steady step reads nothing."""
    engine = attached(problem_of(), recipe_named("paper"), 0)
    engine._reads_are_free = False
    found = [(settling(engine), steps(engine, 1)[0]) for _ in range(30)]
    assert all(reads == record.due.inverse for first, (record, reads) in found if not first)
    assert not any(first for first, _ in found[22:])
    assert any(first for first, _ in found)


@pytest.mark.parametrize("likelihood", PROBLEMS)
@pytest.mark.parametrize("structure", ["block_diagonal", "block_tridiagonal"])
def test_a_steady_step_reads_nothing(structure, likelihood):
    """λ adapts on steady steps too."""
    schedule = "periodic(T1=2, T2=4, T3=4, burn_in=1)"
    recipe = recipe_named("paper").replace(structure=structure, schedule=schedule, estimator=STEADY)
    for free in (True, False):
        engine = attached(PROBLEMS[likelihood](), recipe, 0)
        engine._reads_are_free = free
        found = steps(engine, 8)
        steady = [(r.due, n) for r, n in found if not r.due.inverse]
        assert [due.lam for due, _ in steady] == [True, False, False, True, False]
        assert {n for _, n in steady} == {int(free)}
        refreshes = [(r.due, n) for r, n in found if r.due.inverse]
        assert {n for _, n in refreshes} == {1 + free}
        assert refreshes[-1][0].gamma  # three candidates, one read


def test_a_steady_step_of_the_generic_path_reads_nothing():
    recipe = recipe_named("paper").replace(
        schedule="periodic(T1=2, T2=4, T3=4, burn_in=1)", fallback="diagonal", estimator=STEADY
    )
    for free in (True, False):
        engine = attached(problem_of("generic"), recipe, 0)
        engine._reads_are_free = free
        for record, reads in steps(engine, 8):
            assert reads == free + record.due.inverse


def test_a_drift_is_read_on_its_check_steps_alone_and_with_the_flags():
    engine = attached(
        problem_of(), recipe_named("schedule=on_drift(check=2)").replace(estimator=STEADY), 0
    )
    engine._reads_are_free = False
    engine.step()
    for _ in range(2):
        engine.step()  # burn-in
    for k in range(4, 12):
        pending = len(engine.state_.pending)
        with no_reads() as calls:
            record = engine.step()
        if k % 2:
            assert calls == []
        else:
            assert calls[0] == 1 + pending  # the drift, and the steps since the last look
            assert len(calls) == 1 + record.due.inverse


@pytest.mark.parametrize("method", ["nag", "adam", "muon"])
def test_baselines_read_their_objective_alone(method):
    recipe = kl.Recipe.of(f"method = {method}\nbatch = constant(size=16)\naverage = polyak")
    stepper = recipe["method"].attach(problem_of(), recipe, 0)
    stepper.step()
    for _ in range(3):
        with no_reads() as calls:
            stepper.step()
        assert calls == ([1] if here().type == "cpu" else [])  # an accelerator waits for none


# --- the ban itself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reading",
    [
        lambda t: t.sum().item(),
        lambda t: t.tolist(),
        lambda t: bool(t.sum() > 0),
        lambda t: float(t[0]),
        lambda t: int(t[0]),
        lambda t: t.numpy(),
        lambda t: t.cpu(),
        lambda t: t[t > 0],
        lambda t: torch.nonzero(t),
        lambda t: torch.equal(t, t),
        lambda t: torch.unique(t),
        lambda t: torch.masked_select(t, t > 0),
        lambda t: torch.add(t, t, alpha=t[0]),
        lambda t: torch.multinomial(t.abs(), 1),
        lambda t: [0, 1][(t.sum() > 0).long()],
        lambda t: 1.0 in t,
        lambda t: torch.linalg.solve(torch.diag(t), t),
    ],
)
def test_the_ban_catches(reading):
    tensor = torch.arange(1.0, 4.0)
    with no_reads() as calls:
        with pytest.raises((Read, TypeError)):
            reading(tensor)
        assert linalg.host([tensor[0], tensor[1]]) == [1.0, 2.0]
    assert calls == [2]
