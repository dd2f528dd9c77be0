"""Rows beyond a batch: a program at a larger size gives what the function gives at its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kfac_lab.core.program import Program, ProgramRecorder, filled
from kfac_lab.core.program.extents import Unpadded, apart
from kfac_lab.core.program.padded import Padded, alike
from kfac_lab.core.program.padded_launch import PaddedLaunch
from kfac_lab.core.program.sizes import unified

WIDE = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(3, 4)
Function = Callable[[Tensor, int], Tensor]


def batch_of(m: int) -> Tensor:
    """m rows, of which no two are alike."""
    return torch.arange(3.0 * m, dtype=torch.float64).reshape(m, 3).sin()


def recorded(function: Function, m: int, s: int, k: int = 1) -> tuple[Any, Any]:
    x = batch_of(m)
    recorder = ProgramRecorder(k, [x], [], {})
    with recorder:
        out = function(x, s)
    return recorder.finish(), recorder.slot_of(out)


def padded(function: Function) -> tuple[Program, Padded]:
    """The program of all sizes, and the one with rows beyond."""
    sizes = {"m": 12, "s": 5}, {"m": 17, "s": 7}
    (first, _), (second, slot) = (recorded(function, *own.values()) for own in sizes)
    program = Program(unified(first, second, sizes), [slot])
    more = apart(sizes[1], {})
    seen = [(batch_of(own["m"]), own) for own in (sizes[1], more)]
    return program, Padded(program, [([x], 1, own) for x, own in seen], list(more))


def launches(function: Function, sizes: list[tuple[int, int]], k: int = 3) -> list[Tensor]:
    """What one launch for 24 and 11 rows gives at these sizes, one after the other."""
    program, made = padded(function)

    def capture(own: Any) -> Any:
        own()
        return own

    launch, found = None, []
    for m, s in sizes:
        known = {"m": m, "s": s}
        numbers, larger = (program.numbers(own) for own in (known, {"m": 24, "s": 11}))
        if launch is None:
            launch = PaddedLaunch(made, [batch_of(m)], k, numbers, larger, capture)
        launch.serve(numbers)
        launch.opened([batch_of(m)])
        found += launch([batch_of(m)], k)
    return found


def second_moment(x: Tensor, s: int) -> Tensor:
    return torch.addmm(WIDE @ WIDE.T, x[:s].T, x[:s], beta=0.5, alpha=1 / s)


def two_layers(x: Tensor, s: int) -> Tensor:
    hidden = torch.sigmoid(x @ WIDE)
    return (hidden.T @ x).mul(1 / x.shape[0]).sum() + hidden[:s].exp().sum(0).div(s).norm()


def in_its_own_memory(x: Tensor, s: int) -> Tensor:
    y = x[:s] * 1.0
    y.add_(x[:s], alpha=1 / s)  # type: ignore[arg-type]
    return y.T.contiguous().addmm_(WIDE @ WIDE.T, x[:s].T.contiguous(), beta=1 / s).sum()


def by_kernel(x: Tensor, s: int) -> Tensor:
    return (x @ x.T).exp() @ x  # of every row with every row


def by_rows(x: Tensor, s: int) -> Tensor:
    return (x * 2 + 1).sum(1)


def in_place(x: Tensor, s: int) -> Tensor:
    y = x + 1.0
    before = y.sum(0)
    y.mul_(2.0)  # what was made of y with zeros beyond is of no use any more
    return torch.cat([before, y.sum(0)])


def stacked(x: Tensor, s: int) -> Tensor:
    both = torch.stack([x, x.cos()])  # [2, m, 3]
    return (both.reshape(-1, 3) @ WIDE).reshape(2, -1, 4).pow(2).sum((1, 2)) / x.shape[0]


def largest(x: Tensor, s: int) -> Tensor:
    return (x.abs() + 1).amax(0)  # zeros are no rows here either


def drawn(x: Tensor, s: int) -> Tensor:
    noise = filled(
        lambda k, shape: torch.arange(1.0 * shape[0], dtype=torch.float64).mul(k).cos(),
        3,
        (s,),
    )
    return (noise[:, None] * x[:s]).sum()


GOOD = [
    second_moment,
    two_layers,
    in_its_own_memory,
    by_kernel,
    by_rows,
    in_place,
    stacked,
    largest,
    drawn,
]


@pytest.mark.parametrize("function", GOOD)
def test_one_launch_serves_sizes_up_to_its_own(function: Function) -> None:
    sizes = [(20, 9), (21, 9), (24, 11), (13, 4)]
    for (m, s), found in zip(sizes, launches(function, sizes), strict=True):
        torch.testing.assert_close(found, function(batch_of(m), s), rtol=1e-13, atol=1e-13)


def of_a_mean(x: Tensor, s: int) -> Tensor:
    return x.mean(0)  # over as many rows as there are


def least(x: Tensor, s: int) -> Tensor:
    return (x.abs() + 1).amin(0)  # for which a zero is a row


def over_rows(x: Tensor, s: int) -> Tensor:
    return x.softmax(0)


@pytest.mark.parametrize("function", [of_a_mean, least, over_rows])
def test_what_counts_the_rows_beyond_is_seen_by_its_numbers(function: Function) -> None:
    found, wanted = launches(function, [(20, 9)])[0], function(batch_of(20), 9)
    assert not alike(found, wanted) and alike(wanted + 1e-9 * wanted, wanted)


def from_a_size(x: Tensor, s: int) -> Tensor:
    return x[s:].sum(0)


def joined(x: Tensor, s: int) -> Tensor:
    return torch.cat([x, x[:s]]).sum(0)


@pytest.mark.parametrize(
    ("function", "what"), [(from_a_size, "from z1"), (joined, "which is no size")]
)
def test_rows_that_begin_at_a_size_are_refused(function: Function, what: str) -> None:
    with pytest.raises(Unpadded, match=what):
        padded(function)


def test_alike_is_no_more_than_rounding() -> None:
    one = torch.ones(4)
    assert alike(one, one * (1 + 1e-5)) and not alike(one, one * 1.001)
    assert not alike(one, one.double()) and not alike(one, one[:3])
    assert not alike(one, torch.full((4,), float("nan")))
    number = torch.tensor(2.0)
    assert alike(number, number * 1.005) and not alike(number, number * 1.02)
    assert not alike(torch.zeros(()), torch.tensor(1e-30))
    assert not alike(torch.tensor([1]), torch.tensor([2]))
