"""A small tanh classifier on 16 x 16 MNIST: small enough to form its Fisher (section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from kfac_lab.core.problem import Problem
from kfac_lab.problems.images import classifying
from kfac_lab.problems.mnist import mnist_arrays
from kfac_lab.problems.shared import shared

__all__ = ["downscale", "mnist_small", "mnist_small_data"]

WIDTHS = (256, 20, 20, 20, 20, 20, 10)
TRAIN = 1000
SIDE = 16


def mnist_small(seed: int = 0, device: str | torch.device = "cpu") -> Problem:
    """The 256-20-20-20-20-20-10 tanh classifier of the structure figures (section 3).

    1,000 training images chosen by a fixed seed, all 10,000 test images; weights from
    N(0, 1/fan-in), zero biases, categorical likelihood.

    Args:
        seed: of the initialisation only.
        device: where model and data live.

    Raises:
        DataError: MNIST is neither in ``KFAC_LAB_DATA`` nor to be fetched, or is damaged.
    """
    train, train_labels, test, test_labels = shared("mnist_small", device, mnist_small_data)
    labelled = train, train_labels, test, test_labels
    return classifying("mnist_small", "MNIST 16x16", WIDTHS, labelled, seed)


def mnist_small_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images ``[1000, 256]`` and labels, test images ``[10000, 256]`` and labels.

    Images are float32 in [0, 1], labels int64, on the CPU. The training cases are the first of
    MNIST's permuted training set.
    """
    train, train_labels, test, test_labels = mnist_arrays()
    return (
        downscale(train[:TRAIN], SIDE).flatten(1),
        train_labels[:TRAIN].long(),
        downscale(test, SIDE).flatten(1),
        test_labels.long(),
    )


def downscale(images: Tensor, side: int) -> Tensor:
    """Square uint8 images ``[N, S, S]`` to float32 ``[N, side, side]`` in [0, 1].

    Every new pixel is the mean of the area it covers; a pixel of the old grid that it covers in
    part counts in part, so the mean of an image is kept.
    """
    old = images.shape[-1]
    edges = torch.arange(side + 1, dtype=torch.float64) * (old / side)  # of the new pixels
    left = torch.arange(old, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)
    weights = (overlap.clamp_min_(0) * (side / old)).float()  # [side, S], rows sum to 1
    scaled: Tensor = weights @ (images.float() / 255) @ weights.T
    return scaled.clamp_(0, 1)
