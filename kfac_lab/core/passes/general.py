"""The general back end: autograd, with hooks on the layers while rows are recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.passes.function import Function
from kfac_lab.core.passes.products import jacobian_products, raised
from kfac_lab.core.passes.trace import Trace
from kfac_lab.core.record import Recorder
from kfac_lab.core.rows import Grouped, Layouts
from kfac_lab.core.vector import Vec

__all__ = ["Autograd", "gradients"]


def gradients(outputs: Tensor, theta: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    """∇⟨cotangent, outputs⟩; zeros for what the outputs do not depend on."""
    found = torch.autograd.grad(outputs, theta, cotangent.to(outputs.dtype), allow_unused=True)
    return [g if g is not None else torch.zeros_like(t) for g, t in zip(found, theta, strict=True)]


class _Plain:
    """A trace of outputs and gradient alone."""

    def __init__(self, function: Function, live: Tensor) -> None:
        self._function, self._live = function, live
        self.outputs = raised(live.detach())

    def gradient(self, cotangent: Tensor) -> list[Tensor]:
        """See ``Trace``."""
        return gradients(self._live, self._function.network.tensors, cotangent)

    def by_case(self, cotangent: Tensor) -> None:
        """See ``Trace``: none here."""

    def head(self, count: int) -> Trace:
        """See ``Trace``."""
        raise NotImplementedError("rows and products need passes of their own here")

    def products(self, basis: Sequence[Vec]) -> Tensor:
        """See ``Trace``."""
        raise NotImplementedError("rows and products need passes of their own here")

    def rows_in(self) -> list[Grouped | None]:
        """See ``Trace``: none were recorded."""
        return [None] * len(self._function.network.uses)

    def rows_out(self, cotangent: Tensor) -> list[Grouped | None]:
        """See ``Trace``: none were recorded."""
        return [None] * len(self._function.network.uses)


class _Recorded(_Plain):
    """A trace whose graph is kept, with the rows of every call of a layer."""

    def __init__(
        self, function: Function, live: Tensor, recorder: Recorder, inputs: Tensor
    ) -> None:
        super().__init__(function, live)
        self._recorder, self._inputs = recorder, inputs
        network = function.network
        named = network.named(network.tensors)
        self._loose = [i for i, use in enumerate(network.uses) if not use.modules]
        # A tensor of each layer: the backward runs through a layer only on its way to one of
        # those asked for. The smallest is the bias, which costs no product.
        self._asked = [named[network.uses[i].parameters[0]] for i in self._loose] + [
            min((named[name] for name in use.parameters), key=Tensor.numel)
            for use in network.uses
            if use.modules
        ]

    def rows_in(self) -> list[Grouped | None]:
        """See ``Trace``."""
        rows = self._recorder.rows_in()
        for i in self._loose:
            rows[i] = self._function.network.uses[i].layer.rows_in(self._inputs)
        return rows

    def rows_out(self, cotangent: Tensor) -> list[Grouped | None]:
        """See ``Trace``."""
        with self._recorder.inside():
            found = torch.autograd.grad(
                self._live,
                self._asked,
                cotangent.to(self._live.dtype),
                retain_graph=True,
                allow_unused=True,
            )
        rows = self._recorder.rows_out()
        for i, asked, g in zip(self._loose, self._asked, found, strict=False):
            whole = torch.zeros_like(asked) if g is None else g
            rows[i] = self._function.network.uses[i].layer.rows_out(whole)
        return rows


class Autograd:
    """See ``BackEnd``. ``path`` says how J·v is made: see ``products.PATHS``."""

    shares = False

    def __init__(self, function: Function, path: str, layouts: Layouts | None = None) -> None:
        self._function, self._path, self._layouts = function, path, layouts

    def randomness(self, step: int, start: int, device: torch.device) -> Any:
        """See ``Function.mask``."""
        return self._function.mask(step, start, device)

    def forward(self, inputs: Tensor, buffers: dict[str, Tensor], step: int, start: int) -> _Plain:
        """One plain call."""
        with torch.enable_grad(), self._function.mask(step, start, inputs.device):
            return _Plain(self._function, self._function(None, buffers, inputs))

    def record(self, inputs: Tensor, step: int, start: int) -> _Recorded:
        """One call with hooks on the layers, on copies of the buffers."""
        function = self._function
        recorder = Recorder(function.network, self._layouts, len(inputs))
        buffers = function.buffers()
        with torch.enable_grad(), recorder.recording():
            with function.mask(step, start, inputs.device):
                live = function(None, buffers, inputs)
        return _Recorded(function, live, recorder, inputs)

    def products(
        self, inputs: Tensor, theta: list[Tensor], basis: Sequence[Vec], step: int, start: int
    ) -> tuple[Tensor, Tensor]:
        """By torch's own forward mode, or twice backward."""
        with self._function.mask(step, start, inputs.device):
            return jacobian_products(self._path, self._function, theta, inputs, basis)
