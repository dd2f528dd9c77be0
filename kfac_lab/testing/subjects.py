"""Small inputs that the laws try components on; every number comes from a seed of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn

from kfac_lab.core.problem import Problem
from kfac_lab.core.vector import Vec
from kfac_lab.testing.trees import moved

__all__ = [
    "SIDES",
    "GivenMoments",
    "GivenTable",
    "LayerShape",
    "Subject",
    "draws",
    "made_once",
    "moments_of",
    "normal",
    "tiny_problem",
    "uniform",
    "vector_of",
]

P = ParamSpec("P")

#: (d_out, d_in) that laws try: wide, tall, square, one row
SIDES = ((3, 5), (6, 2), (4, 4), (1, 3))


@dataclass(frozen=True)
class Subject:
    """One input: ``where`` names it in a report, ``values`` holds what the slot needs."""

    where: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def to(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> Subject:
        """Another subject, every real tensor in that dtype, every tensor on that device."""

        def change(tensor: Tensor) -> Tensor:
            wanted = dtype if tensor.is_floating_point() else None
            return tensor.detach().to(device=device, dtype=wanted, copy=True)

        kind = str(dtype).removeprefix("torch.") if dtype is not None else device
        return replace(self, where=f"{self.where}, {kind}", values=moved(dict(self.values), change))

    def fresh(self) -> Subject:
        """The same numbers in tensors of its own."""
        values = moved(dict(self.values), lambda t: t.detach().clone())
        return replace(self, values=values)


def made_once(make: Callable[P, Subject]) -> Callable[P, Subject]:
    """Of a function that makes a subject of its arguments alone, which can be hashed: the subject
    is made once, and each call is given tensors of its own.
    """
    known = functools.cache(make)

    @functools.wraps(make)
    def fresh(*args: P.args, **kwargs: P.kwargs) -> Subject:
        return known(*args, **kwargs).fresh()  # type: ignore[arg-type]

    return fresh


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Numbers in the open interval (0, 1), float64."""
    return torch.rand(shape, generator=_generator(seed), dtype=torch.float64).clamp_(min=1e-12)


def draws(like: Tensor, seed: int = 0) -> Callable[[str], Tensor]:
    """The ``draw`` of a step: uniforms of the shape of ``like``, others for every purpose."""

    def draw(purpose: str) -> Tensor:
        if like.is_meta:
            return torch.empty_like(like)
        of_purpose = seed + sum(ord(letter) * 31**n for n, letter in enumerate(purpose)) % 2**31
        drawn = uniform(*like.shape, seed=of_purpose).to(like.dtype)
        return drawn.clamp_(torch.finfo(like.dtype).eps / 2, 1 - torch.finfo(like.dtype).eps / 2)

    return draw


# --- moments of a layer, made from rows -----------------------------------------------------------


class GivenMoments(dict[str, Tensor]):
    """A layer's moments by every name there is, and the ``shape`` (d_out, d_in) of its matrix."""

    shape: tuple[int, int]


def moments_of(rows: Tensor, cotangents: Tensor) -> GivenMoments:
    """The moments of rows ``[N, S, d_in]`` and cotangents ``[C, N, S, d_out]``.

    A is summed over positions, G averaged over them; both are means over the cases. The reduced
    ones are of a case's sum and mean over positions (Eschenhagen et al. 2023).
    """
    cases, positions, _ = rows.shape
    a = rows.flatten(0, 1)
    g = cotangents.flatten(0, 2)
    a_sum, g_sum = rows.sum(1), cotangents.sum(2).flatten(0, 1)
    found = GivenMoments(
        {
            "A": a.t() @ a / cases,
            "A.diagonal": (a * a).sum(0) / cases,
            "A.mean": a.sum(0) / cases / positions**0.5,
            "G": g.t() @ g / cases / positions,
            "G.diagonal": (g * g).sum(0) / cases / positions,
            "A.reduced": a_sum.t() @ a_sum / cases,
            "G.reduced": g_sum.t() @ g_sum / cases / positions**2,
        }
    )
    found.shape = (cotangents.shape[-1], rows.shape[-1])
    return found


@dataclass(frozen=True)
class LayerShape:
    """As much of a Layer as a structure may ask without touching a module."""

    path: str
    d_out: int
    d_in: int
    names: tuple[str, ...] = ("weight",)


@dataclass(frozen=True)
class GivenTable:
    """Moments of several layers, and the cross moments of the links."""

    layers: tuple[GivenMoments, ...]
    links: tuple[tuple[int, int], ...]
    crosses: tuple[tuple[Tensor, Tensor], ...]

    def __getitem__(self, layer: int) -> GivenMoments:
        return self.layers[layer]

    def cross(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        """E[ā_i ā_jᵀ] and E[g_i g_jᵀ] of a link."""
        return self.crosses[self.links.index((i, j))]


def vector_of(shapes: Sequence[tuple[int, int]], seed: int = 0) -> Vec:
    """A vector with matrices of these shapes."""
    return Vec([normal(*shape, seed=seed + 101 * n) for n, shape in enumerate(shapes)])


# --- a problem to train on ------------------------------------------------------------------------


def tiny_problem(
    *, l2: float = 1e-3, cases: int = 24, dtype: torch.dtype = torch.float32
) -> Problem:
    """24 cases, a network of 7-5-3 units with one layer without bias, Bernoulli outputs."""
    inputs = normal(cases, 7, seed=11).to(dtype)
    targets = torch.sigmoid(inputs @ normal(7, 3, seed=12).to(dtype))
    model = nn.Sequential(
        nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)
    ).to(dtype)
    with torch.no_grad():
        for n, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=20 + n) / parameter.shape[-1] ** 0.5)
    return Problem(model=model, likelihood="bernoulli", inputs=inputs, targets=targets, l2=l2)
