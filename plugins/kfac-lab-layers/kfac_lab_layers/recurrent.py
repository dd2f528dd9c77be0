"""``LSTM``, ``GRU`` and ``RNN``, and their cells: each map of inputs and of states over time.

The modules hand their parameters to one function of torch's. So while rows are recorded the
recurrence is run anew, step by step, in differentiable form (``cells.py``); its numbers are
torch's. Of each layer and direction there are two maps:

    ih: the inputs x_t to all gates,  W_ih [gates·H, I+1];  g_t is the gradient at its output
    hh: the states h_{t−1} to all gates,  W_hh [gates·H, H+1]

and a third, hr, where an LSTM projects its states. Steps are positions (arXiv:2311.00636). A
gate's own Kronecker block is Ā with its H × H part of the diagonal of G; the parts beside it, which
couple the gates of a step, are kept too.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from kfac_lab.core.layers import Recorded
from kfac_lab.errors import CoverageError
from kfac_lab_layers.affine import Affine
from kfac_lab_layers.cells import Pieces, sweep

__all__ = ["Gates", "Unrolled", "claim", "claim_cell"]


@dataclass(eq=False)
class Unrolled:
    """One recurrent module run anew for all of its layers: the first that records runs it."""

    waiting: dict[tuple[int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __deepcopy__(self, memo: Any) -> Unrolled:
        return Unrolled()  # what waits belongs to a call of the original

    def piece(
        self, name: str, path: str, module: Any, args: tuple[Any, ...], named: Any, output: Any
    ) -> Recorded:
        """What the layer with the weight ``name`` is to record of a call of ``module``."""
        key = (id(module), name)
        if key not in self.waiting:
            output, pieces = _again(path, module, args, named)
            self.waiting = {(id(module), n): piece for n, piece in pieces.items()}
        inputs, watched = self.waiting.pop(key)
        return Recorded(inputs, watched, output)


@dataclass(frozen=True, eq=False)
class Gates(Affine):
    """One map to all gates of a layer and direction; see the head of this file."""

    unrolled: Unrolled = field(default_factory=Unrolled)

    def record(
        self, module: Any, args: tuple[Any, ...], named: Mapping[str, Any], output: Any
    ) -> Recorded:
        """The call in steps; ``inputs`` and ``watched`` are ``[N, T, ·]``.

        Raises:
            CoverageError: the call has no dimension of cases, or is of packed sequences.
        """
        return self.unrolled.piece(self.weight, self.path, module, args, named, output)


def claim(module: Any, path: str) -> tuple[Gates, ...]:
    """The maps of every layer and direction."""
    unrolled, layers = Unrolled(), []
    for n in range(module.num_layers):
        for way in ("", "_reverse")[: 1 + module.bidirectional]:
            suffix = f"_l{n}{way}"
            for kind in ("ih", "hh", "hr")[
                : 2 + (getattr(module, f"weight_hr{suffix}", None) is not None)
            ]:
                bias = f"bias_{kind}{suffix}" if module.bias and kind != "hr" else None
                own = f"{kind}{suffix}"
                layers.append(
                    Gates(
                        module,
                        f"{path}.{own}" if path else own,
                        f"weight_{own}",
                        bias,
                        False,
                        unrolled,
                    )
                )
    return tuple(layers)


def claim_cell(module: Any, path: str) -> tuple[Gates, ...]:
    """Both maps of a cell, which its owner calls once for each step."""
    unrolled = Unrolled()
    return tuple(
        Gates(
            module,
            f"{path}.{kind}" if path else kind,
            f"weight_{kind}",
            f"bias_{kind}" if module.bias else None,
            False,
            unrolled,
        )
        for kind in ("ih", "hh")
    )


def _again(
    path: str, module: Any, args: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Any, Pieces]:
    call = inspect.signature(type(module).forward).bind(module, *args, **named).arguments
    x, state = call["input"], call.get("hx")
    where = path.rpartition(".")[0] or type(module).__name__
    if isinstance(x, PackedSequence):
        raise CoverageError(
            f"{where} is called on a PackedSequence, whose rows are of no one case: call it on "
            "padded sequences [N, T, …]"
        )
    cell = isinstance(module, nn.RNNCellBase)
    if x.dim() != 3 - cell:
        raise CoverageError(
            f"{where} is called on {tuple(x.shape)}, without a dimension of cases: give it "
            f"{3 - cell}"
        )
    return _cell(module, x, state) if cell else _layers(module, x, state)


def _cell(module: Any, x: Tensor, state: Any) -> tuple[Any, Pieces]:
    kind = (
        "LSTM"
        if isinstance(module, nn.LSTMCell)
        else "GRU"
        if isinstance(module, nn.GRUCell)
        else None
    )
    if state is None:
        zeros = x.new_zeros(len(x), module.hidden_size)
        state = (zeros, zeros) if kind == "LSTM" else zeros
    h, c = state if kind == "LSTM" else (state, None)
    pieces: Pieces = {}
    kind = kind or f"RNN_{module.nonlinearity.upper()}"
    _, h, c = sweep(module, kind, "", x.unsqueeze(1), h, c, pieces)
    return (h if c is None else (h, c)), pieces


def _layers(module: Any, x: Tensor, state: Any) -> tuple[Any, Pieces]:
    pieces: Pieces = {}
    x = x if module.batch_first else x.transpose(0, 1)
    ways = 1 + module.bidirectional
    count = ways * module.num_layers
    lstm = module.mode == "LSTM"
    if state is None:
        width = module.proj_size or module.hidden_size
        h0 = x.new_zeros(count, len(x), width)
        c0 = x.new_zeros(count, len(x), module.hidden_size) if lstm else None
    else:
        h0, c0 = state if lstm else (state, None)
    last: list[Tensor] = []
    cells: list[Tensor] = []
    for n in range(module.num_layers):
        sides = []
        for way in range(ways):
            at = n * ways + way
            given = x.flip(1) if way else x
            out, h, c = sweep(
                module,
                module.mode,
                f"_l{n}" + "_reverse" * way,
                given,
                h0[at],
                None if c0 is None else c0[at],
                pieces,
            )
            sides.append(out.flip(1) if way else out)
            last.append(h)
            cells += [] if c is None else [c]
        x = torch.cat(sides, -1) if ways > 1 else sides[0]
        if module.dropout and module.training and n < module.num_layers - 1:
            # Torch draws its mask with time first.
            given = x.transpose(0, 1).contiguous()
            x = torch.dropout(given, module.dropout, True).transpose(0, 1)
    output = x if module.batch_first else x.transpose(0, 1)
    states = torch.stack(last)
    return (output, (states, torch.stack(cells)) if lstm else states), pieces
