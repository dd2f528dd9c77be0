"""One exhibit of the zoo, and data that several share."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Zoo:
    """One exhibit.

    Args:
        model: outputs are one tensor.
        inputs, targets: a training set.
        likelihood: what the engine is given.
        kind: the same for the oracle, as a key of its own.
        whole: the cases are coupled: a case's outputs come out of a pass over the whole batch.
        cases: how many cases the oracle looks at.
    """

    model: nn.Module
    inputs: Tensor
    targets: Any
    likelihood: Any = "categorical"
    kind: str = "categorical"
    whole: bool = False
    cases: int = 3
    batch: int = 64

    def flatten(self):
        """From here on the model gives one tensor, whatever it has for heads."""
        if hasattr(self.model, "flat"):
            self.model.flat = True


def tokens(cases=512, length=8, vocabulary=12, seed=0):
    """Sequences of which each token follows from the two before it."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, vocabulary, (cases, length + 1), generator=g)
    for t in range(2, length + 1):
        x[:, t] = (x[:, t - 1] + x[:, t - 2]) % vocabulary
    return x


def pictures(cases=512, channels=1, size=8, classes=4, seed=0):
    """A bright quarter says the class."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(cases, channels, size, size, generator=g) * 0.5
    y = torch.randint(0, classes, (cases,), generator=g)
    quarter = torch.arange(size) // (size // 2)  # of a row or a column: 0 or 1
    bright = (quarter[:, None] == (y // 2 % 2)[:, None, None]) & (quarter == (y % 2)[:, None, None])
    return x + bright[:, None], y
