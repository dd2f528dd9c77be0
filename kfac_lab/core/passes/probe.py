"""Finding out, on two cases and before anything moves, how a network works."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.capture import Recorder
from kfac_lab.core.cases import labels
from kfac_lab.core.passes.function import Function
from kfac_lab.core.passes.products import PATHS, jacobian_products
from kfac_lab.core.traits import LikelihoodTraits, traits
from kfac_lab.core.vector import Vec
from kfac_lab.errors import CoverageError, DataError, RecipeError

__all__ = ["check_cases", "check_fired", "choose_tangents"]


def check_cases(function: Function, inputs: Tensor, targets: Any) -> int:
    """Calls the model on some cases and takes their loss, to see that all of it fits.

    Returns how many predictions there are for a case.

    Raises:
        DataError: it does not.
    """
    kind = type(function.model).__name__
    try:
        outputs = function(None, function.buffers(), inputs)
    except DataError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{kind} does not take inputs of shape {tuple(inputs.shape)} and {inputs.dtype}, "
            f"the first of its cases: {(str(error) or repr(error)).splitlines()[0]}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != inputs.shape[:1]:
        what = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise DataError(
            f"{kind} gives {what} for inputs of shape {tuple(inputs.shape)}, and has to give "
            "one tensor with as many cases"
        )
    likelihood, known = function.outputs.likelihood, labels(targets)
    if known is not None:  # a Preconditioner may have none
        likelihood.loss(outputs, known)
    count = traits(likelihood, LikelihoodTraits).predictions
    return 1 if count is None else int(count(outputs))


def check_fired(recorder: Recorder, function: Function) -> None:
    """Every claimed layer has to be called.

    Raises:
        CoverageError: one was not.
    """
    silent = [
        use.layer.path
        for i, use in enumerate(function.network.uses)
        if use.modules and i not in recorder.fired
    ]
    if silent:
        raise CoverageError(
            f"claimed layer{'s' * (len(silent) > 1)} {', '.join(silent)} recorded nothing in "
            "the first pass: the model does not call the module itself; call it in forward, or "
            "freeze its parameters with requires_grad_(False)"
        )


def choose_tangents(function: Function, inputs: Tensor) -> str:
    """The first path of products that works on this model.

    Raises:
        RecipeError: none does.
    """
    theta = [t.detach() for t in function.network.tensors]
    zeros = Vec([torch.zeros_like(m) for m in function.network.pack(theta)])
    reasons = []
    for path in PATHS:
        try:
            with function.mask(0, 0, inputs.device):
                jacobian_products(path, function, theta, inputs, [zeros])
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            reasons.append(f"{path}: {str(error).splitlines()[0]}")
        else:
            return path
    model = function.model
    raise RecipeError(
        f"no forward-mode product through {type(model).__name__} ({'; '.join(reasons)}; "
        f"its modules: {', '.join(sorted({type(m).__name__ for m in model.modules()}))})"
        ": use model='approximate_fisher'"
    )
