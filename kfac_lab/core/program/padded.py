"""A program for batches up to a size: rows beyond the batch, of which nothing comes.

A launch has its sizes for good. So that one serves a batch that grows, a program of all sizes
(``sizes.py``) is run at larger ones than the batch has, and what it then makes too much of is kept
out where rows are added up: each call whose results no longer have a side that its operands have,
a product over cases or a sum, is given zeros in the rows beyond. Numbers made of sizes (1/|S1|)
come as 0-dim tensors, of the batch's own sizes. Which side of which tensor goes with which size,
the shapes of all tensors at two sizes tell.

What the rows beyond hold is no matter: floats in them are NaN, so that a call which used them
would show it in the very step.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.program.calls import PRODUCTS, AtenCall, Number, Recording, TensorSlot
from kfac_lab.core.program.extents import Extent, Rows, Shapes, Unpadded, traced
from kfac_lab.core.program.program import Program

__all__ = ["Padded", "alike", "void"]

_ATEN = torch.ops.aten
_PRODUCTS = "addmm", "addmm_", "addmv", "addmv_", "addbmm", "addbmm_", "baddbmm", "baddbmm_"
_SUMS = "add", "add_", "sub", "sub_"
#: operations whose alpha is a factor of an operand, and beta of another
_SCALED = {getattr(_ATEN, name) for name in (*_PRODUCTS, *_SUMS)}
_SCALED_BY = "mat1", "mat", "batch1", "other"  # the operand that alpha is a factor of
_NAME = re.compile(r"\b[a-z]\d+\b")
_SIDES = "int", "List[int]", "Optional[int]", "Optional[List[int]]"  # types of arguments


class Padded:
    """A program at larger sizes than the batch has.

    Args:
        program: of all sizes.
        seen: inputs, step, and numbers by their labels, of the program at two triples of sizes that
            :func:`apart` has told apart, or at one; what it writes into is written.
        sizes: the labels of the sizes.
        moving: those of other numbers that are another one at every step, and come as tensors too.

    Attributes:
        program: of inputs whose rows are as many as the larger sizes say, where numbers are the
            larger sizes.

    Raises:
        Unpadded: something of the program is not known at larger sizes.
    """

    def __init__(
        self,
        program: Program,
        seen: Sequence[tuple[Sequence[Tensor], int, Mapping[Any, float]]],
        sizes: Sequence[str],
        moving: Collection[Hashable] = (),
    ) -> None:
        recording = program.recording
        found = [traced(program, *one) for one in seen]
        supplied = recording.supplied
        names = {supplied[label]: label for label in sizes if label in supplied}
        (small, large), known = (found[0], found[-1]), (seen[0][2], seen[-1][2])
        steps = {name: (int(known[0][at]), int(known[1][at])) for name, at in names.items()}
        rows = Rows(steps, small, large)
        moves = {*names, *(supplied[label] for label in moving)}
        written = _Rewritten(recording, rows, small, moves)
        self._values = written.values()
        self._place = written.place
        self.program = Program(written.recording(), program.outputs)
        self._inputs = [rows.sides(TensorSlot(n)) for n in range(recording.inputs)]
        self._sides = [rows.sides(slot) for slot in program.outputs]

    def set(self, numbers: Sequence[float]) -> None:
        """Sets what the program makes of the batch's own sizes, in a copy nobody waits for."""
        self._place.copy_(torch.tensor(self._values(*numbers), dtype=torch.float64), True)

    def larger(self, inputs: Sequence[Tensor], numbers: Sequence[float]) -> list[Tensor]:
        """Inputs with as many rows as larger sizes ask for: the batch's own, then NaN, or 0 where
        there is no NaN.
        """
        known = dict(zip(self.program.recording.supplied.values(), numbers, strict=True))
        given = []
        for tensor, sides in zip(inputs, self._inputs, strict=True):
            shape = list(tensor.shape)
            for side, extent in sides.items():
                shape[side] = extent.at(known)
            if sides:
                wide = void(tensor.new_empty(shape))
                wide[tuple(slice(0, side) for side in tensor.shape)] = tensor
                tensor = wide
            given.append(tensor)
        return given

    def cut(self, outputs: Sequence[Tensor], numbers: Sequence[float]) -> list[Tensor]:
        """The outputs without the rows beyond the batch."""
        known = dict(zip(self.program.recording.supplied.values(), numbers, strict=True))
        given = []
        for tensor, sides in zip(outputs, self._sides, strict=True):
            for side, extent in sides.items():
                tensor = tensor.narrow(side, 0, extent.at(known))
            given.append(tensor)
        return given


def alike(a: Any, b: Any) -> bool:
    """Whether two tensors are the same but for rounding: √ε of a norm, and a hundredth of a number,
    which may be a small difference of large ones.
    """
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    a, b = a.double(), b.double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    a, b = (t.nan_to_num(0.0, 0.0, 0.0) for t in (a, b))
    share = torch.finfo(torch.float32).eps ** 0.5 if a.dim() else 0.01
    return float((a - b).norm()) <= share * float(b.norm())


def void(tensor: Tensor) -> Tensor:
    """Fills memory with what would be noticed where it is used."""
    return tensor.fill_(float("nan") if tensor.is_floating_point() else 0)


class _Rewritten:
    """The calls of a program as they are to be made at larger sizes."""

    def __init__(
        self, recording: Recording, rows: Rows, shapes: Shapes, moves: Collection[str]
    ) -> None:
        self._recording, self._rows, self._shapes = recording, rows, shapes
        self._moves = frozenset(moves)
        self._slots = recording.slots
        self._texts: dict[str, int] = {}  # of the numbers, and which they are in the place
        self._first: list[AtenCall] = []  # what is made once, before all else
        self._known: dict[Any, TensorSlot] = {}  # numbers, masks and zeros
        self._zeroed: dict[tuple[TensorSlot, frozenset[Extent]], TensorSlot] = {}
        self._calls: list[AtenCall] = []
        self._device = next((d for *_, d in shapes.values()), torch.device("cpu"))
        self._numbers = self._new()
        for call in recording.calls:
            self._call(call)
        self.place = torch.zeros(len(self._texts), dtype=torch.float64, device=self._device)

    def recording(self) -> Recording:
        """The new calls, with the place of the numbers among the constants."""
        constants = [*self._recording.constants, (self._numbers, self.place)]
        calls = [*self._first, *self._calls]
        return replace(self._recording, calls=calls, constants=constants, slots=self._slots)

    def values(self) -> Callable[..., list[float]]:
        """The numbers of the place, of those that the program is given."""
        passed = ", ".join(self._recording.supplied.values())
        texts = "".join(f"float({text}), " for text in self._texts)
        made: Callable[..., list[float]] = eval(f"lambda {passed}: [{texts}]", {})
        return made

    # --- calls ------------------------------------------------------------------------------------

    def _call(self, call: AtenCall) -> None:
        if call.operation is PRODUCTS:  # how short they are, which is no operation on tensors
            self._calls.append(call)
            return
        given = {argument.name: argument for argument in call.operation._schema.arguments}
        passed = dict(zip(given, call.arguments, strict=False)) | call.keywords
        changed = {n for n, a in given.items() if a.alias_info and a.alias_info.is_write}
        view = not changed and any(a.alias_info for a in given.values())
        types = {name: str(argument.type) for name, argument in given.items()}
        call, passed = self._numbered(call, passed, types, changed)
        if not view:
            made = [slot for slot in call.results if slot is not None]
            made += _slots([passed[name] for name in changed if name in passed])
            passed = self._shielded(passed, changed, made)
        positional: list[Any] = []
        for argument in call.operation._schema.arguments:
            if argument.kwarg_only or argument.name not in passed:
                break
            positional.append(passed.pop(argument.name))
        self._calls.append(call._replace(arguments=tuple(positional), keywords=passed))
        if changed:
            self._zeroed.clear()  # what was written into may be what they were made of

    def _numbered(
        self,
        call: AtenCall,
        passed: dict[str, Any],
        types: Mapping[str, str],
        changed: Collection[str],
    ) -> tuple[AtenCall, dict[str, Any]]:
        """The call with tensors for its numbers that are made of sizes; shapes stay numbers."""
        name = call.operation.__name__
        for key, value in list(passed.items()):
            if not self._moving(value):
                continue
            kind = types[key]
            if name.startswith("slice.") and key == "start":
                raise Unpadded(f"{name} from {value.text}")
            if kind.startswith(
                ("int", "SymInt", "List[int]", "Optional[int]", "Optional[List[int]]")
            ):
                continue
            if not isinstance(value, Number):
                raise Unpadded(f"{name} of {value}")
            first = next((s for s in _slots(list(passed.values()))), None)
            if first is None:
                raise Unpadded(f"{name} of {value.text}")
            number = self._number(value.text, self._shapes[first][1])
            if kind == "Tensor":
                passed[key] = number
            elif key in ("alpha", "beta") and call.operation.overloadpacket in _SCALED:
                whose = "self" if key == "beta" else next(k for k in _SCALED_BY if k in passed)
                passed[whose] = self._scaled(passed[whose], number, whose in changed)
                del passed[key]
            elif name.endswith(".Scalar") and hasattr(call.operation.overloadpacket, "Tensor"):
                call = call._replace(operation=call.operation.overloadpacket.Tensor)
                del passed[key]
                passed[key if key in _names(call.operation) else "other"] = number
            else:
                raise Unpadded(f"{name} of {value.text}")
        return call, passed

    def _scaled(self, slot: TensorSlot, number: TensorSlot, written: bool) -> TensorSlot:
        """The tensor times a number: in its own memory where a call writes into it."""
        if written:
            self._calls.append(AtenCall(_ATEN.mul_.Tensor, (slot, number), {}, (None,), False))
            return slot
        made = self._new()
        self._rows.alike(made, slot)
        self._add(_ATEN.mul.Tensor, (slot, number), made)
        return made

    def _moving(self, value: Any) -> bool:
        """Whether there is a number in it that a launch cannot have for good."""
        if isinstance(value, Number):
            return not self._moves.isdisjoint(_NAME.findall(value.text))
        return type(value) in (list, tuple) and any(map(self._moving, value))

    def _shielded(
        self, passed: dict[str, Any], changed: set[str], made: Sequence[TensorSlot]
    ) -> dict[str, Any]:
        """Operands with zeros beyond, in sides of which the results have fewer than one of them."""
        kept: Counter[Extent] = Counter()
        for slot in made:
            kept |= Counter(self._rows.sides(slot).values())
        own = {n: v for n, v in passed.items() if n not in changed}
        counts = [Counter(self._rows.sides(slot).values()) for slot in _slots(list(own.values()))]
        lost = {e for count in counts for e in count if count[e] > kept[e]}

        def shield(value: Any) -> Any:
            if isinstance(value, TensorSlot):
                sides = lost.intersection(self._rows.sides(value).values())
                return self._zero(value, frozenset(sides)) if sides else value
            if type(value) in (list, tuple):
                return type(value)(map(shield, value))
            return value

        return passed | {n: shield(v) for n, v in own.items()}

    def _zero(self, slot: TensorSlot, lost: frozenset[Extent]) -> TensorSlot:
        """The tensor with zeros in the rows beyond."""
        known = self._zeroed.get((slot, lost))
        if known is not None:
            return known
        shape, dtype, _ = self._shapes[slot]
        zeroed = slot
        for side, extent in self._rows.sides(slot).items():
            if extent not in lost:
                continue
            mask, seen, made = self._mask(extent), self._new(), self._new()
            sides = [1] * len(shape)
            sides[side] = -1
            self._add(_ATEN.view.default, (mask, sides), seen)
            self._add(_ATEN.where.self, (seen, zeroed, self._nothing(dtype)), made)
            self._rows.alike(made, slot)
            zeroed = made
        self._zeroed[slot, lost] = zeroed
        return zeroed

    # --- what is made once ------------------------------------------------------------------------

    def _number(self, text: str, dtype: torch.dtype) -> TensorSlot:
        """A number of the batch's own sizes, as a 0-dim tensor."""
        place = self._texts.setdefault(text, len(self._texts))
        kind = dtype if dtype.is_floating_point else torch.float64
        return self._once(
            ("number", text, kind),
            _ATEN.select.int,
            lambda: (self._vector(kind), 0, place),
        )

    def _vector(self, dtype: torch.dtype) -> TensorSlot:
        if dtype == torch.float64:
            return self._numbers
        return self._once(
            ("vector", dtype), _ATEN._to_copy.default, lambda: (self._numbers,), dtype=dtype
        )

    def _mask(self, extent: Extent) -> TensorSlot:
        number = self._number(extent.text, torch.float64)
        every = self._once(
            ("rows", extent),
            _ATEN.arange.default,
            lambda: (Number(extent.text),),
            device=self._device,
        )
        return self._once(("mask", extent), _ATEN.lt.Tensor, lambda: (every, number))

    def _nothing(self, dtype: torch.dtype) -> TensorSlot:
        return self._once(
            ("zero", dtype), _ATEN.zeros.default, lambda: ([],), dtype=dtype, device=self._device
        )

    def _once(
        self, key: Any, operation: Any, arguments: Callable[[], tuple[Any, ...]], **keywords: Any
    ) -> TensorSlot:
        found = self._known.get(key)
        if found is None:
            given = arguments()  # which may be made once too, and before it
            found = self._known[key] = self._new()
            self._first.append(AtenCall(operation, given, keywords, (found,), False))
        return found

    def _add(self, operation: Any, arguments: tuple[Any, ...], result: TensorSlot) -> None:
        self._calls.append(AtenCall(operation, arguments, {}, (result,), False))

    def _new(self) -> TensorSlot:
        self._slots += 1
        return TensorSlot(self._slots - 1)


def _names(operation: Any) -> list[str]:
    return [argument.name for argument in operation._schema.arguments]


def _slots(value: Any) -> list[TensorSlot]:
    """The tensors of arguments."""
    if isinstance(value, TensorSlot):
        return [value]
    if type(value) in (list, tuple):
        return [slot for v in value for slot in _slots(v)]
    return []
