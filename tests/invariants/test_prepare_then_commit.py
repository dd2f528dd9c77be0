"""Whatever is raised before the commit leaves the run as it was, to the last bit.

At every verb, before it and after it has done its work; and at the n-th tensor operation of a step,
for every n.
"""

from dataclasses import replace

import pytest
import torch
from devices import here

import kfac_lab as kl
from invariants.helpers import image, recipe_of, run_of, same, same_run
from kfac_lab.core import linalg, moments, passes, traits
from kfac_lab.core.dispatch import DispatchMode
from kfac_lab.core.likelihood import Bernoulli
from kfac_lab.core.problem import Problem
from kfac_lab.core.slot_traits import BlockTraits
from kfac_lab.core.vector import Vec
from kfac_lab.engine import commit as engine_commit
from kfac_lab.paper import (
    averaging,
    block_diagonal,
    damping,
    diagonal,
    estimators,
    kronecker,
    momentum,
    quadratic_model,
    schedules,
)

# verb → the place where it is played; an optional method that the part lacks is put there.
VERBS = {
    "sample: batch size": (schedules._Cases, "__call__"),
    "sample: draw": (Problem, "draw"),
    "schedule": (schedules.Periodic, "due"),
    "evaluate": (passes.Passes, "evaluate"),
    "evaluate: likelihood": (Bernoulli, "loss"),
    "evaluate: gradient": (Bernoulli, "gradient"),
    "evaluate: backward": (torch.autograd, "grad"),
    "observe: decay": (estimators.Sampled, "decay"),
    "observe: cotangents": (estimators.Sampled, "cotangents"),
    "observe: rows": (moments.Accumulation, "inputs"),
    "observe: finish": (moments.Accumulation, "finish"),
    "observe: block": (diagonal.Diagonal, "observe"),
    "invert: factorise": (block_diagonal.BlockDiagonal, "factorise"),
    "invert: block factorise": (kronecker.Kronecker, "factorise"),
    "invert: damped": (block_diagonal.BlockDiagonal, "damped"),
    "invert: read": (linalg.reading, "transfer"),
    "propose: apply": (block_diagonal.BlockDiagonalInverse, "apply"),
    "propose: basis": (momentum.Optimal, "basis"),
    "quadratic_model": (quadratic_model.ExactFisher, "restrict"),
    "model: tangents": (passes.Passes, "tangents"),
    "choose": (momentum.Optimal, "choose"),
    "choose: candidates": (damping.LevenbergMarquardt, "candidates"),
    "choose: retry": (damping.LevenbergMarquardt, "retry"),
    "judge: objective": (passes.Passes, "objective"),
    "judge: adapt": (damping.LevenbergMarquardt, "adapt"),
    "move": (Vec, "combine"),
    "average: momentum": (momentum.Optimal, "update"),
    "average": (averaging.Polyak, "update"),
    "settle": (engine_commit, "ok_of"),
}
BLOCKS = {
    "explicit": {"2": "diagonal", "*": "kronecker"},
    "generic": "kronecker",  # the fallback's block is diagonal
}


# Cases that cannot be read are told by their rows.
TOLD = {"sample: draw": (kl.DataError,)}


class Injected(RuntimeError):
    """What the tests raise."""


def inject(patch, run, verb, error, late):
    """From now on the verb raises: at once, or where ``late`` after its work is done."""
    patch.setattr(traits, "_KNOWN", {})  # what a part has is read once
    owner, name = VERBS[verb]
    work = getattr(owner, name, None)
    static = isinstance(owner.__dict__.get(name), staticmethod)

    def failing(*args, **kwargs):
        if late and work is not None:
            result = work(*args, **kwargs)
            if verb in ("observe: cotangents", "model: tangents"):
                list(result)
        fired.append(verb)
        raise error

    fired = []
    patch.setattr(owner, name, staticmethod(failing) if static else failing, raising=False)
    parts = run.stepper.parts  # so are the blocks' traits and what other parts declare
    again = tuple(traits.traits(block, BlockTraits) for block in parts.blocks)
    held = replace(run.stepper.held, parts=replace(parts, block_traits=again))
    patch.setattr(run.stepper, "held", held)
    return fired


#: each error before a verb's work and after it, and on either path; under ``make soak`` all eight
ERRORS = (Injected, KeyboardInterrupt)
WAYS = [
    pytest.param(kind, late, error, marks=[pytest.mark.soak] if (n + m + e) % 2 else [])
    for n, kind in enumerate(("explicit", "generic"))
    for m, late in enumerate((False, True))
    for e, error in enumerate(ERRORS)
]


@pytest.mark.parametrize(("kind", "late", "error"), WAYS)
def test_an_exception_at_any_verb_changes_nothing(kind, late, error):
    run, twin = (run_of(kind, block=BLOCKS[kind]) for _ in range(2))
    run.advance(3)
    twin.advance(4)
    assert twin.history.records[-1].due == (True,) * 5  # step 4 does everything there is
    before = image(run)
    for verb in VERBS:
        with pytest.MonkeyPatch.context() as patch:
            fired = inject(patch, run, verb, error("at " + verb), late)
            with pytest.raises((error, *TOLD.get(verb, ()))):
                run.step_once()
            assert fired, f"{verb} was not played"
        same(before, image(run))
    run.advance(1)
    same_run(run, twin)


def test_an_exception_at_any_verb_of_the_first_step_changes_nothing():
    run, twin = (run_of("explicit", block=BLOCKS["explicit"]) for _ in range(2))
    twin.advance(1)
    before = image(run)
    for verb in VERBS:
        with pytest.MonkeyPatch.context() as patch:
            inject(patch, run, verb, Injected(verb), late=True)
            if "judge" in verb:
                continue  # λ is not due yet
            with pytest.raises((Injected, *TOLD.get(verb, ()))):
                run.step_once()
        same(before, image(run))
    run.advance(1)
    same_run(run, twin)


@pytest.mark.parametrize("structure", ["block_diagonal", "block_tridiagonal"])
def test_a_later_candidate_that_fails_changes_nothing(structure):
    """γ is searched: the second and third inverse may fail after the first one was built."""
    run, twin = (run_of(structure=structure) for _ in range(2))
    run.advance(3)
    twin.advance(4)
    before = image(run)
    owner = type(run.recipe["structure"])
    work = owner.damped
    for fatal in (1, 2, 3):
        calls = []

        def damped(self, *args, calls=calls, fatal=fatal):
            calls.append(1)
            if len(calls) == fatal:
                raise Injected(f"candidate {fatal}")
            return work(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, "damped", damped)
            with pytest.raises(Injected):
                run.step_once()
        same(before, image(run))
    run.advance(1)
    same_run(run, twin)


class Fatal(DispatchMode):
    """Raises at the n-th tensor operation; counts them where n is None."""

    def __init__(self, n=None):
        super().__init__()
        self.n, self.count, self.open = n, 0, True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.open:
            if self.count == self.n:
                raise Injected(f"operation {self.n}, {func}")
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["explicit", "generic"])
def test_an_exception_at_any_tensor_operation_changes_nothing(kind, monkeypatch):
    at_operations(kind, monkeypatch, 40)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["explicit", "generic"])
def test_an_exception_at_every_tensor_operation_changes_nothing(kind, monkeypatch):
    at_operations(kind, monkeypatch)


def at_operations(kind, monkeypatch, most=None):
    """At so many of a step's tensor operations, equally far apart; None: at each."""
    run, twin = (run_of(kind, structure="block_tridiagonal") for _ in range(2))
    run.advance(3)
    twin.advance(3)
    commit, mode = engine_commit.exchange, Fatal()

    def closing(carry_out):
        mode.open = False  # what follows is the commit
        commit(carry_out)

    monkeypatch.setattr(engine_commit, "exchange", closing)
    with mode:
        twin.step_once()
    total = mode.count
    assert total > 200 and not mode.open
    before = image(run)
    stride = max(1, total // (most or total))
    for n in [*range(0, total, stride), total - 1]:
        mode = Fatal(n)
        with pytest.raises(Injected), mode:
            run.step_once()
        found = image(run)
        same(before, found)
    mode = Fatal()
    run.step_once()
    same_run(run, twin)


@pytest.mark.parametrize("method", ["nag", "adam", "muon"])
def test_an_exception_in_a_baselines_step_changes_nothing(method):
    recipe = f"method = {method}\nbatch = constant(size=16)\naverage = polyak"

    def made():
        return kl.Run(run_of("generic").problem, recipe, seed=0, device=here())

    run, twin = made(), made()
    run.advance(3)
    twin.advance(4)
    places = {
        "draw": (Problem, "draw"),
        "backward": (torch.autograd, "grad"),
        "loss": (Bernoulli, "loss"),
        "move": (type(run.stepper), "_move"),
    }
    before = image(run)
    for owner, name in places.values():
        for late in (False, True):
            with pytest.MonkeyPatch.context() as patch:
                work = getattr(owner, name)

                def failing(*args, work=work, late=late, name=name, **kwargs):
                    if late:
                        work(*args, **kwargs)
                    raise Injected(name)

                patch.setattr(owner, name, failing)
                if name == "_move" and late and not run.stepper._divisible:
                    continue  # a fused update is one call
                with pytest.raises((Injected, *TOLD.get(f"sample: {name}", ()))):
                    run.step_once()
            same(before, image(run))
    run.advance(1)
    same_run(run, twin)


def test_an_observer_that_raises_does_not_stop_the_run():
    from kfac_lab.hooks import lab

    class Observer:
        """Raises at every event."""

        @kl.hookimpl
        def kfac_on_step(self, run, record):
            seen.append(record.step)
            raise Injected("observer")

        @kl.hookimpl
        def kfac_on_run_start(self, run):
            raise Injected("observer")

    seen = []
    run, twin = run_of(), run_of()
    twin.advance(6)
    observer = Observer()
    lab.load_module(observer, "raising")
    try:
        with pytest.warns(UserWarning, match="observer"):
            run.advance(6)
    finally:
        lab.unload("raising")
    assert seen == [1, 2, 3]  # shown, and switched off after three times
    same_run(run, twin)


def test_an_invalid_batch_size_is_a_plain_failure_too():
    run = kl.Run(
        kl.Problem(
            model=torch.nn.Linear(6, 4), likelihood="gaussian", data=lambda step, size: 1 / 0
        ),
        recipe_of(),
        device=here(),
    )
    before = image(run)
    with pytest.raises(ZeroDivisionError):
        run.advance(1)
    same(before, image(run))
