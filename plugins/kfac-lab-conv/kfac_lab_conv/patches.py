"""Patches: what each output position of a convolution sees, as rows.

Rows are stored column by column, ``[d, N, S, groups]`` behind a view ``[N, S·groups, d]``. To fill
them is then to copy one shifted image after the other, several times faster than patch by patch,
and a product of rows reads them as they lie.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["patch_rows", "position_rows", "stuffed", "windows"]


def windows(
    padded: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The patches of ``[N, C, ...]`` as a view ``[N, C, *out, *kernel]``; copies nothing."""
    view = padded
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        view = view.unfold(axis, gap * (size - 1) + 1, step)
    for axis, gap in enumerate(dilation, start=len(kernel) + 2):
        view = view.unfold(axis, 1, gap).squeeze(-1)  # every gap-th
    return view


def patch_rows(view: Tensor, groups: int, one: bool) -> Tensor:
    """Patches ``[N, C, *out, *kernel]`` as rows ``[N, S·groups, C/groups·K]``, ``one`` appended.

    A position's groups follow one another.
    """
    n = (view.dim() - 2) // 2
    cases, out, kernel = view.shape[0], view.shape[2 : 2 + n], view.shape[2 + n :]
    channels = view.shape[1] // groups
    width = channels * kernel.numel()
    columns = view.new_empty((width + one, cases, out.numel(), groups))
    if one:
        columns[-1] = 1
    # [N, groups, c, *out, *kernel] -> [c, *kernel, N, *out, groups]
    order = [2, *range(3 + n, 3 + 2 * n), 0, *range(3, 3 + n), 1]
    apart = view.unflatten(1, (groups, channels)).permute(order)
    columns[:width].view(apart.shape).copy_(apart)
    return _rows(columns)


def position_rows(gradients: Tensor, groups: int) -> Tensor:
    """Gradients at the outputs ``[N, O, *out]`` as rows ``[N, S·groups, O]``.

    The row of a position and a group holds that group's outputs and is zero elsewhere.
    """
    flat = gradients.flatten(2)
    cases, outputs, positions = flat.shape
    if groups == 1:
        return _rows(flat.transpose(0, 1).contiguous().unsqueeze(-1))
    own = outputs // groups
    columns = flat.new_zeros((outputs, cases, positions, groups))
    place = columns.view(groups, own, cases, positions, groups).diagonal(dim1=0, dim2=4)
    place.copy_(flat.unflatten(1, (groups, own)).permute(2, 0, 3, 1))
    return _rows(columns)


def _rows(columns: Tensor) -> Tensor:
    return columns.permute(1, 2, 3, 0).flatten(1, 2)


def stuffed(inputs: Tensor, stride: Sequence[int]) -> Tensor:
    """Inputs ``[N, C, ...]`` with ``stride - 1`` zeros between neighbours.

    A transposed convolution is a plain one of stride 1 on these, with the kernel turned round.
    """
    sizes = [(size - 1) * step + 1 for size, step in zip(inputs.shape[2:], stride, strict=True)]
    result = inputs.new_zeros((*inputs.shape[:2], *sizes))
    view = result
    for axis, step in enumerate(stride, start=2):
        view = view.unfold(axis, 1, step).squeeze(-1)
    view.copy_(inputs)
    return result
