"""From the oracles' networks to the engine's modules, and back to theta [P] and matrices [P, P].

The oracles (tests/oracles) hold a network as matrices W_i [d_i, n_i] and theta as their stacked
columns; the engine holds an nn.Module and a Vec. The order of layers and the place of the bias (the
last column) are the same, so that a Vec flattens to theta by `dense.flatten`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from oracles import dense
from torch import Tensor, nn

from kfac_lab import Problem, Recipe, Vec
from kfac_lab.core.passes import subset
from kfac_lab.core.problem import Drawn
from kfac_lab.engine import Engine
from kfac_lab.paper.block_diagonal import BlockDiagonal

STRUCTURES = ("block_diagonal", "block_tridiagonal")


def in_turns(one: Any, other: Any) -> list[Any]:
    """Each structure with one of two values; the other two pairs in `make soak`."""
    soak = [(STRUCTURES[0], other), (STRUCTURES[1], one)]
    told = [(STRUCTURES[0], one), (STRUCTURES[1], other)]
    return [*told, *(pytest.param(*pair, marks=pytest.mark.soak) for pair in soak)]


LIKELIHOODS = dense.LIKELIHOODS
GAUSSIAN = ("gaussian_half", "gaussian_full")
TEXT = {
    "gaussian_half": "gaussian",
    "gaussian_full": "gaussian(scale='full')",
    "bernoulli": "bernoulli",
    "categorical": "categorical",
}
MODULES = {
    "identity": nn.Identity,
    "tanh": nn.Tanh,
    "logistic": nn.Sigmoid,
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
}


# --- numbers --------------------------------------------------------------------------------------


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def cases(likelihood: str, count: int, d_in: int, d_out: int, seed: int = 0):
    """Inputs [N, d_0] and targets [N, K]; Bernoulli targets are grey, classes come one-hot."""
    x, raw = draw(count, d_in, seed=seed), draw(count, d_out, seed=seed + 1000)
    if likelihood == "bernoulli":
        return x, torch.sigmoid(3 * raw)
    if likelihood == "categorical":
        return x, dense.as_targets(likelihood, raw.argmax(1), d_out)
    return x, raw


def problem(
    likelihood: str = "gaussian_half",
    dims: tuple[int, ...] = (5, 4, 3, 4, 3),
    count: int = 30,
    activation: Any = "tanh",
    bias: Any = True,
    seed: int = 0,
):
    """(network of the oracles, inputs, targets)."""
    net = dense.random_network(dims, activation, bias, seed=seed)
    return (net, *cases(likelihood, count, dims[0], dims[-1], seed=seed))


def close(left: Any, right: Any, tol: float = 1e-10) -> None:
    """Entries equal within tol of the larger of 1 and their size."""
    left, right = torch.as_tensor(left), torch.as_tensor(right)
    torch.testing.assert_close(left, right, rtol=tol, atol=tol)


# --- modules --------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A module around a Sequential: the engine cannot see through it and takes its generic path."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Transformed(nn.Module):
    """The network of section 10: bias-free Linears between fixed maps Omega and Phi."""

    def __init__(self, net: dense.Network) -> None:
        super().__init__()
        assert net.omega is not None and net.phi is not None
        self.layers = nn.ModuleList(linear(w, False) for w in net.weights)
        self.omega, self.phi, self.bias = net.omega, net.phi, net.bias
        self.maps = [dense.ACTIVATIONS[name] for name in net.activations]

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            if self.bias[i]:
                x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
            x = self.maps[i](layer(x @ self.omega[i].t()) @ self.phi[i].t())
        return x


def linear(weight: Tensor, bias: bool) -> nn.Linear:
    """A float64 Linear with the matrix [d_out, d_in (+1)]."""
    d_out, d_in = weight.shape
    module = nn.Linear(d_in - int(bias), d_out, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(weight[:, :-1] if bias else weight)
        if bias:
            module.bias.copy_(weight[:, -1])
    return module


def sequential(net: dense.Network) -> nn.Sequential:
    """The module of a plain network."""
    modules: list[nn.Module] = []
    for weight, name, bias in zip(net.weights, net.activations, net.bias, strict=True):
        modules.append(linear(weight, bias))
        if name not in ("identity", "linear"):
            modules.append(MODULES[name]())
    return nn.Sequential(*modules)


def module_of(net: dense.Network, path: str = "explicit") -> nn.Module:
    """The module of any network; path "generic" hides the Sequential in a Module."""
    if net.omega is not None:
        return Transformed(net)
    body = sequential(net)
    return body if path == "explicit" else Wrapped(body)


# --- parts for the recipe -------------------------------------------------------------------------


@dataclass(frozen=True)
class AllPairs(BlockDiagonal):
    """Block-diagonal, but the store keeps the cross moments of every pair: all of F-tilde."""

    def pairs(self, chains):
        return [pair for chain in chains for pair in itertools.combinations(chain, 2)]


@dataclass(frozen=True)
class Atoms:
    """g from the model's targets one by one, each with the root of its probability (exact)."""

    likelihood: str
    fraction: float = 1.0

    def decay(self, k):
        return 0.0

    def cotangents(self, likelihood, outputs, targets, draw):
        y, weight = dense.model_atoms(self.likelihood, outputs)
        for q in range(y.shape[1]):
            yield dense.score(self.likelihood, outputs, y[:, q]) * weight[:, q, None].sqrt()


# --- engines --------------------------------------------------------------------------------------

# Nothing random, all of the batch, everything fresh at every step; slots are given by keyword.
PLAIN = {
    "estimator": "exact(fraction=1.0)",
    "quadratic_model": "exact_fisher(fraction=1.0)",
    "average": "none",
}
# The paper's adaptation from lambda_0 = 1 (section 9).
ADAPTIVE = {
    "damping": "levenberg_marquardt(lam=1.0)",
    "momentum": "optimal",
    "schedule": "periodic(T1=5, T2=20, T3=20, burn_in=3)",
}
# What the invariance and the fixed quadratics ask for: no adaptation at all.
UNDAMPED = {
    "estimator": "exact(fraction=1.0, limit=0.0)",
    "damping": "constant(lam=0.0, gamma=0.0)",
    "schedule": "every_step",
}


def engine_of(
    net: dense.Network,
    likelihood: str,
    x: Tensor,
    y: Tensor,
    *,
    path: str = "explicit",
    l2: float = 0.0,
    seed: int = 0,
    chunk: int = 5000,
    **slots: Any,
) -> Engine:
    """An Engine on a fresh module with the network's parameters and the whole set as its batch."""
    parts = {**PLAIN, "batch": f"constant(size={len(x)})", **slots}
    given = Problem(
        model=module_of(net, path), likelihood=TEXT[likelihood], inputs=x, targets=y, l2=l2
    )
    engine = Engine(given, Recipe(**parts), seed, chunk=chunk)
    explicit = path == "explicit" and net.omega is None
    assert (engine.passes.plan is not None) == explicit
    return engine


def in_order(engine: Engine) -> Drawn:
    """The whole set as a batch whose rows keep their order: S1 and S2 are its leading rows."""
    return Drawn(engine.problem.inputs, engine.problem.targets, None)


def theta_of(engine: Engine) -> Tensor:
    """theta [P] as the oracles stack it."""
    return flat(engine.network.pack([t.detach() for t in engine.network.tensors]))


def set_theta(engine: Engine, theta: Tensor) -> None:
    """Writes theta [P] into the module."""
    values = engine.network.unpack(unflat(engine, theta))
    with torch.no_grad():
        for tensor, value in zip(engine.network.tensors, values, strict=True):
            tensor.copy_(value)


def flat(vector: Vec) -> Tensor:
    """A Vec as a vector [P]."""
    return dense.flatten(list(vector.matrices))


def unflat(engine: Engine, theta: Tensor) -> Vec:
    """A vector [P] as a Vec."""
    like = engine.network.pack([t.detach() for t in engine.network.tensors])
    return Vec([m.contiguous() for m in dense.unflatten(theta, list(like.matrices))])


def matrix_of(engine: Engine, preconditioner: Any = None) -> Tensor:
    """The preconditioner [P, P], by applying it to the unit vectors."""
    inverse = engine.state_.inverse if preconditioner is None else preconditioner
    size = len(theta_of(engine))
    unit = torch.eye(size, dtype=torch.float64)
    columns = [flat(inverse.apply(unflat(engine, unit[:, j]))) for j in range(size)]
    return torch.stack(columns, dim=1)


def amend(engine: Engine, **fields: Any) -> None:
    """Other fields of an engine's State."""
    engine.held = replace(engine.held, state=replace(engine.state_, **fields))


def moments_of(engine: Engine, side: Any = None):
    """The store's moments as the oracles' tables A, G; pairs that are not kept are None."""
    assert engine.store is not None
    count = len(engine.network.uses)
    current = engine.store.current if side is None else side
    tables = []
    for name in ("A", "G"):
        table: list[list[Tensor | None]] = [[None] * count for _ in range(count)]
        for (key, i, j), value in current.items():
            if key == name:
                table[i][j] = value
                table[j][i] = value if i == j else value.t()
        tables.append(table)
    return tables


def bound(engine: Engine) -> Drawn:
    """The whole set in order, after the engine has looked at the network."""
    batch = in_order(engine)
    engine.bind(batch.inputs, batch.targets)
    return batch


def evaluated_of(engine: Engine, rows: int | None = None, step: int = 1):
    """One evaluation of the whole set without a step: h, its gradient, J v; S2 is `rows` rows."""
    batch = bound(engine)
    count = len(batch.inputs) if rows is None else rows
    none = [False] * len(engine.blocks)
    seen, _ = engine.passes.evaluate(batch.inputs, batch.targets, None, step, count, None, none)
    return seen


def statistics_of(engine: Engine, step: int = 1, model_rows: int = 1):
    """The moments of one step alone (epsilon = 0) as tables A, G; no step is made."""
    batch, estimator = bound(engine), engine.parts["estimator"]
    rows = subset(estimator, len(batch.inputs))
    assert engine.store is not None
    gathered = engine.store.accumulate(0.0, rows)
    none = [False] * len(engine.blocks)
    engine.passes.evaluate(
        batch.inputs, batch.targets, None, step, model_rows, (rows, estimator, gathered), none
    )
    gathered.finish()
    return moments_of(engine, engine.store.spare)


def fisher_of(engine: Engine, rows: int | None = None) -> Tensor:
    """The exact Fisher [P, P], by the engine's products with the unit vectors."""
    seen = evaluated_of(engine, rows)
    unit = torch.eye(len(theta_of(engine)), dtype=torch.float64)
    return torch.stack([flat(seen.fisher(unflat(engine, v))) for v in unit], dim=1)


def numbers(record: Any) -> dict[str, float]:
    """The record's scalars as floats."""
    names = ("loss", "error", "alpha", "mu", "lam", "gamma", "rho", "predicted", "norm_squared")
    return {name: float(getattr(record, name)) for name in (*names, "slope", "actual", "eta")}
