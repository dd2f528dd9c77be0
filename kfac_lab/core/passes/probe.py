"""Finding out, on a few cases and before anything moves, how a network works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.cases import labels
from kfac_lab.core.passes.certificate import Unseen, certify
from kfac_lab.core.passes.function import Function
from kfac_lab.core.passes.layouts import RecordedPass, find
from kfac_lab.core.passes.products import PATHS, jacobian_products, raised
from kfac_lab.core.rows import Layouts, RowLayout
from kfac_lab.core.traits import LikelihoodTraits, traits
from kfac_lab.core.vector import Vec
from kfac_lab.errors import CoverageError, DataError, RecipeError

__all__ = ["Probed", "choose_tangents", "probe"]

FEW = 3  # cases that a probe takes: that many, and one less
NORMALISED = 8  # the same for a network that normalises over its batch


def check_cases(function: Function, inputs: Tensor, targets: Any) -> tuple[int, torch.Size]:
    """Calls the model on some cases and takes their loss, to see that all of it fits.

    Returns how many predictions there are for a case, and the outputs' shape.

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
        likelihood.loss(raised(outputs), known)
    count = traits(likelihood, LikelihoodTraits).predictions
    return (1 if count is None else int(count(outputs))), outputs.shape


@dataclass(frozen=True)
class Probed:
    """What was found out.

    ``leading``: per layer, whether the first dimension of its rows are the cases and nothing else.
    ``whole``: the network does not take fewer cases than the batch. ``excess``: of each layer, see
    ``certify``.
    """

    predictions: int
    pooled: bool
    whole: bool
    layouts: Layouts
    leading: tuple[bool, ...]
    fired: tuple[int, ...]
    shapes: Mapping[int, tuple[int, int, int]]
    excess: tuple[float, ...]


def probe(function: Function, inputs: Any, targets: Any, device: torch.device) -> Probed:
    """Looks at a few cases, or at all of them where the network takes no fewer.

    Raises:
        DataError: the model does not take the inputs, or its outputs do not fit the targets.
        CoverageError: a claimed layer did not fire, or is used where its rows do not see it; one
            that a fallback may look after is ``Unseen``.
    """
    count = len(inputs)
    most = min(count, NORMALISED if function.normalises() else FEW)
    sizes = [most, most - 1] if most > 1 else [most]
    some = inputs[:most].to(device)
    whole = False
    refusal: DataError | None = None
    try:
        with torch.no_grad():
            predictions, shape = check_cases(function, some, _moved(targets[:most], device))
    except DataError as error:
        if count == most:
            raise
        whole, refusal = True, error
    if not whole and len(sizes) > 1 and some.device.type != "meta":
        fewer = _shape(function, some[: sizes[1]])
        if fewer is None:  # as one case for BatchNorm
            sizes = sizes[:1]
            whole = most < count and most > 2
        elif fewer[1:] != shape[1:]:
            whole = most < count
            sizes = sizes[:1]
    elif some.device.type == "meta":
        sizes = sizes[:1]
    if whole:
        sizes, some = [count], inputs.to(device)
        try:
            with torch.no_grad():
                predictions, shape = check_cases(function, some, _moved(targets, device))
        except DataError as error:
            raise refusal or error from error
    layouts, seen = find(function, some, sizes)
    if not all(seen.shapes[i] for i in _claimed(function)) and sizes[0] < count:
        # One that nothing was sent to may be sent more of more cases.
        sizes = [count, count - 1] if count - 1 > most else [count]
        layouts, seen = find(function, inputs.to(device), sizes)
    check_fired(seen, function, layouts)
    excess = certify(function.network, seen)
    plain = RowLayout("per_case")
    leading = tuple(all(replace(c, size=1) == plain for c in calls) for calls in layouts)
    return Probed(
        predictions,
        predictions == 1,
        whole,
        layouts,
        leading,
        tuple(seen.recorder.fired),
        seen.recorder.shapes(),
        excess,
    )


def _moved(targets: Any, device: torch.device) -> Any:
    return targets if labels(targets) is None else targets.to(device)


def _claimed(function: Function) -> list[int]:
    return [i for i, use in enumerate(function.network.uses) if use.modules]


def _shape(function: Function, inputs: Any) -> tuple[int, ...] | None:
    """The outputs' shape for fewer cases; None where there are none."""
    try:
        with torch.no_grad():
            outputs = function(None, function.buffers(), inputs)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    return tuple(outputs.shape) if isinstance(outputs, Tensor) else None


def check_fired(seen: RecordedPass, function: Function, layouts: Layouts) -> None:
    """Every claimed layer has to be called, unless some get their rows sent as they come.

    Raises:
        Unseen: one was not, and the outputs depend on it; a fallback may look after it.
        CoverageError: one was not, and nothing depends on it.
    """
    uses = [
        use
        for i, use in enumerate(function.network.uses)
        if use.modules and i not in seen.recorder.fired and i not in seen.recorder.idle
    ]
    if not uses or any(layout.kind == "routed" for calls in layouts for layout in calls):
        return
    paths = tuple(use.layer.path or type(use.layer.module).__name__ for use in uses)
    silent = f"claimed layer{'s' * (len(paths) > 1)} {', '.join(paths)} recorded nothing in the "
    named = dict(zip(function.network.names, function.network.tensors, strict=True))
    own = [named[name] for use in uses for name in use.parameters]
    reached = seen.outputs.device.type != "meta" and any(
        g is not None for g in seen.backward(torch.ones_like(seen.outputs), own)
    )
    if not reached:
        raise CoverageError(
            silent + "first pass: the model does not call the module itself; call it in forward, "
            "or freeze its parameters with requires_grad_(False)"
        )
    raise Unseen(
        silent + "first pass, and the outputs depend on it: the model has its weight in a product "
        "of its own, or calls it inside torch.vmap or on a nested tensor; call it in forward on a "
        "tensor of the batch, freeze its parameters with requires_grad_(False), or name a fallback "
        "in the recipe, which then looks after it: fallback='diagonal'",
        paths,
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
