"""A launch reads and writes what stays where it is, and copies what it has to and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kfac_lab.core import linalg
from kfac_lab.core.program import Captured, Program, ProgramRecorder


def step(batch: Tensor, inverse: Tensor, theta: Tensor, spare: Tensor, _: Tensor) -> list[Tensor]:
    """New moments onto the spare side, θ + δ, δ and a number."""
    torch.mul(theta, 3.0, out=spare)
    delta = inverse @ batch
    return [theta + delta, delta, delta.sum(), delta.max()]


def inputs(scale: float = 1.0) -> list[Tensor]:
    """Batch, inverse, θ, spare, and one that is not used."""
    numbers = torch.arange(4.0).add(1.0).mul(scale)
    square = torch.arange(16.0).view(4, 4).mul(scale)
    return [numbers, square, numbers * 2, torch.zeros(4), torch.ones(1000)]


class Copies(TorchDispatchMode):
    """Notes what is copied, and the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "copy_" in func.__name__:
            self.copied += args[1] if isinstance(args[1], list) else [args[1]]
        return func(*args, **(kwargs or {}))


@pytest.fixture
def captured() -> tuple[Captured, list[Callable[[], None]]]:
    """The step as a launch; and the functions that were captured."""
    given, made = inputs(), []
    recorder = ProgramRecorder(1, given, [given[3]], {})
    with recorder:
        out = step(*given)
    recording = recorder.finish()
    assert not recording.refusals
    program = Program(recording, [recorder.slot_of(t) for t in out])

    def capture(function: Callable[[], None]) -> Callable[[], None]:
        function()
        made.append(function)
        return function

    return Captured(program, given, 1, [], capture, (2, 3), (1,), (0,)), made


def launched(captured: Captured, given: list[Tensor], k: int = 1) -> list[Tensor]:
    """What a launch gives, opened where it is not."""
    captured.opened(given)
    return captured(given, k)


def test_a_launch_gives_what_the_step_gives(captured: Any) -> None:
    for scale in (1.0, 0.5, -2.0):
        given, other = inputs(scale), inputs(scale)
        found, expected = launched(captured[0], given), step(*other)
        assert all(map(torch.equal, found, expected))
        assert torch.equal(given[3], other[3])


def test_each_set_of_addresses_has_a_launch(captured: Any) -> None:
    launch, made = captured
    one, other = inputs(), inputs()
    for n in range(6):
        given = one if n % 2 else other
        given[2].add_(1.0)
        (moved, *_), expected = launched(launch, given), given[2] + given[1] @ given[0]
        assert torch.equal(moved, expected)
    assert len(made) == 2
    assert launch.opened(one) == launch.opened(other) == 3
    several = [inputs() for _ in range(5)]  # more than are kept
    for given in (*several, *several):
        assert torch.equal(launched(launch, given)[1], given[1] @ given[0])
    assert len(launch._launches) == 4


def test_what_is_not_needed_is_not_copied(captured: Any) -> None:
    launch, _ = captured
    given = inputs()
    launched(launch, given)
    for inverse in (given[1], given[1], given[1].clone()):
        again = inverse is given[1]
        given = [given[0], inverse, *given[2:]]
        with Copies() as seen:
            moved, delta, *numbers = launch(given, 1)
        shapes = [tuple(t.shape) for t in seen.copied]
        # the batch, a new inverse, and δ; numbers come in one vector
        assert shapes == [(4,), *([] if again else [(4, 4)]), (4,)]
        assert moved is launch._launches[launch._addresses(given)].outputs[0]
        assert delta.data_ptr() != launch._launches[launch._addresses(given)].outputs[1].data_ptr()
        assert len({n.untyped_storage().data_ptr() for n in numbers}) == 1


def test_another_tensor_where_the_last_one_was_is_another_value(captured: Any) -> None:
    launch, _ = captured
    given = inputs()
    launched(launch, given)
    for scale in (2.0, 3.0):
        del given[1]  # so that the next has its memory, and perhaps its id
        given.insert(1, torch.arange(16.0).view(4, 4).mul(scale))
        assert torch.equal(launched(launch, given)[1], given[1] @ given[0])


def test_what_is_given_stays_when_the_next_is_launched(captured: Any) -> None:
    launch, _ = captured
    given = inputs()
    _, delta, total, _ = launched(launch, given)
    before = delta.clone(), float(total)
    given[0] = given[0] * 7
    launched(launch, given)
    assert torch.equal(delta, before[0]) and float(total) == before[1]


def test_a_value_that_is_memory_that_stays_is_copied_every_time(captured: Any) -> None:
    """θ̄ may be θ itself, which is written at each commit."""
    launch, _ = captured
    given = inputs()
    shared = torch.zeros(20)
    given[2], given[1] = shared[:4].copy_(given[2]), shared[:16].view(4, 4)
    for n in range(3):
        shared.fill_(float(n))
        assert torch.equal(launched(launch, given)[1], given[1] @ given[0])


@pytest.mark.parametrize("works", [torch.linalg.cholesky, torch.linalg.inv, torch.linalg.eigvalsh])
def test_a_factorisation_is_not_captured(works: Any) -> None:
    """Its library keeps memory of its own, on the host too."""
    x = torch.eye(3)
    for function, found in ((works, True), (lambda x: torch.linalg.vector_norm(x @ x), False)):
        recorder = ProgramRecorder(1, [x], [], {})
        with recorder:
            out = function(x)
        program = Program(recorder.finish(), [recorder.slot_of(out)])
        assert (program.factorises is not None) == found


class Kinds(TorchDispatchMode):
    """Notes how short each product may be."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.startswith("mm"):
            self.kinds.append(torch.get_float32_matmul_precision())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("outside", [False, True])
def test_products_are_as_short_as_those_that_were_recorded(outside: bool) -> None:
    """A CPU's numbers do not tell: it has no TF32."""

    def work(x: Tensor) -> Tensor:
        y = x @ x
        with linalg.precision(True):
            y = y @ x
            with linalg.precision(False):
                y = y @ x
            y = y @ x
        with linalg.precision(True):
            return y @ x

    x = torch.eye(3)
    with linalg.precision(outside):
        before = torch.get_float32_matmul_precision()
        with ProgramRecorder(1, [x], [], {}) as recorder, Kinds() as eager:
            out = work(x)
        program = Program(recorder.finish(), [recorder.slot_of(out)])
        for _ in range(2):
            with Kinds() as seen:
                program([x], 1, {})
            assert seen.kinds == eager.kinds == [before, "high", "highest", "high", "high"]
            assert torch.get_float32_matmul_precision() == before
        with pytest.raises(RuntimeError):
            program([torch.ones(3, 2)], 1, {})
        with pytest.raises(RuntimeError):  # at the last of its calls
            program.run([_Fails(x, at=4)], [], [])
        assert torch.get_float32_matmul_precision() == before


class _Fails(Tensor):
    """A matrix whose products fail from the ``at``-th on."""

    @staticmethod
    def __new__(cls, raw: Tensor, at: int) -> _Fails:
        made = Tensor._make_subclass(cls, raw)
        made.left = [at]  # type: ignore[attr-defined]
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        left = next(a for a in args if isinstance(a, cls)).left  # type: ignore[attr-defined]
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("no more")
        return func(*(torch.eye(3) if isinstance(a, cls) else a for a in args), **(kwargs or {}))
