"""What both faces ask of a model, a recipe and a batch before anything is changed."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab import engine as _engine
from kfac_lab.core import linalg
from kfac_lab.core.autocast import check_inference
from kfac_lab.core.cases import Cases, as_cases, tensors_of
from kfac_lab.core.likelihood import Selector
from kfac_lab.core.problem import Problem
from kfac_lab.core.traits import CollectiveTraits, traits
from kfac_lab.errors import DataError, RecipeError
from kfac_lab.hooks import Recipe

__all__ = [
    "alone",
    "bare",
    "batch_of",
    "check_model",
    "check_place",
    "check_processes",
    "check_rate",
    "described",
    "placed",
    "problem_of",
    "recipe_of",
]


def recipe_of(who: str, source: Any) -> Recipe:
    """The recipe of a face, whose method is kfac."""
    recipe = Recipe.of(source)
    if recipe.method != "kfac":
        raise RecipeError(
            f"{who} plays the method 'kfac', and the recipe's is {recipe.method!r}: use "
            f"Run(…, recipe={recipe.method!r}), or torch's own optimiser"
        )
    return recipe


def bare(who: str, model: Any) -> tuple[nn.Module, nn.Module]:
    """The module that is trained, and the one that the loop calls: it may be compiled, or wrapped
    by DistributedDataParallel.
    """
    called = model
    wrappers = (nn.parallel.DistributedDataParallel,)
    while isinstance(model, wrappers) or isinstance(getattr(model, "_orig_mod", None), nn.Module):
        model = model.module if isinstance(model, wrappers) else model._orig_mod
    check_model(who, model)
    return model, called


def check_leave(leave: Any) -> None:
    """RecipeError unless what another optimiser trains is named by texts."""
    if isinstance(leave, str) or not all(isinstance(name, str) for name in leave):
        raise RecipeError(f"leave={leave!r} must be texts, such as ('Embedding', '*.bias')")


def check_processes(who: str, recipe: Recipe) -> None:
    """Several processes need a collective, or each goes its own way."""
    there = torch.distributed
    if not (there.is_available() and there.is_initialized() and there.get_world_size() > 1):
        return
    if traits(recipe["collective"], CollectiveTraits).size == 1:
        raise RecipeError(
            f"{who} is one of {there.get_world_size()} processes, and the recipe's collective is "
            f"{type(recipe['collective']).__name__}, so that their parameters would drift apart: "
            "recipe=Recipe.named(…).replace(collective='distributed'), of the plugin kfac-lab-ddp"
        )


#: who stepped a model last
_steppers: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[Any], int]]
_steppers = weakref.WeakKeyDictionary()


def alone(face: Any, engine: _engine.Engine) -> None:
    """Says once that two optimisers take turns on one model."""
    model = engine.problem.model
    last = _steppers.get(model)
    other = None if last is None else last[0]()
    taken = 0 if last is None else last[1]
    if other is not None and other is not face and engine.step_count and taken < 2:
        warnings.warn(
            f"a {type(other).__name__} and a {type(face).__name__} step the same "
            f"{type(model).__name__} in turn: each has moments of its own, and does not see the "
            "other's steps; keep one, or remove() the Preconditioner",
            stacklevel=3,
        )
        taken = 2
    _steppers[model] = (weakref.ref(face), taken)


def check_model(who: str, model: Any) -> None:
    """A module, and not its parameters or a DataParallel."""
    if not isinstance(model, nn.Module):
        raise RecipeError(
            f"{who} takes the model itself, {who}(model, …), not its parameters: it has to see the "
            "layers"
        )
    if isinstance(model, nn.DataParallel):
        raise RecipeError(f"{who} does not go with nn.DataParallel: give it model.module")


def problem_of(model: nn.Module, likelihood: Any, l2: float, outputs: Selector) -> Problem:
    """A Problem without cases: its batches come from the loop."""
    return Problem(
        model=model,
        likelihood=likelihood,
        data=_no_cases,
        l2=l2,
        outputs=outputs,
        name="own loop",
    )


def _no_cases(step: int, size: int) -> tuple[Tensor, Tensor]:
    raise RecipeError("the batches come from your own loop")


def check_rate(lr: Any) -> float:
    """A learning rate: at least 0 and finite; of a tensor, which is read once."""
    number = isinstance(lr, Real) or (isinstance(lr, Tensor) and lr.numel() == 1)
    rate = (linalg.host([lr])[0] if isinstance(lr, Tensor) else float(lr)) if number else None
    if rate is None or not 0 <= rate < math.inf:
        shown = repr(lr) if rate is None else f"{rate:g}"
        raise RecipeError(f"lr={shown} must be at least 0 and finite: it multiplies the update")
    return rate


def check_place(who: str, engine: _engine.Engine) -> torch.device:
    """The model's device, which is the one it was taken on; derivatives can be taken there."""
    check_inference()
    here = engine.network.tensors[0].device
    if here != engine.device:
        name = who.partition(".")[0]
        raise RecipeError(
            f"the model was moved from {engine.device} to {here} after {name} was made: move it "
            f"first, then make the {name}"
        )
    return here


def placed(who: str, engine: _engine.Engine, name: str, value: Any) -> Any:
    """The value, every tensor of which is on the model's device."""
    here = engine.device
    for tensor in tensors_of(value.tree if isinstance(value, Cases) else value):
        if tensor.device != here:
            raise RecipeError(
                f"{who}: {name} are on {tensor.device} and the model is on {here}: move them there"
            )
    return value


def batch_of(who: str, engine: _engine.Engine, inputs: Any, targets: Any) -> tuple[Any, Any]:
    """A batch: inputs and targets, each a tensor or Cases.

    Raises:
        RecipeError: they are not tensors of the same cases on the model's device.
        DataError: a tuple or dict whose tensors have not the same cases.
    """
    check_place(who, engine)
    found = []
    for name, value in (("inputs", inputs), ("targets", targets)):
        try:
            cases = as_cases(value, name)
        except DataError as error:
            if isinstance(value, (Mapping, tuple, list)):
                raise
            raise RecipeError(
                f"{who} takes tensors, and {name} is a {type(value).__name__}"
            ) from error
        if cases.dim() == 0:
            raise RecipeError(f"{who} takes a batch, and {name} is one number without cases")
        found.append(placed(who, engine, name, cases))
    rows = len(found[0])
    if len(found[1]) != rows:
        raise RecipeError(
            f"{who} takes cases one for one: {rows} inputs came with {len(found[1])} targets"
        )
    if rows == 0:
        raise RecipeError(f"{who} needs at least one case, and the batch is empty")
    return found[0], found[1]


def described(engine: _engine.Engine) -> str:
    """The model in some words, for a repr."""
    count = sum(p.numel() for p in engine.network.tensors)
    layers = len(engine.network.uses)
    kind = type(engine.problem.model).__name__
    return f"{kind} of {layers} layers and {count} parameters, {engine.problem.likelihood!r}"
