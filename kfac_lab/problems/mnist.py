"""MNIST: 60,000 / 10,000 handwritten digits and the autoencoder on them (section 13).

The images are LeCun, Cortes and Burges's and are not shipped. They are read from the four idx
files in ``KFAC_LAB_DATA`` (packed or not), else fetched through scikit-learn; either way the bytes
are those of the canonical files. Principal component analysis with 30 components, fitted on the
training images, has a test error of 13.87, the value printed by Hinton & Salakhutdinov (2006).
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kfac_lab.core.problem import Problem
from kfac_lab.errors import DataError
from kfac_lab.problems import cache, sources
from kfac_lab.problems.images import autoencoding
from kfac_lab.problems.shared import shared

__all__ = ["mnist", "mnist_arrays", "mnist_data"]

ENCODER = (784, 1000, 500, 250, 30)
DATA_SEED = 1998  # of the one permutation of the training images

_FILES = {  # idx file, shape, SHA-256 of its values without the header
    "train_images": (
        "train-images-idx3-ubyte",
        (60_000, 28, 28),
        "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    ),
    "train_labels": (
        "train-labels-idx1-ubyte",
        (60_000,),
        "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    ),
    "test_images": (
        "t10k-images-idx3-ubyte",
        (10_000, 28, 28),
        "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    ),
    "test_labels": (
        "t10k-labels-idx1-ubyte",
        (10_000,),
        "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    ),
}
_LAYOUT = {name: ("uint8", shape) for name, (_, shape, _) in _FILES.items()}


def mnist(seed: int = 0, device: str | torch.device = "cpu") -> Problem:
    """The MNIST autoencoder 784-1000-500-250-30-250-500-1000-784 (section 13).

    Args:
        seed: of the sparse initialisation only.
        device: where model and data live.

    Raises:
        DataError: MNIST is neither in ``KFAC_LAB_DATA`` nor to be fetched, or is damaged.
    """
    train, test = shared("mnist", device, mnist_data)
    return autoencoding("mnist", "MNIST", ENCODER, (train, test), seed)


def mnist_data() -> tuple[Tensor, Tensor]:
    """Training ``[60000, 784]`` and test ``[10000, 784]`` images, float32, pixels / 255, CPU.

    The training images are in the order of :func:`mnist_arrays`.
    """
    train, _, test, _ = mnist_arrays()
    return train.flatten(1).float().div_(255), test.flatten(1).float().div_(255)


def mnist_arrays() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, training labels, test images, test labels: all uint8, on the CPU.

    Images are ``[N, 28, 28]``. The training cases are permuted once, by a fixed seed
    (section 13); the test cases keep the order of the file.
    """
    arrays = _read_folder() or _fetch_once()
    train_images, train_labels, test_images, test_labels = (
        torch.from_numpy(arrays[name]) for name in _FILES
    )
    order = torch.randperm(len(train_images), generator=torch.Generator().manual_seed(DATA_SEED))
    return train_images[order], train_labels[order], test_images, test_labels


def _read_folder() -> cache.Arrays | None:
    """The arrays from ``KFAC_LAB_DATA``; None if any of the four files is not there."""
    paths: dict[str, Path] = {}
    for name, (stem, _, _) in _FILES.items():
        raw = f"MNIST/raw/{stem}"  # as torchvision lays them out
        path = sources.find([f"{stem}.gz", stem, f"{raw}.gz", raw])
        if path is None:
            return None
        paths[name] = path
    return {name: _read_idx(path, name) for name, path in paths.items()}


def _read_idx(path: Path, name: str) -> np.ndarray:
    """One idx file, checked. The header is 0, 0, 8 (uint8), the rank, and the sizes, big-endian."""
    _, shape, digest = _FILES[name]
    try:
        size = 4 + 4 * len(shape) + math.prod(shape)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read: {error}; replace it with an undamaged copy"
        ) from error
    header = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
    if not content.startswith(header):
        raise DataError(f"{path} has another header; replace it with an undamaged copy")
    values = np.array(bytearray(content[len(header) :]), dtype=np.uint8)
    sources.check(values, digest, str(path))
    return values.reshape(shape)


def _fetch_once() -> cache.Arrays:
    """The arrays through scikit-learn; kept in the cache, since its parser is slow."""
    known = {name: digest for name, (_, _, digest) in _FILES.items()}
    return cache.cached("mnist", "mnist_784 version 1", _LAYOUT, _fetch, known)


def _fetch() -> cache.Arrays:
    """The arrays from OpenML's ``mnist_784``, whose rows are the training, then the test cases."""
    try:
        from sklearn.datasets import fetch_openml

        parser = "pandas" if importlib.util.find_spec("pandas") else "liac-arff"
        fetched = fetch_openml("mnist_784", version=1, as_frame=False, parser=parser, n_retries=1)
    except Exception as error:  # no scikit-learn, no network, a broken download: one sentence
        raise _missing(error) from error
    images = np.asarray(fetched.data).astype(np.uint8).reshape(-1, 28, 28)
    labels = np.asarray(fetched.target).astype(np.uint8)
    split = len(images) - 10_000
    arrays = {
        "train_images": images[:split],
        "train_labels": labels[:split],
        "test_images": images[split:],
        "test_labels": labels[split:],
    }
    for name, (_, _, digest) in _FILES.items():
        sources.check(arrays[name], digest, f"{name} of OpenML's mnist_784")
    return arrays


def _missing(reason: Exception) -> DataError:
    files = "train-images-idx3-ubyte.gz and its three companions"
    return sources.missing("MNIST", files, reason)
