"""The network as a function: of other parameters and buffers, with its own randomness."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core import seeds
from kfac_lab.core.capture import Network, buffered, called
from kfac_lab.core.cases import call_arguments
from kfac_lab.core.coupling import normalises, normalising
from kfac_lab.core.likelihood import Outputs
from kfac_lab.core.state import Place

__all__ = ["Function"]


class Function:
    """Calls the network.

    Args:
        place: the seed and the share of a batch, as they are now.
        chunk: how many cases go through the network at a time.
        outputs: takes from what the model gives the tensor that the likelihood is of.
    """

    def __init__(
        self, network: Network, place: Callable[[], Place], chunk: int, outputs: Outputs
    ) -> None:
        self.network, self._place, self.chunk, self.outputs = network, place, chunk, outputs
        self.whole = False  # the batch goes through as it is: fewer cases are another network
        # Both stay: of a model whose modules change the engine asks for a rebind.
        self.buffered = buffered(network.model)
        self._normalising = normalising(network.model)

    @property
    def model(self) -> nn.Module:
        """The module."""
        return self.network.model

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the module's buffers: every pass works on copies."""
        if not self.buffered:
            return {}
        return {name: b.clone() for name, b in self.model.named_buffers()}

    def __call__(self, theta: list[Tensor] | None, buffers: dict[str, Tensor], x: Any) -> Tensor:
        """The outputs z at ``theta``; or where the model is, with ``buffers`` updated in place."""
        if theta is None and not buffers:
            args, kwargs = call_arguments(x)
            return self.outputs(self.model(*args, **kwargs))
        named = dict(buffers)
        if theta is not None:
            named.update(self.network.named(theta))
        return self.outputs(called(self.model, named, x, buffers if theta is None else None))

    def mask(self, step: int, start: int, device: torch.device) -> Any:
        """The network's own randomness, a function of (seed, step, chunk, process)."""
        if device.type == "meta":
            return contextlib.nullcontext()
        place = self._place()
        purpose = f"model/{start}" if place.rank == 0 else f"model/{start}/{place.rank}"
        return seeds.forked(place.seed, purpose, step, device)

    def chunks(self, rows: int) -> Iterator[slice]:
        """Cases that go through together: all where the network couples them."""
        size = rows if self.couples() else self.chunk
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))

    def couples(self) -> bool:
        """Whether a case's outputs depend on the others, as under BatchNorm in training mode."""
        return self.whole or self.normalises()

    def normalises(self) -> bool:
        """Whether a module of it normalises over the batch, in the mode that it is in."""
        return normalises(self._normalising)
