"""Seen: what pictures need of a run besides its columns, taken between two steps.

``seen(run)`` copies: factors, a few images, filters. The inverse in use is not copied where it is
on the CPU already, because nothing ever writes into one: a refresh makes another. So a picture can
be worked out and drawn in another thread while the run goes on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kfac_lab.core.likelihood import Categorical, CrossEntropy
from kfac_lab.core.traits import (
    CurvatureTraits,
    DampingTraits,
    InverseTraits,
    PreconditionerTraits,
    traits,
)
from kfac_lab.core.trees import moved
from kfac_lab.errors import KfacLabError

__all__ = ["WANTS", "Factor", "Reconstructed", "Seen", "Shape", "facts", "image_shape", "seen"]

#: what a view may ask for
WANTS = ("factors", "inverse", "images", "filters")
CASES = 8  # images beside their reconstructions
FILTERS = 40  # units of the first layer
SQUARED = "squared error"  # per case, summed over outputs


class Shape(NamedTuple):
    """A layer as a matrix: its path in the model, and its sides."""

    path: str
    d_out: int
    d_in: int


class Factor(NamedTuple):
    """A layer's second moment, undamped, as the store has it now (section 5).

    ``matrix`` is ``[d, d]``, or ``[d]`` where the block keeps no more than the diagonal;
    ``shift`` is what damping adds to its diagonal in the inverse in use (πγ or γ/π, section 6.3),
    None where the block is damped otherwise.
    """

    path: str
    letter: str  # Ā or G
    matrix: Tensor
    shift: float | None


class Reconstructed(NamedTuple):
    """Cases and what the model makes of them."""

    originals: Tensor  # [n, height, width]
    outputs: Tensor  # the same shape: the mean of the likelihood
    errors: tuple[float, ...]  # squared error of each, summed over its pixels
    held_out: bool


@dataclass(frozen=True, eq=False)
class Seen:
    """A run at a step boundary: small copies on the CPU, nothing that the run writes into.

    Attributes:
        step: k of the last step made.
        title: of the problem.
        method: that steps.
        unit: of the column ``error``, per case: squared error summed over outputs, or % wrong.
        band: the ρ below which λ grows and above which it shrinks; None where the damping has none.
        layers: their paths and sides, in the order of the network; () for a method without layers.
        factors: the second moments, two per layer; () where they were not asked for.
        preconditioner: the inverse in use, with ``apply``; None where there is none.
        images: cases and reconstructions; None where there are none.
        filters: first-layer weights of each unit as images ``[n, height, width]``, or None.
        units: how many units the first layer has.
        missing: for what was asked and is not here, why.
    """

    step: int
    title: str
    method: str
    unit: str
    band: tuple[float, float] | None = None
    layers: tuple[Shape, ...] = ()
    factors: tuple[Factor, ...] = ()
    preconditioner: Any = None
    images: Reconstructed | None = None
    filters: Tensor | None = None
    units: int = 0
    missing: Mapping[str, str] | None = None

    def why(self, want: str) -> str:
        """Why something that was asked for is not here."""
        return (self.missing or {}).get(want, "not taken from the run: nobody asked for it")


def seen(run: Any, wants: Iterable[str] | None = None) -> Seen:
    """What the views that want ``wants`` (:data:`WANTS`; None is all) need of a run.

    Waits for the step that is being made, if any; changes nothing, draws no random number. What
    cannot be read is left out, and ``Seen.why`` says why.

    Raises:
        KfacLabError: an unknown want.
    """
    asked = tuple(WANTS if wants is None else wants)
    unknown = [want for want in asked if want not in WANTS]
    if unknown:
        raise KfacLabError(f"a run is not seen by {unknown[0]!r}: use {', '.join(WANTS)}")
    with run._lock:  # held by the run for as long as a step takes
        found: dict[str, Any] = {}
        missing: dict[str, str] = {}
        for want in asked:
            try:
                found.update(_TAKERS[want](run))
            except KfacLabError as error:
                missing[want] = str(error)
            except Exception as error:  # a picture is missing; the run must go on
                missing[want] = f"could not be read: {type(error).__name__}: {error}"
        return replace(facts(run), layers=_layers(run), missing=missing, **found)


def facts(run: Any) -> Seen:
    """What is known of a run without waiting for the step that is being made."""
    curved = run.recipe.method == "kfac"
    band = traits(run.recipe["damping"], DampingTraits).band if curved else None
    classes = isinstance(run.problem.likelihood, (Categorical, CrossEntropy))
    return Seen(
        step=run.step,
        title=run.problem.title,
        method=run.recipe.method,
        unit="% wrong" if classes else SQUARED,
        band=None if band is None else (float(band[0]), float(band[1])),
    )


class _Nothing(KfacLabError):
    """There is no such thing in this run."""


def _layers(run: Any) -> tuple[Shape, ...]:
    network = traits(run.stepper, CurvatureTraits).network
    return tuple(
        Shape(layer.path or type(layer.module).__name__, layer.d_out, layer.d_in)
        for layer in (() if network is None else network.layers)
    )


def _factors(run: Any) -> dict[str, Any]:
    kept = traits(run.stepper, CurvatureTraits)
    if kept.store is None or not run.step:
        raise _Nothing(_no_curvature(run))
    inverses = traits(kept.state_.inverse, PreconditionerTraits).inverses or ()
    made = []
    for i, layer in enumerate(_layers(run)):
        block = traits(inverses[i], InverseTraits) if i < len(inverses) else InverseTraits()
        for name, letter in (("A", "Ā"), ("G", "G")):
            moment = kept.store.current.get((name, i, i))
            if moment is None:
                moment = kept.store.current.get((f"{name}.diagonal", i, i))
            if moment is None:
                continue
            shift = block.A_shift if name == "A" else block.G_shift
            made.append(
                Factor(layer.path, letter, _copy(moment), None if shift is None else float(shift))
            )
    if not made:
        raise _Nothing("the blocks of this recipe keep no second moments")
    return {"factors": tuple(made)}


def _inverse(run: Any) -> dict[str, Any]:
    state = traits(run.stepper, CurvatureTraits).state_
    if state is None or state.inverse is None:
        raise _Nothing(_no_curvature(run))
    inverse = state.inverse
    if run.device.type != "cpu":
        inverse = moved(inverse, "cpu")
    return {"preconditioner": inverse}


def _no_curvature(run: Any) -> str:
    if traits(run.stepper, CurvatureTraits).state_ is None:
        return f"the method {run.recipe.method} keeps no curvature"
    return "the first step has not been made yet"


def _images(run: Any) -> dict[str, Any]:
    problem = run.problem
    held_out = problem.test is not None
    count, read = problem.split("test" if held_out else "train")
    inputs, targets = read(0, min(CASES, count))
    if inputs.shape[0] != targets.shape[0] or inputs[0].numel() != targets[0].numel():
        raise _Nothing("this problem is no autoencoder: its targets are not its inputs")
    if not torch.equal(inputs.flatten(1), targets.flatten(1).to(inputs.dtype)):
        raise _Nothing("this problem is no autoencoder: its targets are not its inputs")
    shape = image_shape(inputs.shape[1:])
    if shape is None:
        raise _Nothing(f"cases of shape {tuple(inputs.shape[1:])} are no images")
    with torch.no_grad(), _evaluating(problem.model):
        z = problem.model(inputs)
        outputs = problem.likelihood.mean(z)
        errors = ((outputs.flatten(1) - inputs.flatten(1)) ** 2).sum(1)
    return {
        "images": Reconstructed(
            _as_images(_copy(inputs), shape),
            _as_images(_copy(outputs), shape),
            tuple(errors.double().tolist()),
            held_out,
        )
    }


def _filters(run: Any) -> dict[str, Any]:
    weights = [p for p in run.problem.model.parameters() if p.dim() >= 2]
    if not weights:
        raise _Nothing("the model has no weight matrix")
    weight = weights[0]
    shape = image_shape(weight.shape[1:])
    if shape is None:
        raise _Nothing(
            f"first-layer weights of shape {tuple(weight.shape[1:])} per unit are no images"
        )
    first = _copy(weight[:FILTERS])
    return {"filters": _as_images(first, shape), "units": weight.shape[0]}


_TAKERS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "factors": _factors,
    "inverse": _inverse,
    "images": _images,
    "filters": _filters,
}


def image_shape(shape: Iterable[int]) -> tuple[int, int] | None:
    """Height and width of one case: given, behind channels, or the root of a square number."""
    sides = tuple(int(side) for side in shape)
    if len(sides) == 1:
        root = math.isqrt(sides[0])
        return (root, root) if root * root == sides[0] and root >= 3 else None
    if len(sides) not in (2, 3) or min(sides[-2:]) < 2:
        return None
    return sides[-2], sides[-1]


def _as_images(rows: Tensor, shape: tuple[int, int]) -> Tensor:
    """``[n, ...]`` as ``[n, height, width]``, the mean over channels."""
    return rows.reshape(rows.shape[0], -1, *shape).mean(1)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode is back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


Images = Reconstructed  # its former name
