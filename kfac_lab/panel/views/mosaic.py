"""Many small images as one."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from kfac_lab.panel.views.series import Floats

__all__ = ["mosaic", "zoom"]


def mosaic(images: Tensor, columns: int) -> Floats:
    """``[n, height, width]`` in rows of ``columns``, one empty (NaN) pixel between them.

    Small images are enlarged by a whole factor (:func:`zoom`), so that the gap stays narrow.
    """
    factor = zoom(images)
    images = images.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    n, height, width = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for k in range(n):
        y, x = (k // columns) * (height + 1), (k % columns) * (width + 1)
        sheet[y : y + height, x : x + width] = images[k].double().numpy()
    return sheet


def zoom(images: Tensor) -> int:
    """How many pixels of a mosaic one of ``[n, height, width]`` takes each way."""
    return max(1, 24 // min(images.shape[1:]))
