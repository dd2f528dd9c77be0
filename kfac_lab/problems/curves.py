"""CURVES-like: images of one smooth curve through three random points, and its autoencoder.

The original CURVES images (section 13) are not available; these come from a generator of our
own, so errors on them are not comparable with published ones. What is known of the original is
kept: 20,000 training and 10,000 test images of 28 x 28, values in [0, 1], three random points in
the plane (six numbers, hence the code of 6). Its curve type, pen and range of points were never
published. Here the curve is the quadratic through three points drawn uniformly from the square
[0.2, 0.8] of the side, at t = 0, 1/2 and 1, and the pen is a Gaussian profile: a pixel at distance
d from the curve is exp(-d²/2s²). The width s = 1.22 pixels is chosen so that principal component
analysis with 18 components, fitted on the training set, has the test error that Hinton &
Salakhutdinov (2006) print for the original, 5.90: here it is 5.92.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kfac_lab.core.problem import Problem
from kfac_lab.problems.cache import Arrays, cached
from kfac_lab.problems.images import autoencoding
from kfac_lab.problems.shared import shared

__all__ = ["curves", "curves_data", "draw_curves"]

ENCODER = (784, 400, 200, 100, 50, 25, 6)

TRAIN, TEST = 20_000, 10_000
SIDE = 28  # pixels
LOW, HIGH = 0.2, 0.8  # the square of the points, in units of the side
PEN = 1.22  # s, pixels
DATA_SEED = 2006
VERSION = 1

_LAYOUT = {"images": ("uint8", (TRAIN + TEST, SIDE * SIDE))}


def curves(seed: int = 0, device: str | torch.device = "cpu") -> Problem:
    """The CURVES autoencoder 784-400-200-100-50-25-6-… (section 13) on CURVES-like images.

    Args:
        seed: of the sparse initialisation only; the images are always the same.
        device: where model and data live.
    """
    train, test = shared("curves", device, curves_data)
    return autoencoding("curves", "CURVES-like", ENCODER, (train, test), seed)


def curves_data() -> tuple[Tensor, Tensor]:
    """Training ``[20000, 784]`` and test ``[10000, 784]`` images, float32 in [0, 1], on the CPU.

    Every value is a multiple of 1/255, so none lies between 0 and 1/255: background is exactly 0
    and no denormal number slows the products down. Generated once, then read from the cache.
    """
    recipe = f"{VERSION} {TRAIN} {TEST} {SIDE} {LOW} {HIGH} {PEN} {DATA_SEED}"
    images = torch.from_numpy(cached("curves", recipe, _LAYOUT, _generate)["images"])
    pixels = images.float().div_(255)
    return pixels[:TRAIN], pixels[TRAIN:]


def draw_curves(points: Tensor, pen: float = PEN) -> Tensor:
    """Images of the quadratic curves through ``points``, with a Gaussian pen.

    Args:
        points: ``[N, 3, 2]``, (x, y) in units of the side: where the curve is at t = 0, 1/2, 1.
        pen: s, in pixels.

    Returns:
        ``[N, 28, 28]`` uint8, exp(-d²/2s²) in 255ths. The distance d is that to the nearest of 64
        points spread evenly over the curve's length, which costs at most 3 % of a pixel's ink (on
        the longest curves, 36 pixels).
    """
    nearest = torch.empty(len(points), SIDE, SIDE)
    pixel = torch.arange(SIDE, dtype=torch.float32)
    scratch = torch.empty(_CHUNK, SIDE, SIDE)
    for start in range(0, len(points), _CHUNK):
        samples = _spread(points[start : start + _CHUNK].double() * SIDE - 0.5).float()
        across = (pixel - samples[:, :, 0, None]) ** 2  # [64, n, 28]
        down = (pixel - samples[:, :, 1, None]) ** 2
        best = nearest[start : start + _CHUNK]
        best.fill_(torch.inf)
        squared = scratch[: len(best)]
        for k in range(_SAMPLES):
            torch.add(down[k, :, :, None], across[k, :, None, :], out=squared)
            torch.minimum(best, squared, out=best)
    ink = nearest.mul_(-0.5 / pen**2).exp_()
    return ink.mul_(255).round_().to(torch.uint8)


def _generate() -> Arrays:
    """The images of both sets, uint8: ``images`` ``[30000, 784]``, training first."""
    generator = torch.Generator().manual_seed(DATA_SEED)
    uniforms = torch.rand(TRAIN + TEST, 3, 2, generator=generator, dtype=torch.float64)
    images = draw_curves(LOW + (HIGH - LOW) * uniforms)
    return {"images": images.flatten(1).numpy()}


_CHUNK = 250  # images at a time: the working set stays in a processor's cache
_SAMPLES = 64
_TABLE = 128


def _spread(points: Tensor) -> Tensor:
    """Points evenly spread over the length of each curve: ``[n, 3, 2]`` to ``[64, n, 2]``."""
    first, middle, last = points[None].unbind(2)  # [1, n, 2]

    def curve(t: Tensor) -> Tensor:  # [T, n or 1] to [T, n, 2]
        t = t[..., None]
        return (
            first * (2 * (t - 0.5) * (t - 1))
            + middle * (4 * t * (1 - t))
            + last * (2 * t * (t - 0.5))
        )

    table = curve(torch.linspace(0, 1, _TABLE, dtype=points.dtype)[:, None])
    length = torch.zeros(len(points), _TABLE, dtype=points.dtype)  # up to each entry of the table
    torch.cumsum((table[1:] - table[:-1]).norm(dim=-1).T, dim=1, out=length[:, 1:])
    wanted = length[:, -1:] * torch.linspace(0, 1, _SAMPLES, dtype=points.dtype)
    upper = torch.searchsorted(length, wanted.contiguous()).clamp_(1, _TABLE - 1)
    below, above = length.gather(1, upper - 1), length.gather(1, upper)
    step = (above - below).clamp_min(1e-12)  # coincident points make curves of length 0
    t = (upper - 1 + (wanted - below) / step) / (_TABLE - 1)
    return curve(t.T)
