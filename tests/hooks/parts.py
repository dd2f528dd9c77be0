"""Toy plugins: components of every slot, modules made in the process, fabricated entry points."""

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kfac_lab.core.parameters import parameter
from kfac_lab.hooks import Lab, hookimpl
from kfac_lab.hooks.registry import FAMILIES, NEEDS


def _toy(slot: str, name: str) -> type:
    methods = {need: (lambda self, *a, **k: None) for need in NEEDS[slot]}
    fields = {"__annotations__": {"x": "float | None"}, "x": parameter(None, low=0.0)}
    body = {**methods, **fields, "__module__": __name__}
    return dataclass(frozen=True)(type(name.title(), (), body))


@dataclass(frozen=True)
class LevenbergMarquardt:
    """λ by the reduction ratio.

    The second line is not in the summary.
    """

    lam: float = parameter(150.0, symbol="λ", section="6.5", low=0, log=True)
    omega1: float = parameter(0.77, symbol="ω1", low=0.0, high=1.0)
    clip: bool = True

    def init(self, problem: Any) -> Any: ...

    def candidates(self, strength: Any, due: Any) -> Any: ...

    def adapt(self, strength: Any, part_state: Any, record: Any) -> Any: ...


NAMES = dict.fromkeys(NEEDS, ("plain",)) | {
    "method": ("kfac", "nag"),
    "estimator": ("sampled",),
    "block": ("kronecker", "diagonal", "identity"),
    "structure": ("block_diagonal", "block_tridiagonal"),
    "quadratic_model": ("exact_fisher",),
    "damping": ("constant",),
    "momentum": ("optimal",),
    "schedule": ("periodic",),
    "batch": ("exponential",),
    "average": ("polyak", "none"),
    "collective": ("solo",),
}
TOYS = {(slot, name): _toy(slot, name) for slot, names in NAMES.items() for name in names}
PAPER = """
# the paper's choices
method = kfac
estimator = sampled(x=0.125)
block = kronecker
structure = block_diagonal
quadratic_model = exact_fisher
damping = levenberg_marquardt(lam=150)

momentum = optimal
schedule = periodic
batch = exponential
average = polyak
collective = solo
"""
for _slot in NAMES:  # one that came later
    if f"\n{_slot} = " not in PAPER:
        PAPER += f"{_slot} = plain\n"
NAG = "method = nag\nbatch = exponential(x=3)\naverage = none\n"


def module(name: str = "plugin", /, **attributes: Any) -> types.ModuleType:
    """A module with these attributes; functions named like hooks become implementations."""
    made = types.ModuleType(name)
    for key, value in attributes.items():
        hooked = key.startswith("kfac_") and isinstance(value, types.FunctionType)
        setattr(made, key, hookimpl(value) if hooked else value)
    return made


def registers(slot: str, name: str, component: Any, **more: Any) -> types.ModuleType:
    """A module that registers one component."""

    def hook(register: Callable[..., None]) -> None:
        register(name, component, **more)

    return module(f"registers_{name}", **{FAMILIES[slot]: hook})


def _builtin_hook(slot: str) -> Callable[..., None]:
    def hook(register: Callable[..., None]) -> None:
        for name in NAMES.get(slot, ()):
            register(name, TOYS[slot, name])
        if slot == "damping":
            register("levenberg_marquardt", LevenbergMarquardt)
        if slot == "recipe":
            register("paper", PAPER, summary="the paper's")
            register("nag", NAG)

    return hook


def builtin() -> types.ModuleType:
    """What stands in for the box's own parts."""
    return module("paper", **{hook: _builtin_hook(slot) for slot, hook in FAMILIES.items()})


def toy_lab(*points: Any) -> Lab:
    """A Lab with the toy built-ins, and these entry points (none: discovery is refused)."""
    return Lab(builtins=[builtin()], entry_points=points or False)


class Distribution:
    """The two attributes of a distribution that are read."""

    def __init__(self, name: str, version: str) -> None:
        self.name, self.version = name, version


class Point:
    """An entry point that gives, or raises, what it was made with; ``loads`` counts."""

    def __init__(self, name: str, gives: Any, dist: str = "", version: str = "1.0") -> None:
        self.name, self.gives = name, gives
        self.dist = Distribution(dist or f"dist-{name}", version)
        self.loads = 0

    def load(self) -> Any:
        """What it was made with."""
        self.loads += 1
        if isinstance(self.gives, BaseException):
            raise self.gives
        return self.gives() if isinstance(self.gives, types.FunctionType) else self.gives
