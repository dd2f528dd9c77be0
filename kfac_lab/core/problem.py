"""What is minimised: a model, a likelihood, cases, and the ℓ2 term (section 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kfac_lab.core import seeds
from kfac_lab.core.likelihood import Likelihood, resolve
from kfac_lab.errors import RecipeError

__all__ = ["Drawn", "Problem", "Split"]


@dataclass(frozen=True)
class Split:
    """A set of cases: ``inputs`` ``[n, ...]`` and ``targets`` ``[n, ...]``."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return self.inputs.shape[0]


class Drawn(NamedTuple):
    """A batch. ``order`` is None where its leading rows are random already; else a permutation
    whose leading entries say which rows serve as S1 and S2."""

    inputs: Tensor
    targets: Tensor
    order: Tensor | None


class Problem:
    """h(θ): the mean loss of ``model`` under ``likelihood`` over the cases, plus ½·l2·‖θ‖².

    Args:
        model: the network; its outputs are the parameter z of the likelihood (logits). It is
            trained in place.
        likelihood: ``"gaussian"``, ``"gaussian(scale='full')"``, ``"bernoulli"``,
            ``"categorical"``, or an object with the methods of ``Likelihood``.
        inputs: the training inputs ``[n, ...]``.
        targets: the training targets ``[n, ...]``.
        data: in place of ``inputs`` and ``targets``, a map-style dataset (``len`` and indexing
            give one case) or a callable ``(step, size) -> (inputs, targets)``.
        l2: η of the term ½η‖θ‖², biases included.
        test: held-out cases, a Split or a pair of tensors.
        name: a short name for files and tables.
        title: a line for figures.

    Raises:
        RecipeError: inputs and targets disagree, neither or both sources are given, or η < 0.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        likelihood: str | Likelihood,
        inputs: Tensor | None = None,
        targets: Tensor | None = None,
        data: Any = None,
        l2: float = 0.0,  # η
        test: Split | tuple[Tensor, Tensor] | None = None,
        name: str = "custom",
        title: str | None = None,
    ) -> None:
        if (inputs is None) != (targets is None):
            raise RecipeError("a problem takes inputs and targets together, or data in their place")
        if (inputs is None) == (data is None):
            raise RecipeError("a problem takes either inputs and targets, or data, not both")
        if inputs is not None and targets is not None and len(inputs) != len(targets):
            raise RecipeError(
                f"a problem's inputs and targets are cases one for one: {len(inputs)} inputs came "
                f"with {len(targets)} targets"
            )
        if not l2 >= 0:
            raise RecipeError(f"l2={l2} must be at least 0 (η, section 5.7)")
        self.model = model
        self.likelihood: Likelihood = resolve(likelihood)
        self.inputs = inputs
        self.targets = targets
        self.data = data
        self.l2 = float(l2)
        self.test = Split(*test) if isinstance(test, tuple) else test
        self.name = name
        self.title = title or name

    def __repr__(self) -> str:
        return f"Problem({self.name!r}, {self.available or 'unbounded'} cases, l2={self.l2})"

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        for parameter in self.model.parameters():
            return parameter.device
        return torch.device("cpu")

    @property
    def available(self) -> int | None:
        """|S|, or None where cases come from a callable."""
        if self.inputs is not None:
            return len(self.inputs)
        return len(self.data) if hasattr(self.data, "__len__") else None

    def draw(self, step: int, size: int, seed: int) -> Drawn:
        """The batch of a step: the first ``size`` of a permutation seeded by (seed, step)."""
        available = self.available
        if available is None:
            source: Callable[[int, int], tuple[Tensor, Tensor]] = self.data
            inputs, targets = source(step, size)
            order = seeds.permutation(seed, "rows", step, len(inputs))
            return Drawn(inputs.to(self.device), targets.to(self.device), order)
        chosen = seeds.permutation(seed, "batch", step, available)[: min(size, available)]
        if self.inputs is not None and self.targets is not None:
            chosen_there = chosen.to(self.inputs.device)
            inputs = self.inputs.index_select(0, chosen_there)
            targets = self.targets.index_select(0, chosen.to(self.targets.device))
        else:
            inputs, targets = self._collate(chosen.tolist())
        return Drawn(inputs.to(self.device), targets.to(self.device), None)

    def split(self, name: str) -> tuple[int, Callable[[int, int], tuple[Tensor, Tensor]]]:
        """The number of cases of ``"train"`` or ``"test"``, and a reader of rows [start, stop).

        Raises:
            RecipeError: there is no such set, with what to give.
        """
        if name not in ("train", "test"):
            raise RecipeError(f"split {name!r} is not known: use 'train' or 'test'")
        if name == "test":
            if self.test is None:
                raise RecipeError(f"problem {self.name!r} has no test cases: give test=Split(…)")
            test = self.test
            return len(test), lambda a, b: self._there(test.inputs[a:b], test.targets[a:b])
        if self.inputs is not None and self.targets is not None:
            inputs, targets = self.inputs, self.targets
            return len(inputs), lambda a, b: self._there(inputs[a:b], targets[a:b])
        if self.available is None:
            raise RecipeError(
                f"problem {self.name!r} draws its cases from a callable, which has no train set "
                "to evaluate: give test=Split(…) and evaluate('test')"
            )
        return self.available, lambda a, b: self._there(*self._collate(range(a, b)))

    def _there(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs.to(self.device), targets.to(self.device)

    def _collate(self, rows: Any) -> tuple[Tensor, Tensor]:
        from torch.utils.data import default_collate

        inputs, targets = default_collate([self.data[int(i)] for i in rows])
        return inputs, targets
