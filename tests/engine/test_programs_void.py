"""A launch has its step's gate in it: a void step is void by a launch as it is call by call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariants.helpers import problem_of, reads_cost, recipe_of
from torch.utils._python_dispatch import TorchDispatchMode

import kfac_lab as kl
from kfac_lab.core import trees
from kfac_lab.core.state import GATED

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
VOID = 21, 22, 26  # steady; λ is due at every third step
SLOTS = {
    "schedule": "periodic(T1=3, T2=60, T3=60, burn_in=1)",
    "estimator": "sampled(limit=0.5)",  # ε is at its limit from the second step on
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "guard": {"damping": "levenberg_marquardt(guard=5.0)", "average": "polyak"},
    "tridiagonal": {"structure": "block_tridiagonal"},
    "norm clip": {"momentum": "norm_clip", "quadratic_model": "none"},
}


class _Outside(TorchDispatchMode):
    """Counts the calls but for those of a launch, and those that only name memory."""

    names = "detach view unbind alias empty_like empty expand select slice t split".split()

    def __init__(self) -> None:
        super().__init__()
        self.launched, self.calls = False, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not self.launched and name not in self.names:
            self.calls.append(name)
        return func(*args, **(kwargs or {}))


def run_of(capture: Any, **slots: Any) -> kl.Run:
    """A run whose reads are not free and whose batches of the steps ``VOID`` are not finite."""

    def source(step: int, size: int) -> Any:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(size, 6, generator=generator)
        y = torch.sigmoid(x[:, :4])
        return (x * float("nan"), y) if step in VOID else (x, y)

    recipe = recipe_of("explicit", **{**SLOTS, **slots})
    run = kl.Run(problem_of("explicit", data=source), recipe, seed=0, graphs=capture is not None)
    run.stepper.programs.capture = capture
    return run


def capturing(outside: _Outside | None = None) -> Callable[[Any], Any]:
    """Captures as a CUDA graph does, on the CPU."""

    def capture(function: Callable[[], None]) -> Callable[[], None]:
        function()

        def launch() -> None:
            if outside is not None:
                outside.launched = True
            function()
            if outside is not None:
                outside.launched = False

        return launch

    return capture


def kept(run: kl.Run) -> dict[str, Any]:
    """All numbers that persist; reads nothing."""
    state = run.stepper.state_
    return {
        "theta": [t.detach() for t in run.problem.model.parameters()],
        "moments": dict(state.moments),
        "flags": [(u.step, u.flag, u.fresh) for u in state.pending],
        **{name: getattr(state, name) for name in GATED},
    }


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_void_step_by_a_launch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads_cost(monkeypatch)
    mine, theirs = (run_of(capture, **VARIANTS[name]) for capture in (capturing(), None))
    for run in (mine, theirs):
        run.advance(VOID[0] - 1)
    for k in range(VOID[0], 30):
        before = trees.copied(kept(mine)["theta"])
        for run in (mine, theirs):
            run.stepper.step()
        assert trees.digest(kept(mine)) == trees.digest(kept(theirs)), k
        still = all(map(torch.equal, before, kept(mine)["theta"]))
        assert still == (k in VOID)
    assert mine.stepper.programs.replayed > 15
    launches = [e.captured for e in mine.stepper.programs._known.entries() if e.captured]
    # one for each side that the moments may be on
    assert launches and all(len(c._launches) == 2 for c in launches)
    for run in (mine, theirs):
        run.stepper.read([])
        with pytest.raises(kl.errors.NumericalError, match="21, 22, 26"):
            run.stepper.tell()


def test_a_launched_step_makes_few_calls_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    reads_cost(monkeypatch)
    outside = _Outside()
    run = run_of(capturing(outside)).advance(13)
    before = run.stepper.programs.replayed
    with outside:
        run.stepper.step()
    assert run.stepper.programs.replayed == before + 1
    drawn = "randn sigmoid normal_ rand uniform_ clamp_ mul randperm _to_copy".split()
    calls = [name for name in outside.calls if name not in drawn]
    # in and out of the places by types, the numbers of a type as one vector, θ
    assert sorted(set(calls)) == ["_foreach_copy_", "stack"], calls
    assert len(calls) <= 10, calls
