"""Three small problems on 8 x 8 handwritten digits that travel with the package.

The 1,797 images are the test set of the UCI "Optical Recognition of Handwritten Digits" (Alpaydin &
Kaynak 1998, CC BY 4.0). They need no download and train in seconds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kfac_lab.core.problem import Problem
from kfac_lab.problems.images import autoencoding, classifying
from kfac_lab.problems.shared import shared

__all__ = ["digits", "digits_classifier", "digits_data", "digits_small"]

ENCODER = (64, 32, 16, 4)
WIDTHS = (64, 32, 16, 10)
DEEP = (64, 20, 20, 20, 20, 20, 10)  # the middle of mnist_small, on other images
TEST = 360  # of 1,797
DATA_SEED = 1998  # of the one permutation before the split

_FILE = Path(__file__).parent / "data" / "digits.npz"


def digits(seed: int = 0, device: str | torch.device = "cpu") -> Problem:
    """The autoencoder 64-32-16-4-16-32-64 on 8 x 8 digits, 1,437 / 360 cases.

    Logistic hidden units, linear code, Bernoulli outputs, as the large autoencoders of
    section 13.

    Args:
        seed: of the sparse initialisation only.
        device: where model and data live.
    """
    train, _, test, _ = shared("digits", device, digits_data)
    return autoencoding("digits", "digits 8x8", ENCODER, (train, test), seed)


def digits_classifier(seed: int = 0, device: str | torch.device = "cpu") -> Problem:
    """The tanh classifier 64-32-16-10 on 8 x 8 digits, 1,437 / 360 cases.

    Weights from N(0, 1/fan-in), zero biases, as the classifier of section 3.

    Args:
        seed: of the initialisation only.
        device: where model and data live.
    """
    return _classifier("digits_classifier", "digits 8x8, classes", WIDTHS, seed, device)


def digits_small(seed: int = 0, device: str | torch.device = "cpu") -> Problem:
    """The tanh classifier 64-20-20-20-20-20-10 on 8 x 8 digits, 1,437 / 360 cases.

    Its four middle layers are those of ``mnist_small`` (section 3), for where MNIST is not.

    Args:
        seed: of the initialisation only.
        device: where model and data live.
    """
    return _classifier("digits_small", "digits 8x8, six layers", DEEP, seed, device)


def _classifier(
    name: str, title: str, widths: tuple[int, ...], seed: int, device: str | torch.device
) -> Problem:
    train, train_labels, test, test_labels = shared("digits", device, digits_data)
    return classifying(name, title, widths, (train, train_labels, test, test_labels), seed)


def digits_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images ``[1437, 64]`` and labels, test images ``[360, 64]`` and labels.

    Images are float32 in [0, 1] (grey levels 0..16, divided by 16), labels int64, on the CPU. The
    file is ordered by writer, so the cases are permuted once, by a fixed seed, before the split.
    """
    with np.load(_FILE, allow_pickle=False) as file:
        images = torch.from_numpy(file["images"])
        labels = torch.from_numpy(file["labels"]).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(DATA_SEED))
    pixels = images.flatten(1).float().div_(16)[order]
    labels = labels[order]
    return pixels[:-TEST], labels[:-TEST], pixels[-TEST:], labels[-TEST:]
