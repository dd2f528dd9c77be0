"""The runs whose numbers are recorded: every recipe, structure, estimator, block, face and swap.

For `test_trajectories.py` and `record.py`, and nobody else. A case returns what it is to be
remembered by: a few losses to read, and the tensors that make its digest.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import kfac_lab as kl

STEPS = 22  # past the refresh and the search for γ at 20
Case = Callable[[], "tuple[list[float], list[Tensor]]"]

MLP, WIDE = (12, 9, 4, 9, 12), (6, 8, 5)


def chain(*sizes: int, seed: int = 3, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Linear layers with tanh between them."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layer = nn.Linear(a, b)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(b, a, generator=generator) / a**0.5)
            layer.bias.copy_(torch.randn(b, generator=generator) * 0.1)
        parts += [layer, nn.Tanh()]
    return nn.Sequential(*parts[:-1]).to(dtype)


class Sharing(nn.Module):
    """One layer called twice, one at several positions, dropout and BatchNorm: the general path."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.twice = nn.Linear(3, 6), nn.Linear(6, 6)
        self.norm, self.leave = nn.BatchNorm1d(6), nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.enter(x))
        h = torch.tanh(self.twice(torch.tanh(self.twice(h)))).mean(1)
        return self.leave(self.drop(self.norm(h))) * self.scale


def data(kind: str, inputs: int, outputs: int, cases: int = 60) -> tuple[Tensor, Tensor]:
    """Seeded cases for a likelihood."""
    g = torch.Generator().manual_seed(5)
    x = torch.randn(cases, inputs, generator=g, dtype=torch.float64)
    if kind == "categorical":
        return x, torch.randint(0, outputs, (cases,), generator=g)
    y = torch.rand(cases, outputs, generator=g, dtype=torch.float64)
    return x, y.round() if kind == "bernoulli" else y


def problem(kind: str = "bernoulli", l2: float = 1e-5, dtype: torch.dtype = torch.float64) -> Any:
    """A small problem of each likelihood on a chain of layers."""
    sizes = WIDE if kind == "categorical" else MLP
    x, y = data(kind, sizes[0], sizes[-1])
    y = y if kind == "categorical" else y.to(dtype)
    return kl.Problem(
        model=chain(*sizes, dtype=dtype), likelihood=kind, inputs=x.to(dtype), targets=y, l2=l2
    )


def of_run(run: Any, steps: int = STEPS, swaps: dict[int, dict[str, str]] | None = None) -> Any:
    """Losses and tensors of a run over so many steps."""
    for k in range(steps):
        if swaps and k in swaps:
            run.swap(**swaps[k])
        run.advance(1)
    columns = ("loss", "error", "alpha", "mu", "lam", "gamma", "rho", "predicted", "cross_weight")
    history = [torch.tensor([float(v) for v in run.history[c]]) for c in columns]
    theta = [p.detach() for p in run.problem.model.parameters()]
    buffers = [b.detach().to(torch.float64) for b in run.problem.model.buffers()]
    average = run.stepper.average()
    losses = [float(v) for v in run.history["loss"]]
    return losses[::7], [*theta, *buffers, *(average or []), *history]


def running(
    recipe: str, swaps: dict[int, dict[str, str]] | None = None, kind: str = "bernoulli", **new: Any
) -> Case:
    """A Run of a named recipe with parts replaced, and parts swapped before given steps."""
    dtype, l2 = new.pop("dtype", torch.float64), new.pop("l2", 1e-5)

    def case() -> tuple[list[float], list[Tensor]]:
        made = kl.Recipe.named(recipe).replace(**new)
        return of_run(kl.Run(problem(kind, l2, dtype), made, seed=1), swaps=swaps)

    return case


def odd() -> tuple[list[float], list[Tensor]]:
    """The general path: shared layers, dropout, BatchNorm, a fallback."""
    torch.manual_seed(2)
    g = torch.Generator().manual_seed(6)
    x = torch.randn(48, 5, 3, generator=g, dtype=torch.float64)
    y = torch.rand(48, 4, generator=g, dtype=torch.float64)
    one = kl.Problem(model=Sharing().double(), likelihood="gaussian", inputs=x, targets=y, l2=1e-4)
    recipe = kl.Recipe.named("paper").replace(
        fallback="diagonal", batch="constant(size=32)", estimator="sampled(fraction=0.5)"
    )
    return of_run(kl.Run(one, recipe, seed=4), 12)


def own_loop(recipe: str, lr: float = 1.0) -> Case:
    """`kl.KFAC` on batches of one's own, saved and loaded on the way."""

    def case() -> tuple[list[float], list[Tensor]]:
        model = chain(*WIDE)
        x, y = data("categorical", WIDE[0], WIDE[-1], 120)
        opt = kl.KFAC(model, "categorical", recipe=recipe, l2=1e-4, seed=2, lr=lr)
        losses = []
        for k in range(14):
            rows = slice(40 * (k % 3), 40 * (k % 3) + 40)
            losses.append(float(opt.step(x[rows], y[rows]).loss))
            if k == 8:
                saved = opt.state_dict()
                opt = kl.KFAC(model, "categorical", recipe=recipe, l2=1e-4, seed=2, lr=lr)
                opt.load_state_dict(saved)
        return losses[::4], [p.detach() for p in model.parameters()]

    return case


def preconditioned() -> tuple[list[float], list[Tensor]]:
    """`kl.Preconditioner` before torch's SGD."""
    model = chain(*WIDE)
    x, y = data("categorical", WIDE[0], WIDE[-1], 120)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pre = kl.Preconditioner(model, "categorical", seed=3, kl_clip=0.01, optimizer=sgd)
    losses = []
    for k in range(14):
        rows = slice(40 * (k % 3), 40 * (k % 3) + 40)
        sgd.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        pre.step()
        sgd.step()
        losses.append(float(loss))
    return losses[::4], [p.detach() for p in model.parameters()]


def forked_and_rewound() -> tuple[list[float], list[Tensor]]:
    """A run that is swapped, rewound and forked ends where an undisturbed one does."""
    run = kl.Run(problem(), "paper", seed=1)
    run.advance(8)
    run.swap(structure="block_tridiagonal")
    run.advance(6)
    run.rewind(5)
    return of_run(run.fork(), 10)


def cases() -> Iterator[tuple[str, Case]]:
    """Every case with its name."""
    named = ("paper", "paper_tridiagonal", "no_momentum", "heskes", "centering", "robust")
    for recipe in (*named, "small_batch", "nag", "adam", "muon"):
        yield recipe, running(recipe)
        yield f"{recipe} float32", running(recipe, dtype=torch.float32)
    for kind in ("gaussian", "categorical"):
        for recipe in ("paper", "paper_tridiagonal", "robust"):
            yield f"{recipe} {kind}", running(recipe, kind=kind)
    for estimator in ("sampled(fraction=1.0)", "exact", "empirical"):
        for structure in ("block_diagonal", "block_tridiagonal"):
            new = {"estimator": estimator, "structure": structure}
            yield f"{estimator} {structure}", running("paper", **new)
    for block in (
        'kronecker(pi="frobenius")', 'kronecker(pi="spectral")', 'kronecker(inverse="eigh")',
        'kronecker(inverse="newton_schulz")', 'kronecker(factor_a="lowrank_plus_diagonal")',
        'kronecker(tikhonov="unfactored")', "diagonal", "identity",
    ):  # fmt: skip
        yield block, running("paper", block=block)
    for slot, text in (
        ("quadratic_model", "approximate_fisher"), ("quadratic_model", "none"), ("damping", "tied"),
        ("damping", "constant(lam=0.1, gamma=0.3)"), ("damping", "scheduled"),
        ("momentum", "conjugate_gradient(steps=3)"), ("momentum", "fixed(lr=0.05)"),
        ("momentum", "norm_clip"), ("schedule", "on_drift(check=5)"), ("schedule", "every_step"),
        ("batch", "constant(size=25)"), ("average", "none"),
        ("structure", 'block_tridiagonal(sigma="smith")'),
    ):  # fmt: skip
        yield f"{slot} {text}", running("paper", **{slot: text})
    yield "low_rank", running("paper", structure="block_diagonal(low_rank=True)", l2=0.0)
    yield "swaps", running("paper", swaps=SWAPS)
    yield "odd model", odd
    for recipe in ("robust", "paper", "small_batch"):
        yield f"KFAC {recipe}", own_loop(recipe)
    yield "KFAC lr", own_loop("robust", lr=0.5)
    yield "Preconditioner", preconditioned
    yield "fork and rewind", forked_and_rewound


SWAPS = {
    3: {"structure": "block_tridiagonal"},
    6: {"damping": "constant(lam=0.5)", "momentum": "rescaled"},
    9: {"block": "diagonal"},
    12: {"block": "kronecker", "structure": "block_diagonal", "damping": "levenberg_marquardt"},
    15: {"estimator": "exact", "schedule": "on_drift(check=2)"},
    18: {"momentum": "optimal", "quadratic_model": "approximate_fisher", "average": "none"},
}


def played(case: Case) -> tuple[list[float], str]:
    """A case's losses and the digest of all its tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses, tensors = case()
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return losses, digest.hexdigest()[:16]
