"""A baseline's step that is one launch is the step: with rates that fade, momentum that changes,
bases that turn, batches of other sizes, and a state that is saved and loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import devices
import pytest
import torch

import kfac_lab as kl
from kfac_lab.baselines import nag, replaying
from kfac_lab.core.accelerators import accelerator
from kfac_lab.core.program import Program, Recording, Repeated, TensorSlot, repeated
from kfac_lab.core.program.calls import AtenCall, Number
from kfac_lab.core.program.scalars import by_tensors

sys.path.insert(0, str(Path(__file__).parent / "trajectories"))

import cases as known

FADES = "decay=0.8, total_steps=40"
METHODS = {
    "nag": f"nag(lr=0.02, mu_max=0.95, {FADES})",
    "adam": f"adam(lr=0.01, {FADES})",
    "muon": f"muon(lr=0.02, momentum=0.9, hidden_only=True, {FADES})",
    "muon, all matrices": f"muon(lr=0.02, adjust='match_rms_adamw', {FADES})",
    "soap": f"soap(lr=0.01, every=5, {FADES})",
}
STEPS = 36
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has no Muon")
every = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[needs_muon] if "muon" in n else []) for n in METHODS]
)


class StandIn:
    """For CUDA graphs, where there are none: what a launch does is called, with its places."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        function()
        self.made += 1
        return function


def made(
    name: str, launched: bool, dtype: torch.dtype = torch.float32, capture: Any = None
) -> kl.Run:
    """A run of a baseline, a steady step of which is one launch, or none."""
    recipe = kl.Recipe.named("adam").replace(method=METHODS[name], batch="constant(size=40)")
    run = kl.Run(known.problem(dtype=dtype), recipe, seed=1)
    if launched:
        there = accelerator(run.device)
        if capture is None:
            capture = StandIn() if there is None else there.capture(run.device)
        run.stepper.repeated = Repeated(capture)
        run.stepper._reads_are_free = False  # as on an accelerator
    return run


def chains(run: kl.Run) -> int:
    """How many steps were one launch."""
    found = run.stepper._replaying._chains.values()
    return sum(known.launched.replays for known in found)


def compare(mine: kl.Run, theirs: kl.Run) -> None:
    """θ, θ̄ and what the optimisers remember: bit for bit on the CPU.

    Elsewhere a fused kernel takes a rate as float32 where it comes as a tensor, and a quotient by a
    number is a product with its reciprocal: the last digits are others, and bases made of products
    with them, or iterations in bfloat16, show it. A frozen rate is 0.1 and more of the largest.
    """

    def memory(run: kl.Run) -> list[Any]:
        stepper = run.stepper
        owned = [own for o in stepper._optimisers for own in o.state.values()]
        held = [v for own in owned for v in own.values() if not isinstance(v, int)]
        return [*stepper._theta, *stepper.average(), *held]

    exact = devices.here().type == "cpu"
    for a, b in zip(memory(mine), memory(theirs), strict=True):
        if exact:
            assert torch.equal(a, b)
        else:
            scale = float(b.abs().max())
            torch.testing.assert_close(a.cpu(), b.cpu(), rtol=0, atol=2e-3 * max(scale, 1e-6))
    counts = [[own.get("k") for o in r.stepper._optimisers for own in o.state.values()] for r in
              (mine, theirs)]  # fmt: skip
    assert counts[0] == counts[1]


@every
def test_a_launched_step_is_the_step(name: str) -> None:
    mine, theirs = made(name, True), made(name, False)
    mine.advance(STEPS), theirs.advance(STEPS)
    compare(mine, theirs)
    found = mine.stepper.repeated
    assert found.refusals == [] and found.uncaptured is None
    # Three steps are needed for a gradient's program, the first update makes the memory; every
    # fifth step of SOAP turns the bases, call by call.
    assert chains(mine) == (25 if name == "soap" else 32)
    if devices.here().type == "cpu":
        losses = [[float(v) for v in run.history["loss"]] for run in (mine, theirs)]
        assert losses[0] == losses[1]
        assert found.capture.made == (2 if name == "soap" else 1)  # a gradient is launched too


@pytest.mark.parametrize(
    "name",
    ["adam", *(pytest.param(n, marks=pytest.mark.soak) for n in ("nag", "soap")),
     *(pytest.param(n, marks=[needs_muon, pytest.mark.soak]) for n in METHODS if "muon" in n)],
)  # fmt: skip
@pytest.mark.host("another type than the accelerators'")
def test_it_is_so_in_float64(name: str) -> None:
    mine, theirs = (made(name, launched, torch.float64) for launched in (True, False))
    mine.advance(STEPS), theirs.advance(STEPS)
    compare(mine, theirs)
    assert chains(mine) >= 25


@every
def test_over_save_load_and_sizes_of_the_batch(name: str) -> None:
    mine, other, theirs = made(name, True), made(name, True), made(name, False)
    for size, steps in ((40, 12), (30, 9), (40, 5), (7, 1), (30, 5)):
        for run in (mine, theirs):
            run.swap(batch=f"constant(size={size})")
            run.advance(steps)
        compare(mine, theirs)
    before = chains(mine)
    other.swap(batch="constant(size=30)")
    other.advance(8)
    state = mine.stepper.state()
    for run in (other, mine):  # into one that was elsewhere, and into the one that it is of
        run.stepper.load(state)
    for _ in range(8):
        for run in (mine, other, theirs):
            run.stepper.step()
    compare(mine, theirs), compare(other, theirs)
    assert before >= 12 and chains(mine) >= before + 6 and chains(other) >= 8


@pytest.mark.parametrize("takes", [True, False], ids=["this torch", "torch 2.4"])
def test_momentum_that_changes(takes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """μ goes into a fused kernel as a number alone: it is another launch for each value."""
    monkeypatch.setattr(nag, "nesterov_mu", lambda t, top: min(1 - 0.5 / (t // 12 + 1), top))
    monkeypatch.setattr(replaying, "takes_numbers", lambda: takes)
    mine, theirs = made("nag", True), made("nag", False)
    mine.advance(STEPS), theirs.advance(STEPS)
    assert sorted(set(theirs.history["mu"])) == pytest.approx([0.5, 0.75, 5 / 6])
    compare(mine, theirs)
    # Where kernels do not take numbers that are watched, each rate is a program of its own.
    assert (chains(mine) >= 24) if takes else (3 <= chains(mine) <= 5)


def test_a_launch_with_a_frozen_rate_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """These comparisons see one, and the engine does not make one."""
    monkeypatch.setattr(repeated, "by_tensors", lambda recording, device: recording)
    mine, theirs = made("adam", True), made("adam", False)
    mine.advance(STEPS), theirs.advance(STEPS)
    compare(mine, theirs)  # Python numbers: launched while the rate is the same alone
    assert chains(mine) == 4
    init = Program.__init__

    def hidden(self: Program, *arguments: Any) -> None:
        init(self, *arguments)
        self.frozen = [False] * len(self.frozen)

    monkeypatch.setattr(Program, "__init__", hidden)
    broken = made("adam", True)
    broken.advance(STEPS)
    assert chains(broken) == 32
    with pytest.raises(AssertionError):
        compare(broken, theirs)


def test_a_twin_that_is_another_function_is_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(recording: Recording, device: torch.device) -> Recording:
        """The rate of its recording, for good."""
        calls = [
            c._replace(keywords={k: 0.01 if isinstance(v, Number) else v for k, v in
                                 c.keywords.items()})
            for c in recording.calls
        ]  # fmt: skip
        return Recording(**{**recording.__dict__, "calls": calls})

    monkeypatch.setattr(repeated, "by_tensors", frozen)
    mine, theirs = made("adam", True), made("adam", False)
    mine.advance(STEPS), theirs.advance(STEPS)
    compare(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_tensors_where_a_call_has_a_twin(dtype: torch.dtype) -> None:
    aten: Any = torch.ops.aten
    x, y = torch.linspace(-2, 3, 30, dtype=dtype), torch.linspace(1, 4, 30, dtype=dtype).sin()
    slot, other, fresh = map(TensorSlot, range(3))
    number = Number("(-(n0 / n1))", dtype)
    for operation, arguments, keywords in (
        (aten.mul.Tensor, (slot, number), {}),
        (aten.div.Tensor, (slot, number), {}),
        (aten.add.Tensor, (slot, other), {"alpha": number}),
    ):
        call = AtenCall(operation, arguments, keywords, (fresh,), False)
        names = {"a": "n0", "b": "n1"}
        recording = Recording(1, 2, [call], supplied=names, slots=3)
        plain, twin = (
            Program(r, [fresh]) for r in (recording, by_tensors(recording, devices.here()))
        )
        assert plain.frozen == [True, True] and twin.frozen == [False, False]
        for a, b in ((0.3, 0.7), (-2.0, 0.11)):
            (one,), (two,) = (p([x, y], 0, {"a": a, "b": b}) for p in (plain, twin))
            torch.testing.assert_close(one, two, rtol=4 * torch.finfo(dtype).eps, atol=0)
            want = {"mul": x * (-a / b), "div": x / (-a / b), "add": x + y * (-a / b)}
            expected = want[operation.overloadpacket.__name__]
            torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)


def test_an_update_that_fails_half_way_goes_on_as_if_nothing_had_been() -> None:
    """It is taken back by other tensors than those that a launch has."""
    mine, theirs = made("soap", True), made("soap", False)
    mine.advance(14), theirs.advance(14)
    stepper = mine.stepper
    with pytest.MonkeyPatch.context() as patch:

        def fails(*_: Any) -> None:
            raise ValueError("half way")

        patch.setattr(stepper._optimisers[1], "step", fails)
        with pytest.raises(ValueError, match="half way"):
            stepper.step()  # k = 15 turns the bases call by call
    before = chains(mine)
    mine.advance(12), theirs.advance(12)
    compare(mine, theirs)
    assert chains(mine) >= before + 8


def test_places_are_bounded() -> None:
    run = made("adam", True)
    for size in range(20, 32):
        run.swap(batch=f"constant(size={size})")
        run.advance(6)
    held = [k for k in run.stepper._replaying._chains.values() if k.captured is not None]
    assert len(held) <= repeated.LAUNCHES and chains(run) >= 12
