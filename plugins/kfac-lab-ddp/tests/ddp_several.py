"""What only several processes do, as `ddp_scenarios.py`: differing, failing, sending."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ddp_scenarios import (
    data,
    network,
    numbers,
    recipe,
    run_of,
    trained_by_kfac,
    trained_by_run,
)

import kfac_lab as kl
from kfac_lab.core.passes import Passes
from kfac_lab.optim import checks

# --- not the same: the comparison must see it -----------------------------------------------------


def without_averaging(rank, size):
    """It is refused; here the refusal is out of the way."""
    right = checks.check_processes
    checks.check_processes = lambda who, recipe: None
    try:
        return trained_by_kfac(rank, size, steps=3, collective="solo")
    finally:
        checks.check_processes = right


def slices_of_another(rank, size):
    """Every process takes the first one's uniforms for its rows."""
    right = Passes.uniforms

    def wrong(self, *args):
        place = self._place
        self._place = lambda: place()._replace(rank=0)
        try:
            return right(self, *args)
        finally:
            self._place = place

    Passes.uniforms = wrong
    try:
        return trained_by_run(rank, size, steps=3)
    finally:
        Passes.uniforms = right


def rows_of_another(rank, size):
    """Every process takes the first one's share of the batch."""
    right = Passes.share

    def wrong(self, drawn):
        place = self._place
        self._place = lambda: place()._replace(rank=0)
        try:
            return right(self, drawn)
        finally:
            self._place = place

    Passes.share = wrong
    try:
        return trained_by_run(rank, size, steps=3)
    finally:
        Passes.share = right


# --- only with several processes ------------------------------------------------------------------


def running_statistics(rank, size):
    """Batch normalisation: θ and buffers agree on all processes."""
    return trained_by_run(rank, size, kind="batch norm", fallback="identity", steps=5)


def messages(rank, size):
    """``mean_`` and ``broadcast_`` on all sorts of tensors, in buckets of at most 1 MiB."""
    one = kl.lab.component("collective", "distributed(bucket=1)")
    scale = float(rank + 1)
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4) * scale
    big = torch.full((300_000,), scale)
    tensors = [
        base.t(),  # not contiguous
        torch.tensor(scale, dtype=torch.float64),  # one number
        big,
        torch.full((200_000,), 2 * scale),
        torch.zeros(0),
        torch.full((2, 2), scale, requires_grad=True).detach(),
    ]
    one.mean_(tensors)
    sent = [torch.full((3,), scale), torch.tensor(rank), torch.full((2, 2), scale).t()]
    one.broadcast_(sent, 1)
    found = {f"mean {n}": t.clone() for n, t in enumerate(tensors)} | {"base": base}
    return found | {f"sent {n}": t for n, t in enumerate(sent)}


@dataclass(frozen=True)
class Spoilt:
    """``kronecker`` whose factors on one process break: by an exception, or by numbers."""

    how: str = "raise"
    at: int = 1
    only: int = 1  # the rank
    rank: int = 0

    def wants(self):
        return ("A", "G")

    def factorise(self, moments, part_state):
        A, G = moments["A"].clone(), moments["G"].clone()
        count = part_state.get("count", 0) + 1
        if count >= self.at and self.rank == self.only:
            if self.how == "raise":
                raise ZeroDivisionError("the block of this process broke")
            A -= (1e-5 if self.how == "jitter" else 1e3) * torch.eye(len(A), dtype=A.dtype)
            if self.how == "jitter":
                A = torch.diag(torch.linspace(-1e-7, 1, len(A), dtype=A.dtype))
        theirs = kl.lab.component("block", "kronecker(pi='one')")
        part, _ = theirs.factorise({"A": A, "G": G}, {})
        return part, {"count": count}

    def damped(self, factored, part_state, strength, previous):
        theirs = kl.lab.component("block", "kronecker(pi='one')")
        return theirs.damped(factored, {}, strength, previous)


def spoilt(rank, size, how, at):
    here = run_of(
        size,
        structure="sharded",
        block=Spoilt(how, at, 1, rank),
        schedule="periodic(T1=100, T2=100, T3=1)",
        damping="constant(lam=0.0, gamma=0.0)" if how == "jitter" else "constant(lam=0.1)",
    )
    message, kept, jitter, theta = "", [], [], None
    for _ in range(8):
        theta = [t.detach().clone() for t in here.problem.model.parameters()]
        try:
            record = here.step_once()
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            break
        kept.append(record.kept_inverse)
        jitter.append(dict(record.jitter))
    same = all(map(torch.equal, theta, here.problem.model.parameters()))
    return {
        "message": message,
        "kept": kept,
        "jitter": jitter,
        "same": same,
        "theta": [p.detach().clone() for p in here.problem.model.parameters()],
    }


def spoilt_exception(rank, size):
    return spoilt(rank, size, "raise", 3)


def spoilt_matrix(rank, size):
    return spoilt(rank, size, "negative", 3)


def spoilt_slightly(rank, size):
    return spoilt(rank, size, "jitter", 2)


def not_a_number(rank, size):
    """One process's cases are spoilt once: the step happens nowhere, and the next one does."""
    optimizer = kl.KFAC(network(), "bernoulli", recipe=recipe(size), l2=1e-3)
    x, y = data()
    x, y = x[rank::size], y[rank::size]
    message = ""
    for step in range(6):
        theta = [p.detach().clone() for p in optimizer.model.parameters()]
        bad = torch.full_like(x, float("nan")) if step == 3 and rank == 1 else x
        try:
            optimizer.step(bad, y)
        except kl.NumericalError as error:
            message = str(error)
            assert all(map(torch.equal, theta, optimizer.model.parameters()))
    return {"message": message, "steps": optimizer.step_count, "theta": numbers_of(optimizer)}


def numbers_of(optimizer):
    return numbers(optimizer._engine, optimizer.history)


SEVERAL = {
    function.__name__: function
    for function in (
        without_averaging,
        slices_of_another,
        rows_of_another,
        running_statistics,
        messages,
        spoilt_exception,
        spoilt_matrix,
        spoilt_slightly,
        not_a_number,
    )
}
