"""Several tensors of the same cases, cut, chosen and moved as one tensor is.

People's models take tuples and dicts of tensors, and their targets are such. The passes over a
batch only ever cut its leading dimension; so what they are given is a tensor, or one of these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor

from kfac_lab.core.trees import mapped, tensors
from kfac_lab.errors import DataError

__all__ = [
    "Arguments",
    "Cases",
    "HeadTargets",
    "Unlabelled",
    "Weighed",
    "as_cases",
    "bare",
    "call_arguments",
    "concatenated",
    "labels",
    "mapped",
    "tensors_of",
]

_Self = TypeVar("_Self", bound="_Cut")


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in order."""
    return [leaf for _, leaf in tensors(tree)]


class _Cut:
    """What may be done with cases: the part of a tensor's interface that passes use."""

    def _each(self: _Self, change: Callable[[Any], Any]) -> _Self:
        raise NotImplementedError

    def _first(self) -> Any:
        raise NotImplementedError

    @property
    def shape(self) -> torch.Size:
        """``[n]``: what lies behind the cases differs from tensor to tensor."""
        return torch.Size(self._first().shape[:1])

    @property
    def device(self) -> torch.device:
        """Where the first tensor is."""
        found: torch.device = self._first().device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """Of the first tensor."""
        found: torch.dtype = self._first().dtype
        return found

    @property
    def is_meta(self) -> bool:
        """Whether there are no numbers."""
        return self.device.type == "meta"

    def dim(self) -> int:
        """1: the cases."""
        return 1

    def __len__(self) -> int:
        return int(self._first().shape[0])

    def __getitem__(self: _Self, rows: Any) -> _Self:
        return self._each(lambda t: t[rows])

    def index_select(self: _Self, dimension: int, rows: Tensor) -> _Self:
        """The chosen cases; ``dimension`` is 0."""
        return self._each(lambda t: t.index_select(dimension, rows))

    def to(self: _Self, *where: Any, **how: Any) -> _Self:
        """Moved to a device."""
        return self._each(lambda t: t.to(*where, **how))

    def detach(self: _Self) -> _Self:
        """Without history."""
        return self._each(lambda t: t.detach())


class Cases(_Cut):
    """Tensors ``[n, ...]`` in a tuple, dict or dataclass, nested or not; all else is kept.

    Raises:
        DataError: there is no tensor, or they have not the same number of cases.
    """

    def __init__(self, tree: Any, name: str = "inputs") -> None:
        self.tree, self.name = tree, name
        self.tensors = tensors_of(tree)
        if not self.tensors:
            raise DataError(f"{name} are a {type(tree).__name__} that holds no tensor")
        counts = {int(t.shape[0]) if t.dim() else 0 for t in self.tensors}
        if len(counts) > 1:
            shapes = ", ".join(str(tuple(t.shape)) for t in self.tensors)
            raise DataError(
                f"{name} are tensors of shapes {shapes}, and every one has to have a row for each "
                "case: expand what all cases share, or keep it in the model"
            )

    def _each(self, change: Callable[[Any], Any]) -> Cases:
        return Cases(mapped(self.tree, change), self.name)

    def _first(self) -> Tensor:
        return self.tensors[0]

    def __repr__(self) -> str:
        return f"Cases({', '.join(str(tuple(t.shape)) for t in self.tensors)})"


class Unlabelled:
    """Stands where labels would be; whoever looks at them is told that there are none.

    Args:
        refuse: raises what there is to say.
    """

    def __init__(self, refuse: Callable[[], NoReturn]) -> None:
        self._refuse = refuse

    def __getitem__(self, rows: Any) -> Unlabelled:
        return self

    def index_select(self, dimension: int, rows: Tensor) -> Unlabelled:
        """Some of nothing."""
        return self

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        values = [*args, *(kwargs or {}).values()]
        next(v for v in values if isinstance(v, cls))._refuse()


class HeadTargets(NamedTuple):
    """Targets of one head of several, with that head's weight for each case ``[n]``."""

    targets: Any
    weights: Tensor


class Weighed(_Cut):
    """Targets with a weight for each case: h is the mean over cases of weight times loss."""

    def __init__(self, targets: Any, weights: Tensor) -> None:
        self.targets, self.weights = targets, weights

    def _each(self, change: Callable[[Any], Any]) -> Weighed:
        return Weighed(change(self.targets), change(self.weights))

    def _first(self) -> Tensor:
        return self.weights


def labels(targets: Any) -> Any:
    """Targets as a likelihood takes them: without weights of cases, tuples and dicts as they were;
    None where nobody knows them.
    """
    targets = bare(targets)
    return None if isinstance(targets, Unlabelled) else targets


def bare(targets: Any) -> Any:
    """Targets without weights of cases, tuples and dicts as they were."""
    if isinstance(targets, Weighed):
        targets = targets.targets
    return targets.tree if isinstance(targets, Cases) else targets


def as_cases(value: Any, name: str) -> Any:
    """A tensor as it is; a tuple, dict or dataclass of tensors as Cases.

    Raises:
        DataError: it is neither.
    """
    if isinstance(value, (Tensor, _Cut)):
        return value
    if isinstance(value, (tuple, list)) and len(value) == 1 and isinstance(value[0], Tensor):
        return value[0]
    tree = (Mapping, tuple, list)
    kept = dataclasses.is_dataclass(value) and not isinstance(value, type)
    if isinstance(value, tree) or kept:
        return Cases(value, name)
    raise DataError(
        f"{name} must be a tensor of cases [n, ...], or a tuple, dict or dataclass of them, not "
        f"{type(value).__name__}: torch.as_tensor makes one of an array or a list"
    )


class Arguments(NamedTuple):
    """The arguments of a call, of either kind."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called: a tuple is its arguments, a dict its named arguments."""
    tree = inputs.tree if isinstance(inputs, Cases) else inputs
    if isinstance(tree, Arguments):
        return tree.args, tree.kwargs
    if isinstance(tree, Mapping):
        return (), {str(name): value for name, value in tree.items()}
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return tuple(tree), {}
    return (tree,), {}


def concatenated(parts: list[Any]) -> Any:
    """Batches of one kind behind each other."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    rows = [iter(part.tensors) for part in parts]
    tree = mapped(parts[0].tree, lambda t: torch.cat([next(r) for r in rows]))
    return Cases(tree, parts[0].name)
