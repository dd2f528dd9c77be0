"""FACES: 25 x 25 patches of the Olivetti faces and the autoencoder on them (section 13).

The patches are made as described for the set of Hinton & Salakhutdinov (2006): each of the 400
photographs is rotated by -90, -86, …, 90 degrees and scaled by 1.4, 1.45, …, 1.8, which gives 414
patches of each and 165,600 in all. What is not published is settled by calibration: bilinear
sampling about the centre of the image at points 2.25 pixels of the enlarged image apart.
Principal component analysis with 30 components, fitted on the training patches, then has a test
error of 136, where the 2006 paper prints 135.

The photographs are AT&T Laboratories Cambridge's (Samaria & Harter 1994) and are not shipped: they
are read from ``olivetti_faces.npz`` in ``KFAC_LAB_DATA``, else fetched through scikit-learn.
"""

from __future__ import annotations

import math
import zipfile
import zlib

import numpy as np
import torch
from torch import Tensor, nn

from kfac_lab.core.problem import Problem
from kfac_lab.errors import DataError
from kfac_lab.problems import sources
from kfac_lab.problems.cache import Arrays, cached
from kfac_lab.problems.images import autoencoding
from kfac_lab.problems.shared import shared

__all__ = ["cut_patches", "faces", "faces_data"]

ENCODER = (625, 2000, 1000, 500, 30)

SIDE = 25  # pixels of a patch
SPACING = 2.25  # between neighbouring pixels of a patch, in pixels of the enlarged photograph
ANGLES = range(-90, 91, 4)  # degrees, 46 of them
SCALES = tuple((140 + 5 * step) / 100 for step in range(9))  # 1.4 … 1.8
PER_PERSON = 10 * len(ANGLES) * len(SCALES)  # 4,140
TRAIN = 25 * PER_PERSON  # the first 25 of 40 people, 103,500
TEST = 10 * PER_PERSON  # the last 10, 41,400; the 5 in between are unused
VERSION = 1

_UNREADABLE = (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
_DIGEST = "a3f75007cc103363b61a63e06bec8ea4846407682ef6e7c9ae1eb9c1bd0e8a00"
_LAYOUT = {
    "patches": ("uint8", (TRAIN + TEST, SIDE * SIDE)),
    "mean": ("float64", (SIDE * SIDE,)),
    "deviation": ("float64", ()),
}


def faces(seed: int = 0, device: str | torch.device = "cpu") -> Problem:
    """The FACES autoencoder 625-2000-1000-500-30-500-1000-2000-625 (section 13).

    Linear outputs and the squared error in the paper's own, "full" scale, hence l2 = 1e-5.

    Args:
        seed: of the sparse initialisation only.
        device: where model and data live.

    Raises:
        DataError: the photographs are neither in ``KFAC_LAB_DATA`` nor to be fetched, or are
            damaged.
    """
    train, test = shared("faces", device, faces_data)
    return autoencoding("faces", "FACES", ENCODER, (train, test), seed, "gaussian(scale='full')")


def faces_data() -> tuple[Tensor, Tensor]:
    """Training ``[103500, 625]`` and test ``[41400, 625]`` patches, float32, on the CPU.

    Over the whole data set of 165,600 every pixel has mean 0, and one divisor for all makes the
    average variance of a pixel 1. The training set alone, being other people, is off by up to
    0.21 in a pixel's mean and has an average variance of 0.946. Patches are kept in whole grey
    levels, which adds 0.04 to the squared error of a patch at most.
    """
    recipe = f"{VERSION} {SIDE} {SPACING} {ANGLES} {SCALES} {TRAIN} {TEST} {_DIGEST}"
    arrays = cached("faces", recipe, _LAYOUT, _generate)
    mean = torch.from_numpy(arrays["mean"]).float()
    pixels = torch.from_numpy(arrays["patches"]).float()
    pixels.sub_(mean).div_(float(arrays["deviation"]))
    return pixels[:TRAIN], pixels[TRAIN:]


def cut_patches(images: Tensor) -> Tensor:
    """All rotated and scaled patches of each image.

    Args:
        images: ``[N, 64, 64]`` uint8.

    Returns:
        ``[N, 414, 25, 25]`` uint8, angles outside, scales inside.
    """
    degrees = torch.tensor(list(ANGLES), dtype=torch.float64)
    cosine, sine = (f(degrees * (math.pi / 180)).view(-1, 1, 1, 1) for f in (torch.cos, torch.sin))
    scale = torch.tensor(SCALES, dtype=torch.float64).view(1, -1, 1, 1)
    offset = (torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2) * SPACING
    down, right = offset[:, None], offset[None, :]
    x = (cosine * right - sine * down) / scale  # pixels from the centre, [46, 9, 25, 25]
    y = (sine * right + cosine * down) / scale
    # grid_sample's own unit: the image spans [-1, 1]. The photographs are its channels, so that
    # the weights of each point serve all of them.
    grid = torch.stack([x, y], dim=-1).mul_(2 / images.shape[-1]).float().view(1, -1, SIDE, 2)
    patches = torch.empty(len(images), x.shape[0] * x.shape[1], SIDE, SIDE, dtype=torch.uint8)
    for start in range(0, len(images), _CHUNK):
        some = images[start : start + _CHUNK].float()[None]
        sampled = nn.functional.grid_sample(some, grid, mode="bilinear", align_corners=False)
        patches[start : start + _CHUNK] = sampled.round_().view(-1, *patches.shape[1:])
    return patches


_CHUNK = 20  # photographs at a time, about 40 MB


def _generate() -> Arrays:
    """Training and test patches in grey levels, and the mean and deviation of all 165,600."""
    patches = cut_patches(torch.from_numpy(_photographs())).view(-1, SIDE * SIDE)
    total = torch.zeros(SIDE * SIDE, dtype=torch.int64)  # whole numbers: no rounding, any order
    squares = 0
    for rows in patches.split(PER_PERSON):
        values = rows.int()
        total += values.sum(0)
        squares += int((values * values).sum())
    mean = total.double() / len(patches)
    variance = squares / patches.numel() - float((mean * mean).mean())
    return {
        "patches": torch.cat([patches[:TRAIN], patches[-TEST:]]).numpy(),
        "mean": mean.numpy(),
        "deviation": np.array(math.sqrt(variance)),
    }


def _photographs() -> np.ndarray:
    """The 400 photographs ``[400, 64, 64]``, uint8 in 0..242, ten of each person in turn."""
    path = sources.find(["olivetti_faces.npz"])
    if path is None:
        images, what = _fetch(), "what scikit-learn fetched as the Olivetti faces"
    else:
        what = str(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                images = file["images"]
        except _UNREADABLE as error:
            raise DataError(
                f"{path} cannot be read: {error}; replace it with an undamaged copy"
            ) from error
    sources.check(images, _DIGEST, what)
    return images


def _fetch() -> np.ndarray:
    """The photographs through scikit-learn, which divides the grey levels by their maximum, 242."""
    try:
        from sklearn.datasets import fetch_olivetti_faces

        fetched = fetch_olivetti_faces(shuffle=False, n_retries=1)
    except Exception as error:  # no scikit-learn, no network, a broken download: one sentence
        raise _missing(error) from error
    return np.rint(np.asarray(fetched.images, np.float64) * 242).astype(np.uint8)


def _missing(reason: Exception) -> DataError:
    return sources.missing("The Olivetti face set", "olivetti_faces.npz", reason)
