"""Randomness is a function of (seed, purpose, step): every way to go on gives the same run."""

import sys

import pytest
import torch
import warm
from devices import here

import kfac_lab as kl
from invariants.helpers import numbers, problem_of, recipe_of, run_of, same, same_run, state_of

# Recipes as they are, with a batch that fits; T3 and T1 are crossed within the steps made.
KFAC = ["paper", "paper_tridiagonal", "no_momentum", "heskes", "centering", "robust", "small_batch"]
BASELINES = ["nag", "adam", "muon"]
FIRST, MORE = 13, 9


def made(name, seed=0):
    recipe = kl.Recipe.named(name)
    if name in KFAC:
        recipe = recipe.replace(batch="constant(size=600)")
    return kl.Run("digits_classifier", recipe, seed=seed, device=here())


@pytest.fixture(scope="module")
def straight():
    """For each recipe a run of FIRST + MORE steps and what it was after FIRST."""
    runs = {}

    def get(name):
        if name not in runs:
            runs[name] = made(name).advance(FIRST + MORE)
        return runs[name]

    return get


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """For each recipe a run of FIRST steps, and its file."""
    folder, runs = tmp_path_factory.mktemp("saved"), {}

    def get(name):
        if name not in runs:
            run = made(name).advance(FIRST)
            runs[name] = run, run.save(folder / f"{name}.pt")
        return runs[name]

    return get


every = pytest.mark.parametrize("name", KFAC + BASELINES)


@every
def test_a_seed_says_everything(name, straight):
    same_run(straight(name), made(name).advance(FIRST).advance(MORE))


@every
def test_another_seed_is_another_run(name, straight):
    """The batches and, through them and the initialisation, everything else."""
    other = made(name, seed=1).advance(3)
    here, there = straight(name).history["loss"][:3], other.history["loss"]
    assert not any(a == b for a, b in zip(here, there, strict=True))


def test_the_seed_reaches_batches_and_targets_each_by_itself():
    """From one θ: other batches with another seed; with whole batches, other sampled targets."""
    small = [run_of(seed=s).advance(1) for s in (0, 1)]
    assert small[0].history["loss"][0] != small[1].history["loss"][0]
    whole = [
        run_of(seed=s, batch="constant(size=24)", estimator="sampled(fraction=1.0)").advance(1)
        for s in (0, 1)
    ]
    moments = [run.stepper.store.current for run in whole]
    assert not torch.allclose(moments[0]["G", 1, 1], moments[1]["G", 1, 1])
    torch.testing.assert_close(moments[0]["A", 1, 1], moments[1]["A", 1, 1])


def test_steps_draw_anew():
    run = run_of(batch="constant(size=16)")
    batches = [run.problem.draw(k, 16, 0).inputs for k in (1, 2)]
    assert not torch.equal(*batches)
    torch.testing.assert_close(batches[0], run.problem.draw(1, 16, 0).inputs, rtol=0, atol=0)


@every
def test_a_fork_goes_on_as_the_original_would_have(name, straight, saved):
    run, _ = saved(name)
    fork = run.fork().advance(MORE)
    same_run(straight(name), fork)
    assert run.step == FIRST  # and leaves the original where it was


@every
def test_a_loaded_run_goes_on_as_the_saved_one_would_have(name, straight, saved):
    loaded = kl.Run.load(saved(name)[1], device=here())
    assert loaded.step == FIRST
    same_run(straight(name), loaded.advance(MORE))


@every
def test_a_rewound_run_replays_itself(name, straight):
    run = made(name).advance(4)
    if name in KFAC:
        run.swap(estimator="empirical(fraction=0.5)")
    else:
        run.swap(batch="constant(size=100)")
    run.advance(FIRST)
    fork = run.fork()
    fork.rewind(2)
    same_run(fork, made(name).advance(2))
    fork = run.fork()
    fork.rewind(9)
    assert [m.step for m in fork.history.marks] == [4]
    same_run(fork.advance(8), run)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
import kfac_lab as kl
for path in sys.argv[2:]:
    run = kl.Run.load(path, device="cpu")
    run.advance(int(sys.argv[1]))
    run.save(path + ".on")
"""


@pytest.mark.host("the other process has the CPU alone")
def test_a_run_loaded_by_another_process_goes_on_bit_for_bit(straight, saved):
    files = {name: str(saved(name)[1]) for name in KFAC + BASELINES}
    command = [sys.executable, "-c", SCRIPT, str(MORE), *files.values()]
    done = warm.run(command)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr  # nothing differs that a continuation depends on
    for name, path in files.items():
        same_run(straight(name), kl.Run.load(path + ".on", device=here()))


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_a_model_with_its_own_randomness_goes_on_bit_for_bit(fraction, tmp_path):
    """Dropout and batch statistics: buffers, masks, the objective on the step's own mask."""
    slots = {"estimator": f"sampled(fraction={fraction})", "schedule": "periodic(T1=1, T2=4, T3=4)"}
    run = run_of("generic", **slots).advance(5)
    path, fork = run.save(tmp_path / "run.pt"), run.fork()
    run.advance(6)
    same_run(run, fork.advance(6))
    loaded = kl.Run.load(path, problem=problem_of("generic"), device=here())
    same_run(run, loaded.advance(6))
    same_run(run.fork().rewind(3).advance(8), run)


class Noise(torch.nn.Identity):
    """A subclass may do what it likes, and this one draws."""

    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


def test_a_subclass_of_a_plain_module_has_its_randomness_seeded():
    """The explicit passes are for exact types: they seed nothing."""

    def losses():
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), Noise(), torch.nn.Linear(3, 2))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.1).view(-1)[0] = 1.0
        opt = kl.KFAC(model)
        x = torch.linspace(-1, 1, 80).reshape(20, 4)
        return [float(opt.step(x, torch.arange(20) % 2).loss) for _ in range(3)]

    assert losses() == losses()


def test_a_callable_source_goes_on_bit_for_bit(tmp_path):
    def source(step, size):
        generator = torch.Generator().manual_seed(step)
        x = torch.rand(size, 6, generator=generator)
        return x, x[:, :4]

    run = kl.Run(problem_of(data=source), recipe_of(), seed=3, device=here()).advance(5)
    path = run.save(tmp_path / "run.pt")
    run.advance(5)
    loaded = kl.Run.load(path, problem=problem_of(data=source), device=here()).advance(5)
    same_run(run, loaded)


def test_a_state_is_a_copy_and_stays_what_it_was():
    run = run_of().advance(3)
    state = state_of(run.stepper)
    again = state_of(run.stepper)
    run.advance(4)
    same(state, again)
    fresh = run_of()
    fresh.stepper.load({"format": 2, "tree": state})
    assert fresh.step == 3
    fresh.advance(4)
    kept = numbers(run)
    same({k: v[3:] for k, v in kept.items()}, numbers(fresh))
