"""What a likelihood is asked: the vocabulary of this package (section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

from torch import Tensor

__all__ = [
    "Counted",
    "Examined",
    "Flaw",
    "Joining",
    "Labelled",
    "Likelihood",
    "Residual",
    "Weighted",
    "is_examined",
    "is_joining",
    "is_labelled",
    "is_residual",
    "is_weighted",
]


@runtime_checkable
class Likelihood(Protocol):
    """The distribution R(y|z) whose parameter z the network's last layer hands over.

    Outputs ``z`` are ``[N, ..., out]``. Every method keeps device and dtype, and reads nothing on
    the host. ``F_R`` is the Fisher of R in z for the loss *as scaled by* ``loss``; ``B`` is a
    factor of it, F_R = B Bᵀ.
    """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """−log r(y|z) up to a constant, per case: ``[N]``.

        Raises:
            DataError: targets that are none for these outputs.
        """
        ...

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """∇_z of each case's loss: the shape of ``outputs``."""
        ...

    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """Draws y from the model and returns a cotangent whose second moment is F_R.

        ``uniforms`` lie in (0, 1) and have the shape of ``outputs``.
        """
        ...

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        """Bᵀu for each tangent: ``tangents`` and the result are ``[k, *outputs.shape]``."""
        ...

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        """F_R u for one tangent per case: the shape of ``outputs``."""
        ...

    def factor_columns(self, outputs: Tensor) -> int:
        """How many columns B has for one case of ``outputs`` [N, ..., out]."""
        ...

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        """The given column of B for every case: the shape of ``outputs``."""
        ...

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is reported, per case ``[N]``: squared error over the outputs, or 100 if wrong."""
        ...

    def mean(self, outputs: Tensor) -> Tensor:
        """E[y|z], the reconstruction or the class probabilities: the shape of real targets."""
        ...


@runtime_checkable
class Labelled(Protocol):
    """A likelihood whose gradient is not on the scale of its sampled gradient."""

    def label_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The ``sampled_gradient`` had the model drawn ``targets``: √w_p ∇ℓ_p.

        It has the shape of ``outputs``.
        """
        ...


@runtime_checkable
class Weighted(Likelihood, Labelled, Protocol):
    """A likelihood whose targets say how much each prediction counts, or whose mean is no mean
    over cases.

    A case's loss is Σ_p w_p ℓ_p over its predictions p (one for each output, or for each position
    of classes), and h = (1/N) Σ_n loss_n once ``on_batch`` has put the batch's own denominator into
    w. Then F = (1/N) Σ_n Σ_p w_p J_pᵀ F_p J_p: the Gauss–Newton matrix of that h. The methods of
    ``Likelihood`` that know no targets take w at its mean over the model's targets.
    """

    @property
    def bare(self) -> Likelihood:
        """The same predictions, every one with weight 1."""
        ...

    def weights(self, outputs: Tensor, targets: Tensor | None) -> Tensor | float | None:
        """w, to be multiplied with what has the outputs' shape; None where all are 1.

        It is the same for all outputs of one prediction, and never negative. Without ``targets``
        it is the mean over targets of the model.
        """
        ...

    def totals(self, targets: Tensor) -> tuple[Tensor, ...]:
        """What h is divided by, summed over these cases: 0-dim float64, added up over chunks."""
        ...

    def on_batch(self, cases: int, totals: Iterator[Tensor]) -> Weighted:
        """The same on a batch of ``cases`` with these ``totals``, of which it takes its own.

        The mean of its ``loss`` over the batch is h. A subset of the batch keeps the batch's
        denominator: its mean of w F_p is then without bias for the batch's, as the subset's own
        denominator, a ratio of two means, is not; and a subset in which nothing counts has F = 0.
        """
        ...


class Flaw(NamedTuple):
    """Something that targets must not have, or (``warns``) that may be meant, and is told once."""

    bad: Tensor  # 0-dim, true where they have it
    says: Callable[[], str]  # the sentence; may read on the host
    warns: bool = False  # where reads are free; elsewhere nobody looks


@runtime_checkable
class Examined(Protocol):
    """A likelihood that can look at targets beforehand."""

    def flaws(self, outputs: Tensor | None, targets: Tensor) -> Sequence[Flaw]:
        """What to look for; without ``outputs`` [N, ..., out], as far as the targets alone tell."""
        ...


@runtime_checkable
class Residual(Likelihood, Protocol):
    """A likelihood whose error comes of its gradient: what both are made of is made once."""

    def error_of(self, gradient: Tensor) -> Tensor:
        """``error`` [N], to the last bit, where ``gradient`` [N, ..., out] is."""
        ...


@runtime_checkable
class Counted(Protocol):
    """A likelihood that makes several predictions for a case."""

    def predictions(self, outputs: Tensor) -> int:
        """How many for each case of ``outputs`` [N, ..., out]."""
        ...


@runtime_checkable
class Joining(Protocol):
    """A likelihood of models that give several tensors."""

    def joined(self, outputs: Any) -> tuple[Tensor, Likelihood]:
        """The model's outputs as one tensor ``[N, ...]``, and the likelihood of that tensor.

        Raises:
            DataError: these are not the outputs it is for, naming what is missing.
        """
        ...


_KNOWN: dict[tuple[type, tuple[str, ...]], bool] = {}


def _has(kind: type, names: tuple[str, ...]) -> bool:
    key = kind, names
    if key not in _KNOWN:
        _KNOWN[key] = all(hasattr(kind, name) for name in names)
    return _KNOWN[key]


# What ``isinstance`` says of a Protocol, told by the class and remembered: asked at every step.


def is_labelled(likelihood: object) -> TypeGuard[Labelled]:
    """Whether it is ``Labelled``."""
    return _has(type(likelihood), ("label_gradient",))


def is_weighted(likelihood: object) -> TypeGuard[Weighted]:
    """Whether it is ``Weighted``."""
    names = ("label_gradient", "bare", "weights", "totals", "on_batch")
    return _has(type(likelihood), names)


def is_examined(likelihood: object) -> TypeGuard[Examined]:
    """Whether it is ``Examined``."""
    return _has(type(likelihood), ("flaws",))


def is_residual(likelihood: object) -> TypeGuard[Residual]:
    """Whether it is ``Residual``: not where a subclass has an error or a gradient of its own."""
    kind = type(likelihood)
    names = ("error_of", "error", "gradient")
    if (kind, names) not in _KNOWN:
        owners = {next((c for c in kind.__mro__ if name in vars(c)), None) for name in names}
        _KNOWN[kind, names] = _has(kind, names) and len(owners) == 1
    return _KNOWN[kind, names]


def is_joining(likelihood: object) -> TypeGuard[Joining]:
    """Whether it is ``Joining``."""
    return _has(type(likelihood), ("joined",))
