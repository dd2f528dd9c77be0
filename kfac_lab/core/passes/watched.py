"""Rows of passes that somebody else makes: a user's own forward and backward."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kfac_lab.core.capture import Network
from kfac_lab.core.record import Recorder

__all__ = ["LayerRows", "WatchedPasses"]


class LayerRows(NamedTuple):
    """Of the cases of S1, per layer."""

    inputs: list[Tensor | None]  # ā [n, S, d_in]
    gradients: list[Tensor | None]  # g [n, S, d_out], of a case's own loss


class WatchedPasses:
    """What one or several forward passes and their backwards gave, cases one after the other.

    ``begin`` before and ``end`` after each forward pass of ``cases`` cases; the backward comes when
    it comes. The hooks are on the layers in between, and nowhere else; but where activations are
    checkpointed they repeat in the backward what was done to the calls.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._recorded: list[tuple[Recorder, int]] = []
        self._open = ExitStack()
        self._after = ExitStack()
        weakref.finalize(self, self._after.close)
        self.scale: Any = 1.0  # one over what the loss was multiplied by

    def begin(self, cases: int) -> None:
        """Hooks on the layers."""
        self._open.close()
        self.over()
        recorder = Recorder(self._network)
        self._open.enter_context(recorder.recording())
        recorder.under_way(self._network.model)
        self._recorded.append((recorder, cases))

    def end(self) -> None:
        """Hooks off."""
        self._open.close()
        if self._recorded and self._recorded[-1][0].checkpointed:
            self.over()
            self._after.enter_context(self._recorded[-1][0].inside())

    def over(self) -> None:
        """No backward comes any more."""
        self._after.close()

    def taken(self, order: Tensor | None, count: int, scale: float) -> LayerRows | None:
        """The rows of the first ``count`` cases of ``order``; None where some are missing.

        ``scale`` makes the gradients of the loss those of a case's own.

        They are missing where a layer was not called with cases in front, or its gradient did not
        pass (activations computed anew in the backward, a model run without one).
        """
        parts: list[LayerRows] = []
        start = 0
        for recorder, cases in self._recorded:
            here = slice(0, cases)
            chosen: Any = here
            if order is not None:
                wanted = order[:count]
                wanted = wanted[(wanted >= start) & (wanted < start + cases)] - start
                chosen = wanted
            start += cases
            if order is not None and not len(chosen):
                continue
            rows = recorder.chosen(chosen, cases)
            if rows is None:
                return None
            parts.append(LayerRows(*rows))
        if not parts:
            return None
        dtype = self._network.tensors[0].dtype

        def joined(name: str) -> list[Tensor | None]:
            found: list[Tensor | None] = []
            for group in zip(*(getattr(part, name) for part in parts), strict=True):
                given = [x for x in group if x is not None]
                # One pass's rows stay where they are: of a convolution they are large.
                rows = torch.cat(given) if len(given) > 1 else given[0] if given else None
                found.append(None if rows is None else rows.to(dtype))
            return found

        gradients = joined("gradients")
        factor = scale * self.scale
        scaled = [None if g is None else g * factor for g in gradients]
        return LayerRows(joined("inputs"), scaled)
