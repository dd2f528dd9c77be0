"""A refresh spread over steps: against an oracle that keeps old inverses, and over every boundary.

The oracle is Algorithm 2 in dense float64 matrices (tests/oracles/trajectory.py): with ``spread``
it inverts the moments of the step at which a refresh is due and takes that inverse into use later.
"""

import dataclasses
import functools

import pytest
import torch

import kfac_lab as kl
from engine import helpers
from engine.helpers import STRUCTURES, close
from engine.test_trajectory import STEPS, Case, compare
from kfac_lab.engine.building import shares
from kfac_lab.paper.kronecker import Kronecker

PERIODIC = "periodic(T1=5, T2=10, T3=10, burn_in=3)"


def staggered(spread, text=PERIODIC):
    return text.replace("periodic(", "staggered(").replace(")", f", spread={spread})")


def problem():
    """90 cases and four layers."""
    net, x, y = helpers.problem("bernoulli", (8, 7, 6, 5, 8), count=90, seed=1)
    model = helpers.module_of(net)
    return kl.Problem(model=model, likelihood="bernoulli", inputs=x, targets=y, l2=1e-5)


def run_of(schedule, recipe="paper", graphs=False, **slots):
    slots = {"batch": "constant(size=60)", "schedule": schedule, **slots}
    made = kl.Recipe.named(recipe).replace(**slots)
    return kl.Run(problem(), made, seed=0, graphs=graphs)


def theta(run):
    return [p.detach().clone() for p in run.problem.model.parameters()]


def same(one, other):
    return all(map(torch.equal, theta(one), theta(other)))


def refreshes(run, steps):
    found = []
    for _ in range(steps):
        run.advance(1)
        if run.stepper.record.due.inverse:
            found.append(run.step)
    return found


def spread_case(spread):
    return Case(
        "bernoulli",
        (6, 5, 4, 3, 4, 5),
        seed=1,
        oracle={"T1": 5, "T2": 20, "T3": 10, "burn_in": 3, "spread": spread},
        slots={"schedule": staggered(spread, "periodic(T1=5, T2=20, T3=10, burn_in=3)")},
    )


@functools.cache
def oracles_at_once(structure):
    """Where θ ends where each refresh is in use at its own step."""
    case = spread_case(1)
    net, x, y = case.make()
    return case.run(net, x, y, structure)[-1]["theta_after"]


#: each spread with one structure, in turns; with the other one in `make soak`
SPREADS = [
    pytest.param(spread, structure, marks=[] if n % 2 == m else pytest.mark.soak)
    for n, spread in enumerate((2, 4, 10))
    for m, structure in enumerate(STRUCTURES)
]


@pytest.mark.parametrize(("spread", "structure"), SPREADS)
def test_it_is_the_oracles_that_keeps_old_inverses(structure, spread):
    """θ, h, λ, γ, ρ, α, μ and q of every step; γ is searched at every other refresh."""
    case = spread_case(spread)
    net, x, y = case.make()
    expected = case.run(net, x, y, structure)
    ends = [k + spread - 1 for k in (10, 20, 30, 40) if k + spread - 1 <= STEPS]
    assert [s["k"] for s in expected if s["refreshed"]] == [1, 2, 3, *ends]
    assert [s["k"] for s in expected if len(s["candidates"]) == 3] == ends[1::2]
    compare(case, expected, case.engine(net, x, y, structure), lambda engine: engine.step())
    at_once = oracles_at_once(structure)
    assert (at_once - expected[-1]["theta_after"]).abs().max() > 1e-4


@pytest.mark.parametrize("recipe", ["paper", "robust", "paper_tridiagonal", "small_batch"])
def test_a_spread_of_one_is_the_schedule_it_is_made_of(recipe):
    one, other = run_of(PERIODIC, recipe), run_of(staggered(1), recipe)
    one.advance(22), other.advance(22)
    assert same(one, other)


def test_a_refresh_is_in_use_so_many_steps_later_and_forced_ones_at_once():
    run = run_of(staggered(4))
    assert refreshes(run, 25) == [1, 2, 3, 13, 23]
    assert run.stepper.state_.build is None
    run.advance(6)
    assert (run.stepper.state_.build.begun, run.stepper.state_.build.ends) == (30, 33)
    run.swap(block="kronecker(pi='one')")
    assert refreshes(run, 14) == [32, 43]


def test_a_schedule_without_spread_drops_the_refresh_under_way():
    run = run_of(staggered(6))
    run.advance(12)
    assert run.stepper.state_.build is not None
    run.swap(schedule="periodic(T1=5, T2=7, T3=7, burn_in=3)")
    assert refreshes(run, 3) == [14]
    assert run.stepper.state_.build is None


@functools.cache
def whole_run(recipe):
    run = run_of(staggered(4), recipe)
    run.advance(16)
    return run


#: after each share of a refresh, and with a chain after one in the midst; the others in `make soak`
MIDST = [
    pytest.param(k, recipe, marks=pytest.mark.soak if recipe != "paper" and k != 12 else [])
    for k in (10, 11, 12, 13)
    for recipe in ("paper", "paper_tridiagonal")
]


@pytest.mark.parametrize(("k", "recipe"), MIDST)
def test_saved_and_rewound_in_the_midst_it_goes_on_bit_for_bit(recipe, k, tmp_path):
    whole = whole_run(recipe)
    run = run_of(staggered(4), recipe)
    run.advance(k)
    run.save(tmp_path / "run.pt")
    fork = run.fork()
    loaded = kl.Run.load(tmp_path / "run.pt", problem=problem())
    run.advance(4)
    run.rewind(k)
    for each in (run, fork, loaded):
        each.advance(16 - k)
        assert same(whole, each)


def test_a_program_replays_the_steps_between_and_the_one_that_takes_it_into_use():
    one, other = run_of(staggered(4)), run_of(staggered(4), graphs=True)
    one.advance(60), other.advance(60)
    assert same(one, other)
    programs = other.stepper.programs
    assert not programs.refusals
    replayed = programs.replayed
    assert refreshes(other, 4)[0] == 63
    assert programs.replayed == replayed + 4


def test_a_preconditioner_spreads_its_refresh_too():
    def trained(schedule):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
        x, y = torch.randn(40, 5), torch.randint(3, (40,))
        recipe = kl.Recipe.named("amortised").replace(schedule=schedule)
        outer = torch.optim.SGD(model.parameters(), lr=0.05)
        own = kl.Preconditioner(model, recipe=recipe, likelihood="categorical")
        found = []
        for _ in range(16):
            outer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            own.step()
            outer.step()
            found.append(own._engine.record.due.inverse)
        return [p.detach().clone() for p in model.parameters()], found

    text = "periodic(T1=5, T2=5, T3=5, burn_in=3)"
    plain, at = trained(text)
    one, same_at = trained(staggered(1, text))
    assert all(map(torch.equal, plain, one)) and at == same_at
    later, at = trained(staggered(3, text))
    assert [k for k, due in enumerate(at, 1) if due] == [1, 2, 3, 7, 12]
    assert not all(map(torch.equal, plain, later))


def test_what_cannot_be_built_is_made_anew_of_the_same_moments():
    """A share that fails is told by the read of the last step, which makes all of it again."""
    run = run_of(staggered(4), damping="constant(lam=1.0)")
    plain = run_of(staggered(4), damping="constant(lam=1.0)")
    run.advance(12), plain.advance(12)
    build = run.stepper.state_.build
    assert build.inverses
    held = run.stepper.held
    bad = tuple(torch.zeros_like(s) for s in build.sound)
    state = dataclasses.replace(held.state, build=dataclasses.replace(build, sound=bad))
    run.stepper.held = dataclasses.replace(held, state=state)
    run.advance(1), plain.advance(1)
    assert run.stepper.record.due.inverse and run.stepper.state_.build is None
    assert same(run, plain)


def guarded(graphs, cut=None):
    """A loop whose targets are thirty times as large now and then; θ, and where the guard acted."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    schedule = "staggered(T1=5, T2=5, T3=5, burn_in=2, spread=3)"
    recipe = kl.Recipe.named("robust").replace(schedule=schedule)
    opt = kl.KFAC(model, "gaussian", recipe, graphs=graphs)
    found = []
    for k in range(1, 33):
        x, noise = torch.randn(60, 6, generator=generator), torch.randn(60, 3, generator=generator)
        y = 0.3 * noise + x[:, :3]
        y = 30 * y if torch.rand((), generator=generator) < 0.25 else y
        record = opt.step(x, y)
        if record.taken_back:
            found.append((opt._engine.state_.build is not None, record.due.inverse))
        if k == cut:
            state, opt = opt.state_dict(), kl.KFAC(model, "gaussian", recipe, graphs=graphs)
            opt.load_state_dict(state)
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]), found


def test_a_step_is_taken_back_in_the_midst_and_where_it_would_be_taken_into_use():
    whole, found = guarded(False)
    assert {(True, False), (False, True), (False, False)} <= set(found)
    assert torch.equal(whole, guarded(True)[0])
    assert torch.equal(whole, guarded(False, cut=6)[0])


def test_a_block_whose_memory_changes_is_refreshed_at_once():
    class Remembering(Kronecker):
        def factorise(self, moments, part_state):
            found, _ = super().factorise(moments, part_state)
            return found, {"times": part_state.get("times", 0) + 1}

    run = run_of(staggered(4), block=Remembering())
    run.advance(10)
    with pytest.warns(UserWarning, match="cannot be spread over steps and is made at once"):
        assert refreshes(run, 12) == [11, 21]


def test_the_shares_cost_as_little_as_they_can():
    assert shares((1.0, 1.0, 1.0, 1.0), 2) == [2, 4]
    assert shares((5.0, 1.0, 1.0, 3.0, 2.0), 3) == [1, 4, 5]
    assert shares((5.0, 1.0), 4) == [1, 2, 2, 2]
    assert shares((8.0,), 3) == [1, 1, 1]


def test_spread_must_fit_the_period():
    with pytest.raises(kl.RecipeError, match="spread=30 must not be above T3=20"):
        run_of("staggered(spread=30)")


class Stream:
    """What a CUDA stream is asked, noted; the work itself is done as it comes."""

    def __init__(self):
        self.said = []

    def __enter__(self):
        self.said.append("begin")

    def __exit__(self, *error):
        self.said.append("end")

    def __call__(self):
        return self

    def wait(self):
        self.said.append("wait")


def test_on_a_stream_of_its_own_all_is_begun_first_and_waited_for_last(tmp_path):
    plain, run = run_of(staggered(5)), run_of(staggered(5))
    run.stepper.side = stream = Stream()
    run.advance(10)
    assert stream.said == []
    run.advance(1)
    assert stream.said == ["begin", "end"]
    run.advance(2)
    assert stream.said == ["begin", "end"]
    run.stepper.state()  # what is read is complete
    assert stream.said == ["begin", "end", "wait"]
    run.advance(1)
    assert stream.said == ["begin", "end", "wait", "wait"]
    run.advance(8), plain.advance(22)
    assert same(run, plain)


def in_float64(device):
    """Digits with float64 parameters on a device."""
    problem = kl.problems.PROBLEMS["digits"].function(seed=0, device=device)
    return kl.Problem(
        model=problem.model.double(),
        likelihood=problem.likelihood,
        inputs=problem.inputs.double(),
        targets=problem.targets.double(),
    )


def test_an_accelerator_overlaps_and_gives_the_same_numbers(accelerator):
    made = kl.Recipe.named("paper").replace(batch="constant(size=60)", schedule=staggered(5))
    there, here = (
        kl.Run(in_float64(device), made, seed=0) for device in (accelerator, torch.device("cpu"))
    )
    there.advance(26), here.advance(26)
    for one, other in zip(theta(there), theta(here), strict=True):
        close(one.cpu(), other, 1e-8)
