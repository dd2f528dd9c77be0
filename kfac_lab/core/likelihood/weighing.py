"""A likelihood with weights on its predictions, and a likelihood on one batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.cases import Weighed, labels
from kfac_lab.core.likelihood.protocol import (
    Likelihood,
    is_examined,
    is_residual,
    is_weighted,
)
from kfac_lab.core.likelihood.weights import Weight, root, shaped, times, weight_flaws
from kfac_lab.core.program.stepwise import unusual
from kfac_lab.errors import DataError

__all__ = ["Criterion", "Given"]


def _both(a: Weight, b: Weight) -> Weight:
    if a is None:
        return b
    return a if b is None else a * b


@dataclass(frozen=True, eq=False)
class Given:
    """A likelihood on some cases whose targets are known: what an estimator is handed.

    Every prediction has its weight w: F_R is w times that of ``likelihood``, B and sampled
    gradients are √w times its. The shapes are those of ``Likelihood``.
    """

    likelihood: Likelihood  # with what depends on targets
    bare: Likelihood  # its Fisher, at weight 1
    weight: Weight  # w, times the cases' own
    cases: Weight = None  # the cases' own weights, shaped to the outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found = self.likelihood.loss(outputs, targets)
        return times(found, self.cases.reshape(-1) if isinstance(self.cases, Tensor) else None)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return times(self.likelihood.gradient(outputs, targets), self.cases)

    def label_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of ``Weighted``."""
        if is_weighted(self.likelihood):
            found = self.likelihood.label_gradient(outputs, targets)
        else:
            found = self.likelihood.gradient(outputs, targets)
        return times(found, root(self.cases))

    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        return times(self.bare.sampled_gradient(outputs, uniforms), root(self.weight))

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        return self.bare.factor_transposed(outputs, times(tangents, root(self.weight)))

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        return times(self.bare.fisher(outputs, tangents), self.weight)

    def factor_columns(self, outputs: Tensor) -> int:
        return self.bare.factor_columns(outputs)

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        return times(self.bare.factor_column(outputs, column), root(self.weight))

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found = self.likelihood.error(outputs, targets)
        return times(found, self.cases.reshape(-1) if isinstance(self.cases, Tensor) else None)

    def mean(self, outputs: Tensor) -> Tensor:
        return self.likelihood.mean(outputs)


class Criterion:
    """A likelihood on the targets of one batch: h, ∇h and F of the loss as its owner means it.

    Args:
        likelihood: of the model's outputs.
        targets: of the whole batch, this process's share; None where nobody knows them.
        cases: how many cases the batch has, this process's share.
        processes: how many processes share it equally.
        seen: the targets were examined before, as a Problem's tensors are; where reads are free
            nobody looks again.
        mean: averages tensors over processes, in place, whatever their shapes.

    ``loss`` and the rest take rows of the batch, with their targets; the mean of ``loss`` over the
    batch is h. A likelihood that is not ``Weighted`` is passed through, with not one more
    operation.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        targets: Any,
        cases: int,
        processes: int = 1,
        mean: Callable[[list[Tensor]], Any] | None = None,
        seen: bool = False,
    ) -> None:
        self._seen = seen
        known = labels(targets)
        self._cases = cases * processes
        self._totals: list[Tensor] | None = None
        if is_weighted(likelihood) and known is not None:
            totals = list(likelihood.totals(known))
            if totals and processes > 1 and mean is not None:
                mean(totals)
                totals = [t * processes for t in totals]
            _check_any(totals)
            self._totals = totals
        self.follow(likelihood)

    @classmethod
    def over(cls, likelihood: Likelihood, chunks: Iterable[Any], cases: int) -> Criterion:
        """Of a whole set whose targets come in ``chunks``, which are read only if they are asked.

        Raises:
            DataError: no target counts.
        """
        made = cls(likelihood, None, cases)
        if is_weighted(likelihood):
            totals: list[Tensor] = []
            for targets in chunks:
                new = likelihood.totals(labels(targets))
                totals = [a + b for a, b in zip(totals, new, strict=True)] if totals else list(new)
                if not totals:
                    break
            _check_any(totals)
            made._totals = totals
            made.follow(likelihood)
        return made

    def follow(self, likelihood: Likelihood) -> None:
        """Another object of the same likelihood: the outputs of a Joint may change their shapes."""
        self._followed = self.likelihood = likelihood
        if is_weighted(likelihood) and self._totals is not None:
            self.likelihood = likelihood.on_batch(self._cases, iter(self._totals))

    def of(self, likelihood: Likelihood) -> Criterion:
        """Itself, as of the ``likelihood`` that goes with the latest outputs."""
        if likelihood is not self._followed:
            self.follow(likelihood)
        return self

    @property
    def bare(self) -> Likelihood:
        """For ``Evaluation.likelihood``: its tangents have the roots of the weights in them."""
        return self.likelihood.bare if is_weighted(self.likelihood) else self.likelihood

    def given(self, outputs: Tensor, targets: Any) -> Likelihood:
        """The likelihood of some cases, ``outputs`` [n, ..., out]; their targets may be unknown."""
        own = targets.weights if isinstance(targets, Weighed) else None
        known = labels(targets)
        if not is_weighted(self.likelihood):
            if own is None:
                return self.likelihood
            alone = shaped(own, outputs)
            return Given(self.likelihood, self.likelihood, alone, alone)
        cases = shaped(own, outputs)
        weight = self.likelihood.weights(outputs, known)
        return Given(self.likelihood, self.likelihood.bare, _both(weight, cases), cases)

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """Per case ``[n]``; examines the targets.

        Raises:
            DataError: on the CPU, targets that are none. On an accelerator the loss is NaN then,
                which the step's flag tells.
        """
        found = self.likelihood.loss(outputs, labels(targets))
        if isinstance(targets, Weighed):
            found = found * targets.weights.to(found.dtype)
        bad = self.examined(outputs, targets)
        return found if bad is None else torch.where(bad, float("nan"), found)

    def gradient(self, outputs: Tensor, targets: Any) -> Tensor:
        """∇_z of each case's loss: the shape of ``outputs``."""
        found = self.likelihood.gradient(outputs, labels(targets))
        if isinstance(targets, Weighed):
            found = found * shaped(targets.weights, outputs)
        return found

    def gradient_and_error(self, outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """:meth:`gradient` and :meth:`error`, by one residual where the likelihood has one."""
        if isinstance(targets, Weighed) or not is_residual(self.likelihood):
            return self.gradient(outputs, targets), self.error(outputs, targets)
        found = self.likelihood.gradient(outputs, labels(targets))
        return found, self.likelihood.error_of(found)

    def error(self, outputs: Tensor, targets: Any) -> Tensor:
        """Per case ``[n]``, weighted as the loss is."""
        found = self.likelihood.error(outputs, labels(targets))
        if isinstance(targets, Weighed):
            found = found * targets.weights.to(found.dtype)
        return found

    def rooted(self, outputs: Tensor, targets: Any, tangents: Tensor) -> Tensor:
        """√w J v for J v ``[k, n, ...]``."""
        found = self.given(outputs, targets)
        return times(tangents, root(found.weight)) if isinstance(found, Given) else tangents

    def examined(self, outputs: Tensor, targets: Any) -> Tensor | None:
        """As of the function ``examined``: None, or a 0-dim flag."""
        if self._seen and _reads_are_free(outputs.device) and not isinstance(targets, Weighed):
            return None
        return examined(self.likelihood, outputs, targets)


def examined(likelihood: Likelihood, outputs: Tensor | None, targets: Any) -> Tensor | None:
    """Looks at targets: raises on the CPU; elsewhere a 0-dim flag, true where they are none.

    Raises:
        DataError: what is wrong with them, on the CPU.
    """
    known = labels(targets)
    if known is None:
        return None
    flaws = list(likelihood.flaws(outputs, known)) if is_examined(likelihood) else []
    if isinstance(targets, Weighed):
        flaws += weight_flaws(targets.weights)
    flaws = [f for f in flaws if not f.warns or _reads_are_free(f.bad.device)]
    if not flaws:
        return None
    if all(_reads_are_free(flaw.bad.device) for flaw in flaws):
        flags = [flaw.bad for flaw in flaws]
        # Inside a step reads go through the one door; without outputs this is no step.
        read = [float(flag) for flag in flags] if outputs is None else unusual(flags)
        for flaw, bad in zip(flaws, read, strict=True):
            if bad and flaw.warns:
                warnings.warn(flaw.says(), stacklevel=2)
            elif bad:
                raise DataError(flaw.says())
        return None
    return torch.stack([flaw.bad.reshape(()) for flaw in flaws]).any()


def _reads_are_free(device: torch.device) -> bool:
    return device.type == "cpu"


def _check_any(totals: Sequence[Tensor]) -> None:
    free = [total for total in totals if _reads_are_free(total.device)]
    for total in linalg.host(free) if free else []:
        if not total > 0:
            raise DataError(
                "no target of the batch counts: all are ignored, or of classes of weight 0, and "
                "torch's mean over them is 0/0; leave such batches out"
            )
