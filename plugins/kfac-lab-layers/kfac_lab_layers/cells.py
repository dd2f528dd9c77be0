"""The recurrences of torch's ``LSTM``, ``GRU`` and ``RNN``, one step at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Pieces", "sweep", "sweep_packed"]

Pieces = dict[str, tuple[Tensor, Tensor]]  # a weight's name → its inputs, and its watched outputs
_Step = Callable[[Tensor, Tensor, Tensor, Any], tuple[Tensor, Any]]


def _lstm(ih: Tensor, hh: Tensor, h: Tensor, c: Any) -> tuple[Tensor, Any]:
    i, f, g, o = (ih + hh).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(ih: Tensor, hh: Tensor, h: Tensor, c: Any) -> tuple[Tensor, Any]:
    width = h.shape[1]
    r, z = torch.sigmoid(ih[:, : 2 * width] + hh[:, : 2 * width]).chunk(2, 1)
    n = torch.tanh(ih[:, 2 * width :] + r * hh[:, 2 * width :])
    return n + z * (h - n), c


def _tanh(ih: Tensor, hh: Tensor, h: Tensor, c: Any) -> tuple[Tensor, Any]:
    return torch.tanh(ih + hh), c


def _relu(ih: Tensor, hh: Tensor, h: Tensor, c: Any) -> tuple[Tensor, Any]:
    return torch.relu(ih + hh), c


_STEPS: dict[str, _Step] = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _tanh, "RNN_RELU": _relu}
_NAMES = ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh")


def sweep(
    module: Any, kind: str, suffix: str, x: Tensor, h: Tensor, c: Tensor | None, pieces: Pieces
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer in one direction over ``x`` ``[N, T, I]`` from the state ``h`` (and ``c``).

    Returns the outputs ``[N, T, ·]`` and the last state. ``pieces`` gets the inputs and the watched
    outputs of each map, under its weight's name, ``[N, T, ·]``.
    """
    of: Any = {name: getattr(module, f"{name}{suffix}", None) for name in _NAMES}
    W_ih, W_hh, W_hr, b_ih, b_hh = of.values()
    cases, steps = x.shape[:2]
    ih = functional.linear(x, W_ih, b_ih)
    # What a step adds to a map's output: its gradient is that output's own.
    hh = _each(W_hh if b_hh is None else b_hh, b_hh, cases, steps, W_hh.shape[0])
    hr = None if W_hr is None else _each(W_hr, None, cases, steps, W_hr.shape[0])
    step, before, wide, outputs = _STEPS[kind], [], [], []
    for t, own in enumerate(ih.unbind(1)):
        before.append(h)
        h, c = step(own, functional.linear(h, W_hh) + hh[:, t], h, c)
        if W_hr is not None and hr is not None:
            wide.append(h)
            h = functional.linear(h, W_hr) + hr[:, t]
        outputs.append(h)
    pieces[f"weight_ih{suffix}"] = (x, ih)
    pieces[f"weight_hh{suffix}"] = (torch.stack(before, 1), hh)
    if hr is not None:
        pieces[f"weight_hr{suffix}"] = (torch.stack(wide, 1), hr)
    return torch.stack(outputs, 1), h, c


def sweep_packed(
    module: Any,
    kind: str,
    suffix: str,
    x: Tensor,
    sizes: Sequence[int],
    h: Tensor,
    c: Tensor | None,
    pieces: Pieces,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """:func:`sweep` over packed rows ``[R, I]``: step t has the first ``sizes[t]`` cases.

    A layer that is called "reverse" goes from the last step back. A case that has not begun keeps
    its first state, one that has ended its last.
    """
    of: Any = {name: getattr(module, f"{name}{suffix}", None) for name in _NAMES}
    W_ih, W_hh, W_hr, b_ih, b_hh = of.values()
    rows, width = len(x), W_hh.shape[0]
    ih = functional.linear(x, W_ih, b_ih)
    hh = _each(W_hh if b_hh is None else b_hh, b_hh, rows, width)
    hr = None if W_hr is None else _each(W_hr, None, rows, W_hr.shape[0])
    parts = [ih.split(list(sizes)), hh.split(list(sizes))]
    back = suffix.endswith("_reverse")
    order = range(len(sizes))[::-1] if back else range(len(sizes))
    ends = list(itertools.accumulate(sizes))
    before: list[Any] = [None] * len(sizes)
    wide, outputs = list(before), list(before)
    for t in order:
        n = sizes[t]
        before[t] = h[:n]
        own = parts[1][t] + functional.linear(h[:n], W_hh)
        new, cell = _STEPS[kind](parts[0][t], own, h[:n], None if c is None else c[:n])
        if hr is not None:
            wide[t] = new
            new = functional.linear(new, W_hr) + hr[ends[t] - n : ends[t]]
        outputs[t] = new
        h = torch.cat([new, h[n:]])
        c = None if c is None else torch.cat([cell, c[n:]])
    pieces[f"weight_ih{suffix}"] = (x, ih)
    pieces[f"weight_hh{suffix}"] = (torch.cat(before), hh)
    if hr is not None:
        pieces[f"weight_hr{suffix}"] = (torch.cat(wide), hr)
    return torch.cat(outputs), h, c


def _each(on: Tensor, bias: Tensor | None, *shape: int) -> Tensor:
    """A bias for each row ``[..., width]``, or zeros, that depend on ``on``."""
    own = on.reshape(-1)[:1] * 0 if bias is None else bias
    return own.expand(*shape)
