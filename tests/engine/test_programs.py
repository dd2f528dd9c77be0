"""Steps that are replayed are the steps themselves, bit for bit, over everything that a run does.

The runs are those of `tests/trajectories`, long enough for ε to have come to its limit, on chains
of fewer layers; each is made twice, call by call and with programs.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kfac_lab as kl
from kfac_lab.engine import Engine
from kfac_lab.paper.damping import Promised

TRAJECTORIES = Path(__file__).parents[1] / "trajectories"
sys.path.insert(0, str(TRAJECTORIES))

import cases as known  # noqa: E402  (beside the trajectories, which no package holds)

FEW = (12, 5, 12)
STEPS = 38  # with λ due at 25, 30 and 35, of which the last is a replay, and an inverse at 20
CASES = {
    name: case for name, case in known.cases() if name.split()[0] not in ("nag", "adam", "muon")
}
#: of others that are LAUNCHED replays are compared below, before ε has come to its limit
QUICK = {
    "paper", "paper_tridiagonal float32", "centering", "exact block_diagonal",
    "damping scheduled", "odd model", "schedule on_drift(check=5)",
    "momentum conjugate_gradient(steps=3)", "fork and rewind", "low_rank", "diagonal",
}  # fmt: skip
LAUNCHED = ["paper", "robust", "small_batch", "swaps", "paper_tridiagonal"]
#: what makes every step call by call, and why
EAGER = {"odd model": "dropout draws"}


@pytest.fixture(autouse=True)
def few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of a step is recorded: a network of two layers has the fewest that tell."""
    monkeypatch.setattr(known, "MLP", FEW)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Engine]]:
    """Every engine that is made, all of which record."""
    made: list[Engine] = []
    begun = Engine.__init__

    def init(self: Engine, *args: Any, **options: Any) -> None:
        begun(self, *args, **{**options, "graphs": True})
        made.append(self)

    monkeypatch.setattr(Engine, "__init__", init)
    yield made


def adapted(name: str, patch: pytest.MonkeyPatch) -> Any:
    """The case, longer, and on as many layers as its structure is about.

    One that is EAGER is as long as it was: without dropout that one is replayed from step 8 on.
    """
    if name not in EAGER:
        patch.setattr(known, "of_run", _longer(known.of_run))
    chained = "tridiagonal" in name or name == "swaps"
    patch.setattr(known, "MLP", (12, 6, 4, 12) if chained else FEW)
    return CASES[name]


def _longer(of_run: Any) -> Any:
    def longer(run: Any, steps: int = STEPS, swaps: Any = None) -> Any:
        return of_run(run, max(steps, STEPS), swaps)

    return longer


@functools.cache
def call_by_call(name: str) -> Any:
    """What the run is without programs; nothing is patched when this is asked."""
    with pytest.MonkeyPatch.context() as patch:
        return known.played(adapted(name, patch))


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.soak) for n in sorted(CASES)],
)
def test_a_run_with_programs_is_the_run_without(
    name: str, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_programs = known.played(adapted(name, monkeypatch))
    replayed = sum(engine.programs.replayed for engine in engines)
    monkeypatch.undo()
    assert call_by_call(name) == with_programs
    if not name.startswith(("KFAC", "Preconditioner")):  # which are short; see below
        assert (replayed > 0) == (name not in EAGER)


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_launch_with_fixed_places_is_the_run_without(
    name: str, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, but for the graph: inputs, fills and outputs have places that do not change."""
    begun, launches = Engine.__init__, []

    def captured(function: Any) -> Any:
        function()

        def launch() -> None:
            launches.append(1)
            function()

        return launch

    def init(self: Engine, *args: Any, **options: Any) -> None:
        begun(self, *args, **options)
        self.programs.capture = captured

    monkeypatch.setattr(Engine, "__init__", init)
    in_place = known.played(adapted(name, monkeypatch))
    # As long as ε moves a replay is made call by call: a launch has its numbers for good.
    assert 0 < len(launches) < sum(engine.programs.replayed for engine in engines)
    monkeypatch.undo()
    assert call_by_call(name) == in_place


# ε is at its limit from step 2 on, and inverses are rare: steps repeat soon.
SOON = {"estimator": "sampled(fraction=0.5, limit=0.5)", "schedule": "periodic(T3=100, T2=100)"}


@pytest.mark.parametrize(
    "recipe",
    [
        "robust",
        "small_batch",  # runs of the other two are compared above
        *(pytest.param(n, marks=pytest.mark.soak) for n in ("paper", "paper_tridiagonal")),
    ],
)
def test_a_loop_of_ones_own_over_a_save(recipe: str) -> None:
    def ends(graphs: bool) -> tuple[list[Tensor], int]:
        model = known.chain(*known.WIDE)
        x, y = known.data("categorical", known.WIDE[0], known.WIDE[-1], 120)
        made = kl.Recipe.named(recipe).replace(**SOON)
        replayed, saved = 0, {}
        for part in range(2):
            opt = kl.KFAC(model, "categorical", made, l2=1e-4, seed=2, graphs=graphs)
            if part:
                opt.load_state_dict(saved)
            for k in range(14):
                rows = slice(40 * (k % 3), 40 * (k % 3) + 40)
                opt.step(x[rows], y[rows])
            saved = opt.state_dict()
            replayed += opt._engine.programs.replayed
        return [p.detach() for p in model.parameters()], replayed

    (mine, replayed), (theirs, _) = ends(True), ends(False)
    assert all(map(torch.equal, mine, theirs))
    assert replayed > 5


def test_a_rate_that_a_scheduler_changes_at_every_step_is_given_to_each_replay() -> None:
    def ends(graphs: bool) -> tuple[list[Tensor], int]:
        model = known.chain(*known.WIDE)
        x, y = known.data("categorical", known.WIDE[0], known.WIDE[-1], 40)
        recipe = kl.Recipe.named("paper").replace(**SOON)
        opt = kl.KFAC(model, "categorical", recipe, l2=1e-4, seed=2, graphs=graphs)
        rates = torch.optim.lr_scheduler.LambdaLR(opt, lambda k: 1 / (1 + 0.1 * k))
        for _ in range(18):
            opt.step(x, y)
            rates.step()
        return [p.detach() for p in model.parameters()], opt._engine.programs.replayed

    (mine, replayed), (theirs, _) = ends(True), ends(False)
    assert all(map(torch.equal, mine, theirs))
    assert replayed > 5


@pytest.mark.parametrize("estimator", ["sampled(fraction=0.5, limit=0.5)", "empirical(limit=0.5)"])
def test_a_preconditioner(estimator: str) -> None:
    def ends(graphs: bool) -> tuple[list[Tensor], int]:
        model = known.chain(*known.WIDE)
        x, y = known.data("categorical", known.WIDE[0], known.WIDE[-1], 120)
        recipe = kl.Recipe.named("small_batch").replace(**{**SOON, "estimator": estimator})
        sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        pre = kl.Preconditioner(model, "categorical", recipe, seed=3, graphs=graphs)
        for k in range(18):
            rows = slice(40 * (k % 3), 40 * (k % 3) + 40)
            sgd.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            pre.step()
            sgd.step()
        return [p.detach() for p in model.parameters()], pre._engine.programs.replayed

    (mine, replayed), (theirs, _) = ends(True), ends(False)
    assert all(map(torch.equal, mine, theirs))
    assert replayed > 5


def test_a_compiled_model_is_replayed_too() -> None:
    def ends(graphs: bool) -> list[Tensor]:
        model = known.chain(*known.WIDE)
        x, y = known.data("categorical", known.WIDE[0], known.WIDE[-1], 40)
        recipe = kl.Recipe.named("no_momentum").replace(**SOON)
        opt = kl.KFAC(
            torch.compile(model, backend="eager"), "categorical", recipe, seed=2, graphs=graphs
        )
        for _ in range(16):
            opt.step(x, y)
        assert opt._engine.programs.replayed > 3 or not graphs
        return [p.detach() for p in model.parameters()]

    assert all(map(torch.equal, ends(True), ends(False)))


def test_a_copy_of_an_engine_begins_without_programs() -> None:
    recipe = kl.Recipe.named("paper").replace(**SOON)
    run = kl.Run(known.problem(), recipe, seed=1, graphs=True).advance(12)
    assert run.stepper.programs.replayed > 0
    copied = copy.deepcopy(run.stepper.programs)
    assert copied.on and not copied.programs() and not copied.replayed
    fork = run.fork()
    assert fork.graphs is True and fork.stepper.programs.on
    fork.advance(6), run.advance(6)
    pairs = zip(run.problem.model.parameters(), fork.problem.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_targets_that_are_none_are_told_of_in_a_replay() -> None:
    model = known.chain(*known.WIDE)
    x, y = known.data("categorical", known.WIDE[0], known.WIDE[-1], 40)
    never = "periodic(T1=100, T2=100, T3=100)"
    recipe = kl.Recipe.named("paper").replace(**{**SOON, "schedule": never})
    opt = kl.KFAC(model, "categorical", recipe, graphs=True)
    for _ in range(9):
        opt.step(x, y)
    replayed = opt._engine.programs.replayed
    before = [p.detach().clone() for p in model.parameters()]
    bad = y.clone()
    bad[3] = known.WIDE[-1]
    with pytest.raises(kl.DataError, match="class numbers go"):
        opt.step(x, bad)
    assert all(map(torch.equal, before, [p.detach() for p in model.parameters()]))
    opt.step(x, y)
    assert opt._engine.programs.replayed == replayed + 1 > 2


def test_a_launch_that_gives_other_numbers_is_not_used() -> None:
    recipe = kl.Recipe.named("paper").replace(**SOON)
    mine, theirs = (kl.Run(known.problem(), recipe, seed=1, graphs=g) for g in (True, False))

    def forgets(function: Any) -> Any:
        function()
        return lambda: None  # so that the second launch gives the first one's numbers

    mine.stepper.programs.capture = forgets
    with pytest.warns(UserWarning, match="a launch gives other numbers than its calls"):
        mine.advance(16)
    theirs.advance(16)
    assert mine.stepper.programs.replayed > 2 == mine.stepper.programs.launched
    assert mine.stepper.programs_told.endswith(
        "2 of them one launch; all call by call now: a launch gives other numbers than its calls"
    )
    pairs = zip(mine.problem.model.parameters(), theirs.problem.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@dataclass(frozen=True)
class Twice(Promised):
    """Each refresh is tried again, with twice the λ."""

    def retry(self, strength: Any, part_state: Any, draft: Any, tries: int) -> Any:
        """Another strength, once."""
        return None if tries else strength._replace(lam=strength.lam * 2)


def test_a_refresh_that_is_tried_again_is_replayed() -> None:
    """It tells the spreads by each try."""
    recipe = kl.Recipe.named("quick").replace(
        damping=Twice(),
        batch="constant(size=200)",
        schedule="periodic(T1=1, T2=1, T3=1, burn_in=1)",
    )
    runs = [kl.Run("digits", recipe, seed=0, graphs=graphs) for graphs in (False, True)]
    for run in runs:
        run.advance(9)
        assert len(run.stepper.record.candidates) == 2
    assert runs[1].stepper.programs.replayed > 1
    one, other = (list(run.problem.model.parameters()) for run in runs)
    assert all(map(torch.equal, one, other))
    for name in ("spread", "curved_spread"):
        one, other = (getattr(run.stepper.state_, name) for run in runs)
        assert one == other > 0
