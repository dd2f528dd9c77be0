"""Small runs, and the comparison of everything that persists in them, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from devices import here
from torch import Tensor, nn

import kfac_lab as kl
from kfac_lab.engine import Engine
from kfac_lab.paper.kronecker import Kronecker

# Everything is due at an even step: statistics, factors, inverse, γ and λ.
BUSY = "periodic(T1=2, T2=2, T3=2, burn_in=1)"
COUNT = 24
CONTAINERS = (Tensor, Mapping, list, tuple)


@dataclass(frozen=True)
class Unmultiplied(Kronecker):
    """A block without the product that ``approximate_fisher`` asks for: the engine refuses both."""

    product = None


def cases(count: int = COUNT, inputs: int = 6, outputs: int = 4) -> tuple[Tensor, Tensor]:
    """Inputs [count, inputs] and targets [count, outputs] in (0, 1)."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, inputs, generator=generator)
    return x, torch.sigmoid(x @ torch.randn(inputs, outputs, generator=generator))


def network(kind: str, inputs: int = 6, outputs: int = 4) -> nn.Sequential:
    """ "explicit" takes the shared passes; "generic" has buffers, dropout and loose tensors."""
    torch.manual_seed(3)
    if kind == "explicit":
        return nn.Sequential(
            nn.Linear(inputs, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, outputs)
        )
    return nn.Sequential(
        nn.Linear(inputs, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Dropout(0.2), nn.Linear(7, outputs)
    )


def problem_of(kind: str = "explicit", likelihood: str = "bernoulli", **more: Any) -> kl.Problem:
    """A problem of 24 cases on a fresh network; ``data=`` replaces the tensors."""
    x, y = cases()
    if "data" not in more:
        more = {"inputs": x, "targets": y, **more}
    return kl.Problem(model=network(kind), likelihood=likelihood, l2=1e-4, **more)


def recipe_of(kind: str = "explicit", **slots: Any) -> kl.Recipe:
    """The paper's recipe on batches of 16, everything due at even steps."""
    parts = {
        "estimator": "sampled(fraction=0.5)",
        "quadratic_model": "exact_fisher(fraction=0.5)",
        "damping": "levenberg_marquardt(lam=1.0)",
        "schedule": BUSY,
        "batch": "constant(size=16)",
        **slots,
    }
    if kind == "generic" and "fallback" not in parts:
        parts["fallback"] = "diagonal"
    return kl.Recipe(**parts)


def run_of(kind: str = "explicit", seed: int = 0, **slots: Any) -> kl.Run:
    """A run of ``problem_of`` by ``recipe_of``."""
    return kl.Run(problem_of(kind), recipe_of(kind, **slots), seed=seed, device=here())


def numbers(run: kl.Run) -> dict[str, Any]:
    """The history's columns but for the seconds."""
    columns = run.history.to_dict()
    del columns["seconds"]
    return columns


def amend(engine: Any, **fields: Any) -> None:
    """Other fields of an engine's State."""
    engine.held = replace(engine.held, state=replace(engine.state_, **fields))


def state_of(stepper: Any, *, time: bool = True) -> Any:
    """Everything a stepper keeps, as a tree; without ``time`` the seconds are left out."""
    tree = stepper.state()["tree"]
    return tree if time else _timeless(tree)


def _timeless(tree: Any) -> Any:
    """A saved tree without its clock, which stands there by name: in a dict or as a pair."""
    if isinstance(tree, dict):
        return {key: _timeless(value) for key, value in tree.items() if key != "seconds"}
    if isinstance(tree, (list, tuple)):
        return [_timeless(value) for value in tree if not _is_clock(value)]
    return tree


def _is_clock(value: Any) -> bool:
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    return pair and isinstance(value[0], str) and value[0] == "seconds"


def image(run: kl.Run) -> dict[str, Any]:
    """All that a failed step must leave alone, the global generators included."""
    return {
        "stepper": state_of(run.stepper),
        "model": {k: v.clone() for k, v in run.problem.model.state_dict().items()},
        "grads": [p.grad is None for p in run.problem.model.parameters()],
        "hooks": sum(len(m._forward_hooks) for m in run.problem.model.modules()),
        "modes": [m.training for m in run.problem.model.modules()],
        "history": run.history.state(),
        "k": run.step,
        "recipe": run.recipe.text(),
        "generator": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
        "precision": torch.get_float32_matmul_precision(),
    }


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Where two trees differ, to the last bit; NaN equals NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(_bits(a), _bits(b)):
            yield path
    elif isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        for key in a:
            yield from differences(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for n, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}/{n}")
    elif isinstance(a, CONTAINERS) or isinstance(b, CONTAINERS):
        yield f"{path}: {type(a).__name__} and {type(b).__name__}, of other keys or lengths"
    elif not (a == b or (a != a and b != b)):
        yield f"{path}: {a!r} and {b!r}"


def _bits(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    nan = torch.isnan(tensor)
    return torch.where(nan, torch.zeros_like(tensor), tensor) + nan


def same(a: Any, b: Any) -> None:
    """Fails, naming where, unless two trees agree to the last bit."""
    found = list(differences(a, b))
    assert not found, f"they differ at {found[:8]}"


def same_run(a: kl.Run, b: kl.Run) -> None:
    """Two runs are at the same point to the last bit; only their clocks may differ."""
    same(state_of(a.stepper, time=False), state_of(b.stepper, time=False))
    same(dict(a.problem.model.state_dict()), dict(b.problem.model.state_dict()))
    same(numbers(a), numbers(b))


#: a schedule past its burn-in, whose next refresh is far away
STEADY = "periodic(T1=2, T2=50, T3=50, burn_in=1)"


def steady(steps: int = 6, **slots: Any) -> kl.Run:
    """A run past its burn-in, whose next refresh is far away."""
    return run_of(**{"schedule": STEADY, **slots}).advance(steps)


def strength(run: kl.Run) -> list[float]:
    """λ, γ and η as numbers."""
    return [float(x) for x in run.stepper.state_.strength]


def reads_cost(monkeypatch: Any) -> None:
    """No read is free: for every engine, also of a fork's and of a replay's."""
    opened = Engine._open

    def open_(self: Engine, *arguments: Any) -> None:
        opened(self, *arguments)
        self._reads_are_free = False

    monkeypatch.setattr(Engine, "_open", open_)
