"""The built-in problems: data, network, likelihood and initialisation under one name each.

``PROBLEMS`` is what gets registered. Its functions load their module, and with it PyTorch and the
data, when they are called and not before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

from kfac_lab.hooks import hookimpl

if TYPE_CHECKING:
    import torch

    from kfac_lab.core.problem import Problem

__all__ = ["PROBLEMS", "LazyProblem", "ProblemEntry"]


class LazyProblem:
    """A problem's function that imports its module at the first call."""

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.__name__ = name

    def __call__(self, seed: int = 0, device: str | torch.device = "cpu") -> Problem:
        """The problem, initialised by ``seed``, with model and data on ``device``."""
        function = getattr(importlib.import_module(self.module), self.__name__)
        problem: Problem = function(seed=seed, device=device)
        return problem

    def __repr__(self) -> str:
        return f"{self.module}.{self.__name__}"


class ProblemEntry(NamedTuple):
    """One line of the table: what to call, what it is, where it is described."""

    function: LazyProblem
    summary: str
    reference: str


def _entry(module: str, name: str, summary: str, reference: str) -> tuple[str, ProblemEntry]:
    return name, ProblemEntry(LazyProblem(f"{__name__}.{module}", name), summary, reference)


PROBLEMS: dict[str, ProblemEntry] = dict(
    [
        _entry(
            "curves",
            "curves",
            "CURVES-like autoencoder, 784-400-200-100-50-25-6, generated images, 20,000 / 10,000",
            "section 13",
        ),
        _entry(
            "mnist",
            "mnist",
            "MNIST autoencoder, 784-1000-500-250-30, 60,000 / 10,000",
            "section 13",
        ),
        _entry(
            "faces",
            "faces",
            "FACES autoencoder, 625-2000-1000-500-30, patches of Olivetti faces, 103,500 / 41,400",
            "section 13",
        ),
        _entry(
            "digits",
            "digits",
            "small autoencoder, 64-32-16-4, 8x8 digits in the package, 1,437 / 360",
            "section 13",
        ),
        _entry(
            "digits",
            "digits_classifier",
            "small tanh classifier, 64-32-16-10, 8x8 digits in the package, 1,437 / 360",
            "section 3",
        ),
        _entry(
            "digits",
            "digits_small",
            "tanh classifier, 64-20-20-20-20-20-10, 8x8 digits in the package, 1,437 / 360",
            "section 3",
        ),
        _entry(
            "mnist_small",
            "mnist_small",
            "tanh classifier, 256-20-20-20-20-20-10, MNIST at 16x16, 1,000 / 10,000",
            "section 3",
        ),
    ]
)
"""Name to (function, summary, reference)."""


@hookimpl
def kfac_register_problems(register: Any) -> None:
    """The problems in the box."""
    for name, (function, summary, reference) in PROBLEMS.items():
        register(name, function, summary=summary, reference=reference)


Entry = ProblemEntry  # its former name
