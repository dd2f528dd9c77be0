"""Recording of rows: what goes into the layers' modules, and the gradients that come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kfac_lab.core.layers import plain_call
from kfac_lab.core.rows import Grouped, Layouts, RowLayout, grouped, joined
from kfac_lab.core.traits import LayerTraits, traits
from kfac_lab.core.whole import Whole

if TYPE_CHECKING:
    from kfac_lab.core.capture import Network

__all__ = ["Recorder", "chains_of", "repeated"]


class Recorder:
    """Inputs and output gradients of the layers' modules during one forward and its backwards.

    Tensor hooks, not full backward hooks: in-place activations work. Hooks exist only inside
    ``recording``; the module is an ordinary one at all other times.

    Args:
        layouts: how the rows of each call belong to cases; without them a call's rows stay as the
            layer lays them out.
        cases: how many go through.
    """

    def __init__(
        self,
        network: Network,
        layouts: Layouts | None = None,
        cases: int | None = None,
    ) -> None:
        self._network, self._layouts, self._cases = network, layouts, cases
        self.checkpointed = False  # a call was made inside a checkpoint
        self._anew = False
        self.fired: list[int] = []  # layer of each call, in firing order
        self.idle: set[int] = set()  # layers that were called without gradients
        self._inputs: list[list[Tensor]] = [[] for _ in network.uses]
        self._gradients: list[dict[int, Tensor]] = [{} for _ in network.uses]

    @property
    def model(self) -> nn.Module:
        """Whose layers they are."""
        return self._network.model

    @property
    def tensors(self) -> list[Tensor]:
        """The trained parameters of the network."""
        return self._network.tensors

    @contextmanager
    def inside(self) -> Iterator[None]:
        """For a backward pass: calls that a checkpoint makes anew in it are made as they were
        recorded, so that the same tensors are kept; nothing is recorded, and no other call differs.
        """
        if not self.checkpointed:
            yield
            return
        with self.recording():
            self._anew = True
            try:
                yield
            finally:
                self._anew = False

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Hooks on the layers' modules, for as long as the block lasts."""
        handles = []
        for index, use in enumerate(self._network.uses):
            layouts = self._layouts[index] if self._layouts is not None else ()
            repeats = any(layout.repeat is not None for layout in layouts)
            for module in use.modules:
                if isinstance(use.layer, Whole):
                    before = self._enter(index)
                    handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                elif repeats:
                    before = self._repeat(index)
                    handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(self._hook(index), with_kwargs=True))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
            for use in self._network.uses:
                if isinstance(use.layer, Whole):  # of a call that was broken off
                    for module in use.modules:
                        use.layer.leave(module)

    def under_way(self, module: nn.Module) -> None:
        """For a call of ``module`` whose own hooks before it have been run already."""
        for index, use in enumerate(self._network.uses):
            if isinstance(use.layer, Whole) and module in use.modules:
                self._enter(index)(module, (), {})

    def _layout(self, index: int, call: int) -> RowLayout | None:
        layouts = self._layouts[index] if self._layouts is not None else ()
        return layouts[min(call, len(layouts) - 1)] if layouts else None

    def _enter(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        layer = self._network.uses[index].layer
        assert isinstance(layer, Whole)

        def hook(module: nn.Module, args: Any, named: Any) -> None:
            if (self._anew and not _in_backward()) or not torch.is_grad_enabled():
                return
            layout = self._layout(index, len(self._inputs[index]))
            copies = None if layout is None or self._cases is None else layout.repeat
            layer.enter(module, copies, self._cases or 1)

        return hook

    def _repeat(self, index: int) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, named: Any) -> Any:
            if (self._anew and not _in_backward()) or not torch.is_grad_enabled():
                return None
            layout = self._layout(index, len(self._inputs[index]))
            if layout is None or layout.repeat is None or self._cases is None:
                return None
            if args:
                return (repeated(args[0], layout.repeat, self._cases), *args[1:]), named
            first = next(iter(named))
            return args, {**named, first: repeated(named[first], layout.repeat, self._cases)}

        return hook

    def _hook(self, index: int) -> Callable[[nn.Module, Any, Any, Any], Any]:
        record = traits(self._network.uses[index].layer, LayerTraits).record or plain_call

        def hook(module: nn.Module, args: Any, named: Any, output: Any) -> Any:
            if any(map(_hidden, (*args, *named.values(), output))):
                return None  # nothing is recorded, of which the probe tells
            if not torch.is_grad_enabled():  # the model's own no_grad: no use of the parameters
                self.idle.add(index)
                return None
            if self._anew:
                return record(module, args, named, output).output if _in_backward() else None
            self.checkpointed |= _inside_checkpoint()
            self.fired.append(index)
            inputs, watched, replaced = record(module, args, named, output)
            call = len(self._inputs[index])
            self._inputs[index].append(inputs.detach())
            if watched is not None and watched.requires_grad:
                watched.register_hook(lambda g: self._gradients[index].__setitem__(call, g))
            return replaced

        return hook

    def calls_in(self) -> list[list[Tensor]]:
        """ā of each call of each layer, as the layer lays them out: ``[B, S, d_in]``."""
        return [
            [self._rows(use.layer.rows_in, x, use.layer.d_in) for x in calls]
            for use, calls in zip(self._network.uses, self._inputs, strict=True)
        ]

    def _rows(self, lay_out: Callable[[Tensor], Tensor], given: Tensor, width: int) -> Tensor:
        """Rows in the moments' precision, which may be higher than the pass's; none of nothing."""
        if not given.numel():
            return given.new_zeros((0, 1, width), dtype=self._network.dtype)
        rows = lay_out(given)
        return rows if rows.dtype == self._network.dtype else rows.to(self._network.dtype)

    def calls_out(self) -> list[list[Tensor | None]]:
        """g of each call of the latest backward, ``[B, S, d_out]``, None where none came."""
        found: list[list[Tensor | None]] = []
        for use, calls, seen in zip(self._network.uses, self._inputs, self._gradients, strict=True):
            layer = use.layer
            own = [
                self._rows(layer.rows_out, seen[c], layer.d_out) if c in seen else None
                for c in range(len(calls))
            ]
            found.append(own)
            seen.clear()
        return found

    def rows_in(self) -> list[Grouped | None]:
        """ā per layer, ``[n, S, d_in]``; several calls of one layer are further positions."""
        return [self._joined(i, calls, "first") for i, calls in enumerate(self.calls_in())]

    def rows_out(self) -> list[Grouped | None]:
        """g per layer of the latest backward, ``[n, S, d_out]``; forgets it.

        A call that the outputs do not depend on has zeros, unless none of its layer's do.
        """
        rows: list[Grouped | None] = []
        for i, calls in enumerate(self.calls_out()):
            if not any(g is not None for g in calls):
                rows.append(None)
                continue
            layer = self._network.uses[i].layer
            full = []
            for c, g in enumerate(calls):
                if g is None:
                    shape = self._rows(layer.rows_in, self._inputs[i][c], layer.d_in).shape
                    like = next(other for other in calls if other is not None)
                    g = like.new_zeros((*shape[:2], like.shape[-1]))
                full.append(g)
            found = self._joined(i, full, "sum")
            rows.append(found.contiguous() if isinstance(found, Tensor) else found)
        return rows

    def _joined(self, index: int, calls: list[Tensor], summing: str) -> Grouped | None:
        """The calls of a layer together; of one that is ``summed`` with one row for each case."""
        summed = traits(self._network.uses[index].layer, LayerTraits).summed

        def one(rows: Tensor) -> Tensor:
            if not summed or rows.shape[1] == 1:
                return rows
            return rows[:, :1] if summing == "first" else rows.sum(1, keepdim=True)

        if self._layouts is None or self._cases is None:
            apart = len({len(rows) for rows in calls}) > 1
            return joined([r.flatten(0, 1).unsqueeze(0) if apart else one(r) for r in calls])
        found = joined(
            [grouped(r, self._layout(index, c), self._cases) for c, r in enumerate(calls)]
        )
        return one(found) if isinstance(found, Tensor) else found

    def chosen(
        self, rows: Tensor | slice, cases: int
    ) -> tuple[list[Tensor | None], list[Tensor | None]] | None:
        """ā and g of some of the ``cases``; None where a call has not them in front, or no g."""
        inputs: list[Tensor | None] = []
        gradients: list[Tensor | None] = []
        for use, calls, seen in zip(self._network.uses, self._inputs, self._gradients, strict=True):
            if not use.modules:
                inputs.append(None)
                gradients.append(None)
                continue
            given = [seen.get(c) for c in range(len(calls))]
            known = [x for x in given if x is not None]
            if not calls or len(known) < len(calls):
                return None
            if any(x.shape[:1] != (cases,) for x in (*calls, *known)):
                return None
            here = rows.to(calls[0].device) if isinstance(rows, Tensor) else rows
            a = [use.layer.rows_in(x[here]) for x in calls]
            g = [use.layer.rows_out(x[here]) for x in known]
            joint_a, joint_g = (torch.cat(x, 1) if len(x) > 1 else x[0] for x in (a, g))
            if traits(use.layer, LayerTraits).summed and joint_g.shape[1] > 1:
                joint_a, joint_g = joint_a[:, :1], joint_g.sum(1, keepdim=True)
            inputs.append(joint_a)
            gradients.append(joint_g)
        return inputs, gradients

    def shapes(self) -> Mapping[int, tuple[int, int, int]]:
        """Layer → (calls, cases, positions), for the chains; cases are 0 where rows have none."""
        found = {}
        for i, rows in enumerate(self.rows_in()):
            if isinstance(rows, Tensor):
                found[i] = (len(self._inputs[i]), rows.shape[0], rows.shape[1])
            elif rows is not None:
                found[i] = (len(self._inputs[i]), 0, 2)
        return found


def _inside_checkpoint() -> bool:
    """Whether what is kept for the backward is handed to somebody, as to a checkpoint.

    An older torch does not say, and it may be so.
    """
    kept_by = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return kept_by is None or kept_by(True) is not None


def _in_backward() -> bool:
    task: int = torch._C._current_graph_task_id()
    return task != -1


def _hidden(value: Any) -> bool:
    """A tensor without rows to see: inside ``torch.vmap`` of one case alone, or a nested one."""
    if not isinstance(value, Tensor):
        return False
    batched: bool = torch._C._functorch.is_batchedtensor(value)
    return batched or value.is_nested


def repeated(given: Tensor, along: int, cases: int) -> Tensor:
    """One input for all cases as one for each: see ``RowLayout.repeat``."""
    if along < 0:  # a new dimension
        place = -1 - along
        shape = (*given.shape[:place], cases, *given.shape[place:])
        return given.unsqueeze(place).expand(shape)
    if along >= given.dim() or given.shape[along] != 1:
        return given
    return given.expand(*given.shape[:along], cases, *given.shape[along + 1 :])


def chains_of(fired: Sequence[int], shapes: Mapping[int, tuple[int, int, int]]) -> list[list[int]]:
    """Runs of layers in firing order that may be linked: one call, one position, same cases."""
    chains: list[list[int]] = [[]]
    for index in fired:
        calls, cases, positions = shapes[index]
        if calls > 1 or positions > 1:
            chains.append([])
            continue
        if chains[-1] and shapes[chains[-1][-1]][1] != cases:
            chains.append([])
        chains[-1].append(index)
    return [chain for chain in chains if chain]
