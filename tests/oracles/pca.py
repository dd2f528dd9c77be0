"""How well a linear code of the same data does: the yardstick beside an autoencoder's error."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pca_error"]


def pca_error(train: Tensor, test: Tensor, components: int) -> float:
    """Average squared error per case, summed over pixels, of principal component analysis.

    Mean and components are fitted on ``train`` and judged on ``test``; float64 throughout. The
    unit is that of the errors of section 13.

    Args:
        train: ``[N, d]``.
        test: ``[M, d]``.
        components: size of the code.
    """
    mean = torch.zeros(train.shape[1], dtype=torch.float64, device=train.device)
    for rows in train.split(_ROWS):
        mean += rows.double().sum(0)
    mean /= len(train)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=train.device)
    for rows in train.split(_ROWS):
        centred = rows.double() - mean
        covariance.addmm_(centred.T, centred)
    basis = torch.linalg.eigh(covariance).eigenvectors[:, len(mean) - components :]
    total = 0.0
    for rows in test.split(_ROWS):
        centred = rows.double() - mean
        total += float(((centred - (centred @ basis) @ basis.T) ** 2).sum())
    return total / len(test)


_ROWS = 10_000  # cases in float64 at a time, about 60 MB
