"""What the processes of a test do: small trainings whose whole state is returned as tensors.

Each is a function of (rank, size) and runs in one process as well, as (0, 1). Processes of a job
run them by ``ddp_worker.py``; the same function alone is what they are compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import kfac_lab as kl
from kfac_lab.core.passes import Passes
from kfac_lab.optim import checks

CASES, STEPS, FEWER = 48, 25, 13

# λ is adapted at every second step, γ searched and the inverse built at every sixth.
BUSY = "periodic(T1=2, T2=6, T3=6, burn_in=3)"


def network(kind: str = "plain", seed: int = 0, dtype=torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    middle = {
        "plain": [nn.Tanh()],
        "norm": [nn.LayerNorm(7), nn.Tanh()],
        "batch norm": [nn.BatchNorm1d(7), nn.Tanh()],
    }[kind]
    layers = [nn.Linear(6, 7), *middle, nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)]
    return nn.Sequential(*layers).to(dtype)


def data(dtype=torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(CASES, 6, generator=generator, dtype=torch.float64)
    y = (torch.rand(CASES, 3, generator=generator) < 0.4).double()
    return x.to(dtype), y.to(dtype)


def recipe(size: int, **parts) -> kl.Recipe:
    """The paper's with everything due often; the collective of this plugin in every case."""
    return kl.Recipe.of("paper").replace(
        **{
            "estimator": "sampled(fraction=0.5)",
            "quadratic_model": "exact_fisher(fraction=0.5)",
            "damping": "levenberg_marquardt(lam=1.0)",
            "schedule": BUSY,
            "batch": "constant(size=32)",
            "collective": "distributed",
            **parts,
        }
    )


def numbers(engine, history) -> dict[str, Tensor]:
    """θ, δ, the moments, part_states and inverses, θ̄, and a column for each number of the steps."""
    state = engine.state_
    found = {f"theta {n}": t for n, t in enumerate(engine._theta)}
    found |= {f"delta {n}": t for n, t in enumerate(state.previous)}
    found |= {f"moment {key}": t for key, t in engine.store.current.items()}
    for n, part_state in enumerate(state.block_states):
        found |= {f"part_state {n} {key}": t for key, t in part_state.items()}
    x = torch.Generator().manual_seed(1)
    for n, inverse in enumerate(state.inverse.inverses):
        shape = engine.network.layers[n].d_out, engine.network.layers[n].d_in
        ones = torch.randn(*shape, generator=x, dtype=torch.float64).to(engine._theta[0].dtype)
        found[f"inverse {n}"] = inverse.apply(ones)
    found |= {f"average {n}": t for n, t in enumerate(engine.average() or ())}
    found |= {f"buffer {n}": b for n, b in engine.problem.model.named_buffers()}
    for name in ("loss", "error", "alpha", "mu", "lam", "gamma", "rho", "predicted", "batch"):
        found[name] = torch.tensor([float(v) for v in history[name]], dtype=torch.float64)
    return {key: value.detach().clone() for key, value in found.items()}


def trained_by_kfac(rank, size, dtype=torch.float64, steps=STEPS, kind="plain", **parts):
    """``kl.KFAC`` on this process's half of the cases, taken whole: every ``size``-th case."""
    whole = {"estimator": "sampled(fraction=1.0)", "quadratic_model": "exact_fisher(fraction=1.0)"}
    optimizer = kl.KFAC(
        network(kind, dtype=dtype), "bernoulli", recipe=recipe(size, **{**whole, **parts}), l2=1e-3
    )
    x, y = data(dtype)
    for _ in range(steps):
        optimizer.step(x[rank::size], y[rank::size])
    return numbers(optimizer._engine, optimizer.history)


def run_of(size, kind="plain", seed=0, dtype=torch.float64, **parts) -> kl.Run:
    x, y = data(dtype)
    problem = kl.Problem(
        model=network(kind, seed, dtype), likelihood="bernoulli", inputs=x, targets=y, l2=1e-3
    )
    return kl.Run(problem, recipe(size, **parts), seed=0, device="cpu")


def trained_by_run(rank, size, steps=STEPS, **parts):
    """``kl.Run``: every process draws the whole batch and takes its share, S1 and S2 included."""
    run = run_of(size, **parts).advance(steps)
    return numbers(run.stepper, run.history)


# --- one process or two: the same -----------------------------------------------------------------


def kfac(rank, size):
    return trained_by_kfac(rank, size)


def kfac_float32(rank, size):
    return trained_by_kfac(rank, size, dtype=torch.float32)


def run(rank, size):
    return trained_by_run(rank, size)


def run_exact(rank, size):
    return trained_by_run(rank, size, estimator="exact(fraction=0.5)", steps=8)


def run_krylov(rank, size):
    return trained_by_run(rank, size, momentum="conjugate_gradient(steps=3)", steps=8)


def run_diagonal(rank, size):
    """A block with a part_state, averaged over processes by the engine."""
    return trained_by_run(rank, size, FEWER, block='{"0": "diagonal", "*": "kronecker"}')


def run_generic(rank, size):
    """A network that takes the generic passes; what no layer claims has the identity."""
    return trained_by_run(rank, size, FEWER, kind="norm", fallback="identity")


def run_tridiagonal(rank, size):
    return trained_by_run(rank, size, FEWER, structure="block_tridiagonal")


def sharded(rank, size):
    return trained_by_run(rank, size, structure="sharded")


def sharded_eigh(rank, size):
    return trained_by_run(
        rank, size, FEWER, structure="sharded", block='kronecker(inverse="eigh", pi="spectral")'
    )


def sharded_sketches(rank, size):
    block = "kronecker(factor_a='lowrank_plus_diagonal', factor_g='diagonal', rank=2)"
    return trained_by_run(rank, size, FEWER, structure="sharded", block=block)


def sharded_warm(rank, size):
    """Newton–Schulz starts from the inverse in use, which its owner has."""
    block = "kronecker(inverse='newton_schulz')"
    return trained_by_run(rank, size, FEWER, structure="sharded", block=block)


def sharded_tridiagonal(rank, size):
    return trained_by_run(rank, size, FEWER, structure="sharded(inner='block_tridiagonal')")


def sharded_ekfac(rank, size):
    """A state that ``factorise`` changes and ``observe`` averages; the other plugin, if there."""
    if "ekfac" not in kl.lab.names("block"):
        return {}
    schedule = "periodic(T1=2, T2=6, T3=6, burn_in=3, T_scale=1)"
    return trained_by_run(rank, size, FEWER, structure="sharded", block="ekfac", schedule=schedule)


def swapped(rank, size):
    """From ``single_process`` and back in mid-run: both processes make the same steps meanwhile."""
    here = run_of(size, collective="single_process").advance(6)
    here.swap(collective="distributed", structure="sharded").advance(8)
    here.swap(structure="block_diagonal").advance(4)
    here.swap(collective="single_process").advance(4)
    return numbers(here.stepper, here.history)


def other_start(rank, size):
    """Every process starts elsewhere, and takes the first one's parameters."""
    return trained_by_run(rank, size, seed=rank, steps=8)


def preconditioner(rank, size):
    """One's own loop: the gradient is averaged by the loop, the statistics by the collective."""
    model = network()
    x, y = data()
    x, y = x[rank::size], y[rank::size]
    parts = recipe(size, estimator="sampled(fraction=1.0)", damping="constant(lam=0.1)")
    pre = kl.Preconditioner(model, "bernoulli", recipe=parts)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), y, reduction="sum")
        (loss / len(x)).backward()
        parts["collective"].mean_([p.grad for p in model.parameters()])
        pre.step()
        optimizer.step()
    return {f"theta {n}": p.detach().clone() for n, p in enumerate(model.parameters())}


def masked(rank, size):
    """torch's mean over classes' weights, most of one process's targets being ignored."""
    x, y = data()
    classes = y.sum(1).long().clamp(max=2)
    classes[torch.arange(CASES) % 3 > 0] = -100
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 3.0, 0.5]).double(), label_smoothing=0.1)
    problem = kl.Problem(model=network(), likelihood=loss, inputs=x, targets=classes, l2=1e-3)
    run = kl.Run(problem, recipe(size), seed=0, device="cpu").advance(FEWER)
    return numbers(run.stepper, run.history)


def digits(rank, size):
    """A registered problem in float32 by a registered recipe; 1024 and its shares divide by 2."""
    parts = kl.Recipe.of("paper").replace(
        collective="distributed", structure="sharded", batch="constant(size=1024)"
    )
    here = kl.Run("digits", recipe=parts, seed=0, device="cpu").advance(STEPS)
    return numbers(here.stepper, here.history)


SAME = {
    function.__name__: function
    for function in (
        kfac,
        kfac_float32,
        run,
        run_exact,
        run_krylov,
        run_diagonal,
        run_generic,
        run_tridiagonal,
        sharded,
        sharded_eigh,
        sharded_sketches,
        sharded_warm,
        sharded_tridiagonal,
        sharded_ekfac,
        swapped,
        other_start,
        preconditioner,
        masked,
        digits,
    )
}


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
