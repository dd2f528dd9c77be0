"""Finding the layout of every call's rows: two batch sizes, and whose loss reaches which rows.

Nothing is guessed from a dimension's place. A dimension that grows with the batch holds the cases;
where they are folded with something else, a backward pass from one case at a time says whose rows
are whose. Rows that do not grow with the batch serve all cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.passes.function import Function
from kfac_lab.core.record import Recorder
from kfac_lab.core.rows import Layouts, RowLayout
from kfac_lab.core.whole import Whole
from kfac_lab.errors import CoverageError

__all__ = ["RecordedPass", "find", "look"]

Shapes = list[list[tuple[int, int]]]  # per layer, per call: [B, S] of its rows


@dataclass(frozen=True, eq=False)
class RecordedPass:
    """One recorded pass over some cases."""

    outputs: Tensor
    recorder: Recorder
    shapes: Shapes
    cases: int

    def reached(self, case: int) -> list[list[Tensor | None]]:
        """Which rows of each call ``[B, S]`` the loss of one case reaches."""
        cotangent = torch.zeros_like(self.outputs)
        own = self.outputs[case].detach()
        cotangent[case] = 1 + torch.arange(own.numel()).reshape(own.shape).to(own) % 7 / 7
        self.backward(cotangent, [])
        return [
            [None if g is None else g.ne(0).any(-1) for g in calls]
            for calls in self.recorder.calls_out()
        ]

    def backward(self, cotangent: Tensor, asked: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Gradients of ``asked``; all that was recorded gets its own.

        They are those of the sum Σ cotangent·outputs, whose derivative is the cotangent to the
        last bit: the first gradient that is given one imports sympy (torch 2.13), half a second.
        """
        leaves = [*asked, *self.parameters()]
        with self.recorder.inside(), _undropped(self.recorder.model):
            with torch.enable_grad():
                total = (self.outputs * cotangent).sum()
            found = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
        return found[: len(asked)]

    def parameters(self) -> list[Tensor]:
        """All that are trained."""
        return self.recorder.tensors


def look(function: Function, inputs: Tensor, layouts: Layouts | None = None) -> RecordedPass:
    """A pass with hooks on the layers, on copies of the buffers; dropout drops nothing."""
    recorder = Recorder(function.network, layouts, len(inputs))
    buffers = function.buffers()
    with torch.enable_grad(), recorder.recording(), _undropped(function.model):
        outputs: Any = function(None, buffers, inputs)
    _check_checkpoints(outputs)
    shapes = [[tuple(x.shape[:2]) for x in calls] for calls in recorder.calls_in()]
    return RecordedPass(outputs, recorder, shapes, len(inputs))  # type: ignore[arg-type]


def _check_checkpoints(outputs: Tensor) -> None:
    """No part of the model is hidden behind a checkpoint of the reentrant kind.

    Raises:
        CoverageError: its second forward pass happens in a backward pass of its own, which neither
            ``torch.autograd.grad`` nor any row takes part in.
    """
    waiting, seen = [outputs.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise CoverageError(
                "the model checkpoints activations with use_reentrant=True, behind which no "
                "layer's rows are seen: give torch.utils.checkpoint.checkpoint (in transformers "
                "gradient_checkpointing_enable's gradient_checkpointing_kwargs) use_reentrant=False"
            )
        waiting.extend(before for before, _ in node.next_functions)


@contextmanager
def _undropped(model: nn.Module) -> Iterator[None]:
    """Dropout modules in eval mode for a while: a mask of other sizes would be another one."""
    kinds = nn.modules.dropout._DropoutNd
    with ExitStack() as after:  # puts them back where an interrupt comes at a line of ours too
        for module in model.modules():
            if isinstance(module, kinds) and module.training:
                after.callback(setattr, module, "training", True)
                module.training = False
        yield


def find(function: Function, inputs: Tensor, sizes: Sequence[int]) -> tuple[Layouts, RecordedPass]:
    """The layouts, and a look at the larger size with them.

    ``sizes`` are one or two numbers of cases, the larger first.
    """
    large, *small = (inputs[:n] for n in sizes)
    layouts: list[list[RowLayout]] | None = None
    tried: set[tuple[int, int]] = set()
    plain = look(function, large)
    other = look(function, small[0]) if small else None
    found = _layouts(plain, other)
    while True:
        shared = next(
            (
                (i, c)
                for i, calls in enumerate(found)
                for c, layout in enumerate(calls)
                if layout.kind == "shared" and (i, c) not in tried
            ),
            None,
        )
        if shared is None or large.device.type == "meta":
            break
        tried.add(shared)
        better = _repeated(function, large, small, found, plain, shared)
        if better is not None:
            found = better
    layouts = found
    fixed = tuple(map(tuple, layouts))
    return fixed, look(function, large, fixed)


def _repeated(
    function: Function,
    large: Tensor,
    small: Sequence[Tensor],
    found: list[list[RowLayout]],
    plain: RecordedPass,
    at: tuple[int, int],
) -> list[list[RowLayout]] | None:
    """Layouts with one shared call's input repeated for each case, where that is the same function
    and its rows become those of one case each; None where it is not.
    """
    i, c = at
    layer = function.network.uses[i].layer
    for along in layer.copies if isinstance(layer, Whole) else (0, 1, -1, -2):
        trial = [list(calls) for calls in found]
        trial[i][c] = replace(trial[i][c], repeat=along)
        try:
            one = look(function, large, tuple(map(tuple, trial)))
            other = look(function, small[0], tuple(map(tuple, trial))) if small else None
            same = one.outputs.shape == plain.outputs.shape and torch.allclose(
                one.outputs, plain.outputs, rtol=1e-4, atol=1e-6
            )
        except (RuntimeError, ValueError, IndexError, TypeError):
            continue
        if not same or one.shapes[i][c] == plain.shapes[i][c]:
            continue
        fresh = _layouts(one, other)
        own = fresh[i][c]
        if own.kind != "per_case" or not _apart(one, i, c, own):
            continue
        for old, new in zip(trial, fresh, strict=True):
            for n, layout in enumerate(new):
                if n < len(old):
                    new[n] = replace(layout, repeat=old[n].repeat)
        return fresh
    return None


def _apart(seen: RecordedPass, layer: int, call: int, layout: RowLayout) -> bool:
    """Whether each case's loss reaches its own rows alone."""
    shape = seen.shapes[layer][call]
    for case in range(seen.cases):
        reached = seen.reached(case)[layer][call]
        if reached is not None and bool((reached & (_owner(shape, layout, seen) != case)).any()):
            return False
    return True


def _owner(shape: tuple[int, int], layout: RowLayout, seen: RecordedPass) -> Tensor:
    """The case of each row ``[B, S]``."""
    along = torch.arange(shape[layout.axis], device=seen.outputs.device)
    case = along.div(layout.inner, rounding_mode="floor") % seen.cases
    return (case[:, None] if layout.axis == 0 else case[None, :]).expand(shape)


def _layouts(one: RecordedPass, other: RecordedPass | None) -> list[list[RowLayout]]:
    evidence: list[list[list[Tensor | None]]] = []
    found: list[list[RowLayout]] = []
    for i, calls in enumerate(one.shapes):
        own = []
        for c, shape in enumerate(calls):
            if other is None:
                before = None
            elif len(other.shapes[i]) != len(calls):
                own.append(RowLayout("routed"))
                continue
            else:
                before = other.shapes[i][c]
            options = _options(shape, one.cases, before, other.cases if other else 0)
            if len(options) > 1 and one.outputs.device.type != "meta":
                if not evidence:
                    evidence = [one.reached(case) for case in range(one.cases)]
                options = [o for o in options if _fits(o, shape, one, i, c, evidence)] or options
            own.append(options[0])
        found.append(own)
    return found


def _fits(
    layout: RowLayout,
    shape: tuple[int, int],
    seen: RecordedPass,
    layer: int,
    call: int,
    evidence: list[list[list[Tensor | None]]],
) -> bool:
    if layout.kind == "routed":
        return True
    if layout.kind == "shared":  # some row is reached by the loss of more cases than one
        masks = [reached[layer][call] for reached in evidence]
        together = [m.long() for m in masks if m is not None]
        return len(together) > 1 and bool((sum(together[1:], together[0]) > 1).any())
    owner = _owner(shape, layout, seen)
    for case, reached in enumerate(evidence):
        rows = reached[layer][call]
        if rows is not None and bool((rows & (owner != case)).any()):
            return False
    return True


def _options(
    shape: tuple[int, int], cases: int, before: tuple[int, int] | None, fewer: int
) -> list[RowLayout]:
    """The layouts that the shapes allow, likeliest first."""
    size = shape[0] * shape[1]
    if before is None:
        axes = [axis for axis in (0, 1) if shape[axis] % cases == 0 and shape[axis]]
        if shape[0] == cases:
            axes = [0]
        if shape[0] == 1 and cases > 1 and 1 not in axes:
            return [RowLayout("shared", size=size), RowLayout("routed")]
    else:
        if shape == before:
            return [RowLayout("shared", size=size), RowLayout("routed")]
        axes = [
            axis
            for axis in (0, 1)
            if shape[axis] % cases == 0
            and shape[axis] // cases * fewer == before[axis]
            and shape[1 - axis] == before[1 - axis]
        ]
    options = []
    for axis in axes:
        folds = shape[axis] // cases
        inners = [n for n in range(folds, 0, -1) if folds % n == 0]
        for inner in inners:
            options.append(RowLayout("per_case", axis, folds // inner, inner, size // cases))
    return options or [RowLayout("routed")]
