"""A problem made of images: to encode and decode them, or to tell their classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kfac_lab.core.problem import Problem, Split
from kfac_lab.problems.initialise import dense_, sparse_
from kfac_lab.problems.networks import autoencoder, classifier

__all__ = ["autoencoding", "classifying"]

L2 = 1e-5  # η, of all of them (section 13)


def autoencoding(
    name: str,
    title: str,
    encoder: Sequence[int],
    images: tuple[Tensor, Tensor],
    seed: int,
    likelihood: str = "bernoulli",
) -> Problem:
    """An autoencoder of ``images``, training and test ``[N, encoder[0]]``, on their device."""
    train, test = images
    return Problem(
        model=sparse_(autoencoder(encoder, train.device), seed),
        likelihood=likelihood,
        inputs=train,
        targets=train,
        l2=L2,
        test=Split(test, test),
        name=name,
        title=title,
    )


def classifying(
    name: str,
    title: str,
    widths: Sequence[int],
    labelled: tuple[Tensor, Tensor, Tensor, Tensor],
    seed: int,
) -> Problem:
    """A classifier of images: training images and labels, and those of the test."""
    train, train_labels, test, test_labels = labelled
    return Problem(
        model=dense_(classifier(widths, train.device), seed),
        likelihood="categorical",
        inputs=train,
        targets=train_labels,
        l2=L2,
        test=Split(test, test_labels),
        name=name,
        title=title,
    )
