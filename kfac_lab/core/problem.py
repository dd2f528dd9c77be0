"""What is minimised: a model, a likelihood, cases, and the ℓ2 term (section 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kfac_lab.core import seeds
from kfac_lab.core.ahead import Ahead
from kfac_lab.core.cases import Unlabelled, Weighed, as_cases, call_arguments, tensors_of
from kfac_lab.core.likelihood import Joint, Likelihood, Outputs, Selector, examined, resolve
from kfac_lab.errors import DataError, RecipeError

__all__ = ["Drawn", "Problem", "Split"]


@dataclass(frozen=True)
class Split:
    """A set of cases: ``inputs`` ``[n, ...]`` and ``targets`` ``[n, ...]``.

    Either may be a tuple, a dict or a dataclass of such tensors, kept as ``core.cases.Cases``.

    Raises:
        DataError: these are not tensors of the same cases, or there are none.
    """

    inputs: Any
    targets: Any

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            value = as_cases(getattr(self, name), name)
            if isinstance(value, Tensor) and not value.dim():
                raise DataError(f"{name} must be a tensor of cases [n, ...], not a single number")
            if any(t.layout != torch.strided for t in tensors_of(value)):
                raise DataError(f"{name} must be dense, not sparse: give {name}.to_dense()")
            object.__setattr__(self, name, value)
        if len(self.inputs) != len(self.targets):
            raise DataError(
                f"inputs and targets are cases one for one: {len(self.inputs)} inputs came with "
                f"{len(self.targets)} targets"
            )
        if not len(self.inputs):
            raise DataError("inputs and targets hold no case; give at least one")

    def __len__(self) -> int:
        return self.inputs.shape[0]


class Drawn(NamedTuple):
    """A batch. ``order`` is None where its leading rows are random already; else a permutation
    whose leading entries say which rows serve as S1 and S2."""

    inputs: Any  # a tensor, or Cases
    targets: Any  # likewise; Weighed where the cases have weights
    order: Tensor | None


class Problem:
    """h(θ): the mean loss of ``model`` under ``likelihood`` over the cases, plus ½·l2·‖θ‖².

    Args:
        model: the network; its outputs are the parameter z of the likelihood (logits). It is
            trained in place.
        likelihood: ``"gaussian"``, ``"gaussian(scale='full')"``, ``"bernoulli"``,
            ``"categorical"``, ``"poisson"``, ``"heteroscedastic_gaussian"``, an object with the
            methods of ``Likelihood``, a ``Joint`` of several, or a torch loss such as
            ``nn.CrossEntropyLoss()``: h is then that loss on the batch, its weights and its mean
            included.
        inputs: the training inputs ``[n, ...]``, or a tuple (the model's arguments) or dict (its
            named arguments) of such tensors.
        targets: the training targets ``[n, ...]``, or a tuple or dict of them.
        data: in place of ``inputs`` and ``targets``, a map-style dataset (``len`` and indexing
            give one case) or a callable ``(step, size) -> (inputs, targets)``; either may give
            weights as a third.
        weights: of the cases ``[n]``, at least 0; every case's loss is multiplied by its own, and h
            stays the mean over cases.
        outputs: which of the model's outputs the likelihood is of: a name (``"logits"``), a
            number, or a function of what the model gives.
        l2: η of the term ½η‖θ‖², biases included.
        test: held-out cases, a Split or a pair of tensors.
        name: a short name for files and tables.
        title: a line for figures.

    Raises:
        RecipeError: no module, no known likelihood, neither or both sources, or η < 0.
        DataError: inputs and targets disagree, there are none, or they are none of the likelihood.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        likelihood: str | Likelihood | nn.Module | Callable[..., Any],
        inputs: Any = None,
        targets: Any = None,
        data: Any = None,
        weights: Tensor | None = None,
        outputs: Selector = None,
        l2: float = 0.0,  # η
        test: Split | tuple[Any, Any] | None = None,
        name: str = "custom",
        title: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise RecipeError(f"model={model!r} must be an nn.Module, a network that was made")
        if (inputs is None) != (targets is None):
            raise RecipeError("a problem takes inputs and targets together, or data in their place")
        if (inputs is None) == (data is None):
            raise RecipeError("a problem takes either inputs and targets, or data, not both")
        given: Any = l2
        if not isinstance(given, Real) or not 0 <= float(given) < math.inf:
            raise RecipeError(f"l2={l2!r} must be at least 0 and finite (η, section 6)")
        self.model = model
        self.likelihood: Likelihood = resolve(likelihood)
        Outputs(self.likelihood, outputs)
        self.outputs = outputs
        if inputs is not None and targets is not None:
            cases = Split(inputs, targets)
            inputs, targets = cases.inputs, cases.targets
            if not targets.is_meta:
                raise_if_bad(self.likelihood, targets)
        else:
            _check_source(data)
        self.inputs = inputs
        self.targets = targets
        self.data = data
        self.weights = None if weights is None else _weights(weights, inputs)
        self.l2 = float(l2)
        if isinstance(test, (tuple, list)) and len(test) == 2:
            test = Split(*test)
        if not isinstance(test, (Split, type(None))):
            raise RecipeError("test must be a Split or a pair: test=(inputs, targets)")
        self.test = test
        self.name = name
        self.title = title or name
        self._ahead = Ahead()

    def __repr__(self) -> str:
        return f"Problem({self.name!r}, {self.available or 'unbounded'} cases, l2={self.l2})"

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        first = _first_parameter(self.model)
        return torch.device("cpu") if first is None else first.device

    @property
    def available(self) -> int | None:
        """``|S|``, or None where cases come from a callable."""
        if self.inputs is not None:
            return len(self.inputs)
        return len(self.data) if hasattr(self.data, "__len__") else None

    def draw(self, step: int, size: int, seed: int, whole: bool = False) -> Drawn:
        """The batch of a step: the first ``size`` of a permutation seeded by (seed, step).

        ``whole``: the model takes all cases and no fewer, as that of a graph does, whose nodes have
        their places; a batch of all comes in the order that was given.

        Raises:
            DataError: a dataset or callable that gives no pair of inputs and targets.
        """
        available = self.available
        device = self.device
        if available is None:
            source: Callable[[int, int], tuple[Any, ...]] = self.data
            inputs, targets = _pair(source(step, size), "the callable")
            order = seeds.permutation(seed, "rows", step, len(inputs))
            return Drawn(inputs.to(device), targets.to(device), order)
        if whole and size >= available:
            chosen = torch.arange(available)
        else:
            # An accelerator is at work meanwhile: the next step's is drawn ahead.
            drawn_by = seeds if device.type == "cpu" else self._ahead
            chosen = drawn_by.permutation(seed, "batch", step, available)[: min(size, available)]
        if self.inputs is not None and self.targets is not None:
            inputs = self.inputs.index_select(0, _sent(chosen, self.inputs.device))
            every = self._labelled(self.targets)
            targets = every.index_select(0, _sent(chosen, every.device))
        else:
            inputs, targets = self._collate(chosen.tolist())
        return Drawn(inputs.to(device), targets.to(device), None)

    def _labelled(self, targets: Any) -> Any:
        """The training targets, with the cases' weights where they have any."""
        if self.weights is None:
            return targets
        return Weighed(targets, self.weights.to(targets.device))

    def called(self, inputs: Any) -> Any:
        """What the model gives for a batch of inputs: a tuple is its arguments, a dict its named
        arguments.
        """
        args, kwargs = call_arguments(inputs)
        return self.model(*args, **kwargs)

    def split(self, name: str) -> tuple[int, Callable[[int, int], tuple[Any, Any]]]:
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
            inputs, targets = self.inputs, self._labelled(self.targets)
            return len(inputs), lambda a, b: self._there(inputs[a:b], targets[a:b])
        if self.available is None:
            raise RecipeError(
                f"problem {self.name!r} draws its cases from a callable, which has no train set "
                "to evaluate: give test=Split(…) and evaluate('test')"
            )
        return self.available, lambda a, b: self._there(*self._collate(range(a, b)))

    def _there(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        return inputs.to(self.device), targets.to(self.device)

    def _collate(self, rows: Any) -> tuple[Any, Any]:
        from torch.utils.data import default_collate

        return _pair(default_collate([self.data[int(i)] for i in rows]), "the data set")


def _first_parameter(module: nn.Module) -> Tensor | None:
    """The first of ``parameters()``, which makes names and sets on its way: every step asks."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    found = (_first_parameter(child) for child in module._modules.values() if child is not None)
    return next((parameter for parameter in found if parameter is not None), None)


def _check_source(data: Any) -> None:
    """``data`` is a callable, or a map-style dataset with at least one case."""
    if callable(data):
        return
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        hint = "; give loader.dataset" if hasattr(data, "dataset") else ""
        raise RecipeError(
            f"data={type(data).__name__} must be a map-style dataset (len and indexing) or a "
            f"callable (step, size) -> (inputs, targets){hint}"
        )
    if not len(data):
        raise DataError("data holds no case; give at least one")


def raise_if_bad(likelihood: Likelihood, targets: Any) -> None:
    """Looks at targets on the host, wherever they are.

    Raises:
        DataError: they are none of the likelihood's, as far as targets alone tell.
    """
    flag = examined(likelihood, None, targets)
    if flag is not None and bool(flag):
        examined(likelihood, None, targets.to("cpu"))


def _weights(weights: Any, cases: Any) -> Tensor:
    """Weights of cases ``[n]``."""
    if not isinstance(weights, Tensor) or not weights.is_floating_point() or weights.dim() != 1:
        what = (
            f"{tuple(weights.shape)} of {weights.dtype}"
            if isinstance(weights, Tensor)
            else type(weights).__name__
        )
        raise DataError(f"weights are one real number for each case, a tensor [n], not {what}")
    if cases is not None and len(weights) != len(cases):
        raise DataError(f"{len(weights)} weights came with {len(cases)} cases: give one for each")
    return weights.detach()


def weighed(targets: Any, weights: Any, likelihood: Likelihood | None = None) -> Any:
    """Targets with the weights of their cases, which may be None, or a dict by a Joint's heads.

    Raises:
        DataError: weights that are not a real number for each case, or of heads that there are not.
    """
    if weights is None:
        return targets
    if isinstance(weights, Mapping):
        if not isinstance(likelihood, Joint):
            raise DataError(
                f"weights are a dict of {', '.join(map(str, weights))}, which is for the heads of "
                "a Joint: give one tensor [n]"
            )
        if isinstance(targets, Unlabelled):
            raise DataError("weights by head come with the targets of the heads: give them too")
        return likelihood.weighed(targets, weights)
    cases = None if isinstance(targets, Unlabelled) else targets
    return Weighed(targets, _weights(weights, cases))


def _pair(found: Any, who: str) -> tuple[Any, Any]:
    """What a source of cases gave, as inputs and targets."""
    if not isinstance(found, (tuple, list)) or len(found) not in (2, 3):
        raise DataError(
            f"{who} in data gives a {type(found).__name__}, and has to give a pair: inputs, targets"
        )
    cases = Split(*found[:2])
    return cases.inputs, weighed(cases.targets, found[2] if len(found) == 3 else None)


def _sent(rows: Tensor, device: torch.device) -> Tensor:
    """Row numbers drawn on the CPU, on ``device`` without waiting for the copy."""
    if device.type != "cuda":
        return rows.to(device)
    return rows.pin_memory().to(device, non_blocking=True)
