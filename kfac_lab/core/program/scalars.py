"""Numbers of a step as 0-dim tensors, so that one launch serves steps with other numbers.

A kernel that is captured has the Python numbers of its call for good. So where a call has a twin
that takes a tensor in a number's place, a launch is made of the twin; what has none keeps its
number (``Program.frozen``), and a launch serves the steps that have the same.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch

from kfac_lab.core.program.calls import AtenCall, Number, Recording, Scalar, TensorSlot

__all__ = ["by_tensors"]

Twin = Callable[[AtenCall, Callable[..., TensorSlot]], "AtenCall | None"]
_ATEN: Any = torch.ops.aten
_EXACT = (torch.float32, torch.float64)  # a tensor of fewer digits would be another number
_ONE = re.compile(r"\(1 - \(n\d+ \* 0\.0\)\)")  # what a weight decay of 0 leaves of θ, its factor


def by_tensors(recording: Recording, device: torch.device) -> Recording:
    """The recording with tensors in the place of numbers, where its calls have a twin for that.

    On the CPU both give the same bit for bit. Elsewhere the rate of a fused kernel has to be
    float32, and kernels divide by a number as they multiply by its reciprocal: the last digits are
    others.
    """
    known: dict[Hashable, Scalar] = {}
    slots = recording.slots

    def scalar(number: Number, dtype: torch.dtype | None = None) -> TensorSlot:
        nonlocal slots
        dtype = dtype or number.dtype
        if (number.text, dtype) not in known:
            one = torch.ones((), dtype=dtype, device=device)
            known[number.text, dtype] = TensorSlot(slots), number.text, one
            slots += 1
        return known[number.text, dtype][0]

    rate = torch.float64 if device.type == "cpu" else torch.float32

    def fused(operation: Any) -> Twin:
        def twin(call: AtenCall, scalar: Callable[..., TensorSlot]) -> AtenCall | None:
            number = call.keywords.get("lr")
            if not isinstance(number, Number):
                return None
            keywords = {**call.keywords, "lr": scalar(number, rate)}
            return call._replace(operation=operation, keywords=keywords)

        return twin

    twins = {
        **_TWINS,
        _ATEN._fused_adam_.default: fused(_ATEN._fused_adam_.tensor_lr),
        _ATEN._fused_sgd_.default: fused(_ATEN._fused_sgd_.tensor_lr),
    }
    calls = []
    for call in recording.calls:
        if call.operation is _ATEN.mul_.Tensor and _is_one(call.arguments[1]):
            continue
        twin = twins.get(call.operation)
        calls.append((None if twin is None else twin(call, scalar)) or call)
    return dataclasses.replace(recording, calls=calls, scalars=list(known.values()), slots=slots)


def _is_one(value: Any) -> bool:
    return isinstance(value, Number) and _ONE.fullmatch(value.text) is not None


def _second(call: AtenCall, scalar: Callable[..., TensorSlot]) -> AtenCall | None:
    """x ∘ number, with a tensor for the number."""
    x, number = call.arguments[:2]
    if not isinstance(x, TensorSlot) or not isinstance(number, Number):
        return None
    if number.dtype not in _EXACT:
        return None
    return call._replace(arguments=(x, scalar(number), *call.arguments[2:]))


def _added(operation: Any) -> Twin:
    """x + α y by ``operation``: x + y · α with a tensor for α."""

    def twin(call: AtenCall, scalar: Callable[..., TensorSlot]) -> AtenCall | None:
        number, y = call.keywords.get("alpha"), call.arguments[1]
        if not isinstance(number, Number) or not isinstance(y, TensorSlot):
            return None
        if number.dtype not in _EXACT:
            return None
        arguments = (*call.arguments, scalar(number))
        return call._replace(operation=operation, arguments=arguments, keywords={})

    return twin


_TWINS: Mapping[Any, Twin] = {
    _ATEN.mul.Tensor: _second,
    _ATEN.mul_.Tensor: _second,
    _ATEN.div.Tensor: _second,
    _ATEN.div_.Tensor: _second,
    _ATEN.add.Tensor: _added(_ATEN.addcmul.default),
    _ATEN.add_.Tensor: _added(_ATEN.addcmul_.default),
}
