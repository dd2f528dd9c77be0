"""What the processes of a test do: small trainings whose whole state is returned as tensors.

Each is a function of (rank, size) and runs in one process as well, as (0, 1). Processes of a job
run them by ``ddp_worker.py``; the same function alone is what they are compared with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import kfac_lab as kl

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
