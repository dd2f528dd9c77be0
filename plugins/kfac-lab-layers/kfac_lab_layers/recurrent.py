"""``LSTM``, ``GRU`` and ``RNN``, and their cells: each map of inputs and of states over time.

The modules hand their parameters to one function of torch's. So while rows are recorded the
recurrence is run anew, step by step, in differentiable form (``cells.py``); its numbers are
torch's. Of each layer and direction there are two maps:

    ih: the inputs x_t to all gates,  W_ih [gates·H, I+1];  g_t is the gradient at its output
    hh: the states h_{t−1} to all gates,  W_hh [gates·H, H+1]

and a third, hr, where an LSTM projects its states. Steps are positions (arXiv:2311.00636). A
gate's own Kronecker block is Ā with its H × H part of the diagonal of G; the parts beside it, which
couple the gates of a step, are kept too; the block ``per_gate`` leaves them out.
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
from kfac_lab_layers.cells import Pieces, sweep, sweep_packed

__all__ = ["Gates", "Unrolled", "claim", "claim_cell"]


@dataclass(eq=False)
class Unrolled:
    """One recurrent module run anew for all of its layers: the first that records runs it."""

    waiting: dict[tuple[int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __deepcopy__(self, part_state: Any) -> Unrolled:
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
        """The call in steps; ``inputs`` and ``watched`` are ``[N, T, ·]``, or packed ``[R, ·]``.

        Raises:
            CoverageError: the call has no dimension of cases.
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
    cell = isinstance(module, nn.RNNCellBase)
    if isinstance(x, PackedSequence):
        return _packed(module, x, state)
    if x.dim() != 3 - cell:
        where = path.rpartition(".")[0] or type(module).__name__
        raise CoverageError(
            f"{where} is called on {tuple(x.shape)}, without a dimension of cases: give it "
            f"{3 - cell}"
        )
    return _cell(module, x, state) if cell else _padded(module, x, state)


def _cell(module: Any, x: Tensor, state: Any) -> tuple[Any, Pieces]:
    lstm, gru = isinstance(module, nn.LSTMCell), isinstance(module, nn.GRUCell)
    if state is None:
        zeros = x.new_zeros(len(x), module.hidden_size)
        state = (zeros, zeros) if lstm else zeros
    h, c = state if lstm else (state, None)
    kind = "LSTM" if lstm else "GRU" if gru else f"RNN_{module.nonlinearity.upper()}"
    pieces: Pieces = {}
    _, h, c = sweep(module, kind, "", x.unsqueeze(1), h, c, pieces)
    return (h if c is None else (h, c)), pieces


def _padded(module: Any, x: Tensor, state: Any) -> tuple[Any, Pieces]:
    """Sequences of one length, ``[N, T, I]`` or with time first."""
    pieces: Pieces = {}

    def run(suffix: str, x: Tensor, h: Tensor, c: Tensor | None) -> Any:
        back = suffix.endswith("_reverse")
        out, h, c = sweep(module, module.mode, suffix, x.flip(1) if back else x, h, c, pieces)
        return out.flip(1) if back else out, h, c

    def dropped(x: Tensor) -> Tensor:
        given = x.transpose(0, 1).contiguous()  # torch draws its mask with time first
        return torch.dropout(given, module.dropout, True).transpose(0, 1)

    x = x if module.batch_first else x.transpose(0, 1)
    x, states = _layers(module, x, _states(module, x, len(x), state), run, dropped)
    return (x if module.batch_first else x.transpose(0, 1), states), pieces


def _packed(module: Any, packed: PackedSequence, state: Any) -> tuple[Any, Pieces]:
    """Sequences of several lengths: rows are those that there are, ``[R, I]``."""
    pieces: Pieces = {}
    sizes = packed.batch_sizes.tolist()

    def run(suffix: str, x: Tensor, h: Tensor, c: Tensor | None) -> Any:
        return sweep_packed(module, module.mode, suffix, x, sizes, h, c, pieces)

    def dropped(x: Tensor) -> Tensor:
        return torch.dropout(x, module.dropout, True)

    h, c = _states(module, packed.data, sizes[0], state)
    if state is not None and packed.sorted_indices is not None:
        h = h.index_select(1, packed.sorted_indices)
        c = None if c is None else c.index_select(1, packed.sorted_indices)
    out, states = _layers(module, packed.data, (h, c), run, dropped)
    if packed.unsorted_indices is not None:
        own = packed.unsorted_indices
        several = isinstance(states, tuple)
        states = (
            tuple(s.index_select(1, own) for s in states)
            if several
            else states.index_select(1, own)
        )
    kept = (packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    return (PackedSequence(out, *kept), states), pieces


def _states(module: Any, x: Tensor, cases: int, state: Any) -> tuple[Any, Any]:
    """h and c of all layers before the first step; c is None where there is none."""
    lstm = module.mode == "LSTM"
    if state is not None:
        return state if lstm else (state, None)
    count = (1 + module.bidirectional) * module.num_layers
    h = x.new_zeros(count, cases, module.proj_size or module.hidden_size)
    return h, x.new_zeros(count, cases, module.hidden_size) if lstm else None


def _layers(
    module: Any, x: Tensor, first: tuple[Any, Any], run: Any, dropped: Any
) -> tuple[Tensor, Any]:
    """All layers in all directions: outputs, and the last states as torch gives them."""
    ways = 1 + module.bidirectional
    last: list[Tensor] = []
    cells: list[Tensor] = []
    for n in range(module.num_layers):
        sides = []
        for way in range(ways):
            at, (h0, c0) = n * ways + way, first
            suffix = f"_l{n}" + "_reverse" * way
            out, h, c = run(suffix, x, h0[at], None if c0 is None else c0[at])
            sides.append(out)
            last.append(h)
            cells += [] if c is None else [c]
        x = torch.cat(sides, -1) if ways > 1 else sides[0]
        if module.dropout and module.training and n < module.num_layers - 1:
            x = dropped(x)
    states = torch.stack(last)
    return x, (states, torch.stack(cells)) if cells else states
