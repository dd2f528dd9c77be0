"""Whether the recorded rows are all there is: Σ g āᵀ against autograd's own gradient.

And how far a case's rows are from being independent, as a Kronecker block of many rows takes them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kfac_lab.core.capture import Network
from kfac_lab.core.passes.layouts import RecordedPass
from kfac_lab.core.protocols import Layer
from kfac_lab.core.rows import Grouped
from kfac_lab.errors import CoverageError

__all__ = ["Unseen", "certify"]

_ROWS = 2048  # of a case; more are not compared with each other

# Relative difference that rounding may make, by the coarsest precision on the way.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


class Unseen(CoverageError):
    """Layers that are used in a way their rows do not see; ``paths`` says which."""

    def __init__(self, message: str, paths: tuple[str, ...]) -> None:
        super().__init__(message)
        self.paths = paths


def certify(network: Network, seen: RecordedPass) -> tuple[float, ...]:
    """Compares, for each claimed layer, Σ_rows g āᵀ with the gradient of its parameters.

    Returns for each layer the trace of its Kronecker block over that of the cases' own gradients,
    on a cotangent drawn at random; 1.0 where a case has one row, or it was not looked at.

    Raises:
        Unseen: they differ, or a layer that the outputs depend on recorded nothing.
    """
    outputs = seen.outputs
    if outputs.device.type == "meta":
        return (1.0,) * len(network.uses)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    tensors = network.tensors
    found = seen.backward(drawn, tensors)
    truth = network.pack(
        [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]
    )
    with torch.no_grad():
        rows_in, rows_out = seen.recorder.rows_in(), seen.recorder.rows_out()
        wrong: dict[str, float] = {}
        for use, a, g, expected in zip(network.uses, rows_in, rows_out, truth, strict=True):
            if use.modules:
                _check_counts(use.layer, a, g)
                difference = _difference(a, g, expected, outputs.dtype)
                if difference:
                    wrong[use.layer.path or type(use.layer.module).__name__] = difference
        if not wrong:
            pairs = zip(rows_in, rows_out, strict=True)
            return tuple(_excess(a, g) for a, g in pairs)
    named = ", ".join(f"{path} (relative difference {d:.2g})" for path, d in wrong.items())
    raise Unseen(
        f"the recorded rows of {named} do not make up the gradient of the parameters: the model "
        "uses them in a way that no call of the layer shows (its weight in a product of its own, "
        "torch.autograd.grad inside forward, a functional call, a change in place). Use the "
        "layer by calling it, freeze it with requires_grad_(False), or name a fallback in the "
        "recipe, which then looks after it: fallback='diagonal'",
        tuple(wrong),
    )


def _excess(rows: Grouped | None, gradients: Grouped | None) -> float:
    """tr(Ā)·tr(G) over the mean of ‖Σ_s g_s ā_sᵀ‖² over cases."""
    if not isinstance(rows, Tensor) or not isinstance(gradients, Tensor) or rows.is_sparse:
        return 1.0
    cases, count = gradients.shape[:2]
    if not cases or not 1 < count <= _ROWS:
        return 1.0
    a, g = rows.double(), gradients.double()
    own = float(((a @ a.mT) * (g @ g.mT)).sum())
    block = float((a * a).sum() * (g * g).sum()) / (cases * count)
    return block / own if own > 0 and math.isfinite(block / own) else 1.0


def _difference(
    rows: Grouped | None, gradients: Grouped | None, expected: Tensor, coarse: torch.dtype
) -> float:
    """The relative difference, or 0.0 where rounding explains it."""
    ours = torch.zeros_like(expected, dtype=torch.float64)
    length = 0.0  # Σ ‖g‖‖ā‖: what cancels in the sum leaves this much rounding
    tolerance = _TOLERANCE.get(coarse, 1e-1)
    if rows is not None and gradients is not None:
        for a, g in _pairs(rows, gradients):
            for dtype in (a.dtype, g.dtype):
                tolerance = max(tolerance, _TOLERANCE.get(dtype, 1e-1))
            flat = g.flatten(0, 1).double()
            if a.is_sparse:
                case, position, column = a._indices()
                values = a._values().double()
                sums = ours.new_zeros(ours.shape[::-1])
                ours = (
                    ours
                    + sums.index_add_(0, column, g[case, position].double() * values[:, None]).t()
                )
                length += float((flat.norm(dim=1).max() * values.abs().sum()) if len(flat) else 0)
            else:
                inputs = a.flatten(0, 1).double()
                ours = ours + flat.t() @ inputs
                length += float((flat.norm(dim=1) * inputs.norm(dim=1)).sum())
    apart = float((ours - expected).norm())
    if not math.isfinite(apart):
        return 0.0  # the step itself says what is not finite
    size = max(float(expected.norm()), float(ours.norm()))
    if apart <= tolerance * size + tolerance * 1e-3 * length:
        return 0.0
    return apart / size if size else apart


def _check_counts(layer: Layer, rows: Grouped | None, gradients: Grouped | None) -> None:
    """Rows of inputs and of gradients are as many, and the same cases'.

    Raises:
        CoverageError: they are not.
    """
    if rows is None or gradients is None:
        return
    told = [_shapes(rows), _shapes(gradients)]
    alike = isinstance(rows, tuple) == isinstance(gradients, tuple)
    if not alike or [n * s for n, s in told[0]] != [n * s for n, s in told[1]]:
        raise CoverageError(
            f"{layer.path or type(layer.module).__name__}: {type(layer).__name__}.rows_in and "
            f"rows_out lay a call out as rows {told[0]} and {told[1]}, and both have to be the "
            "same [N, S]"
        )


def _shapes(rows: Grouped) -> list[tuple[int, ...]]:
    parts = [r.values for r in rows] if isinstance(rows, tuple) else [rows]
    return [tuple(part.shape[:2]) for part in parts]


def _pairs(rows: Grouped, gradients: Grouped) -> list[tuple[Tensor, Tensor]]:
    if isinstance(rows, tuple):
        assert isinstance(gradients, tuple)
        return [(a.values, g.values) for a, g in zip(rows, gradients, strict=True)]
    assert isinstance(gradients, Tensor)
    return [(rows, gradients)]
