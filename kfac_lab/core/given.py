"""What the strategies are given: layers, moments, a batch as it was seen, a model on a basis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from kfac_lab.core.likelihood import Likelihood
from kfac_lab.core.state import DampingStrength
from kfac_lab.core.vector import Vec

__all__ = [
    "Evaluation",
    "Layer",
    "MomentTable",
    "Moments",
    "PartState",
    "ShapedMoments",
    "Space",
    "SubspaceModel",
]

PartState = Mapping[str, Any]


class Layer(Protocol):
    """The geometry of one layer: how its parameters and its rows become matrices.

    ``parameters`` maps the parameter names of ``module`` ("weight", "bias") to how they enter the
    matrix; ``d_out`` and ``d_in`` are the matrix's sides. Adapters for other modules (a
    convolution, an embedding) live in plugins and are found by ``kfac_claim_layer``.
    """

    @property
    def module(self) -> nn.Module:
        """The module whose parameters these are."""
        ...

    @property
    def path(self) -> str:
        """The module's path in the model."""
        ...

    @property
    def d_out(self) -> int:
        """Rows of the matrix."""
        ...

    @property
    def d_in(self) -> int:
        """Columns of the matrix, with the homogeneous 1 where there is a bias."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The module's own parameter names that this layer covers, in the order of ``pack``."""
        ...

    def rows_in(self, inputs: Tensor) -> Tensor:
        """The module's input as rows ``[N, S, d_in]``, the homogeneous 1 appended."""
        ...

    def rows_out(self, gradients: Tensor) -> Tensor:
        """The gradient at the module's output as rows ``[N, S, d_out]``."""
        ...

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors shaped like the parameters (in the order of ``names``) as ``[d_out, d_in]``."""
        ...

    def unpack(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """The inverse of ``pack``; views where possible."""
        ...

    # Optional (``LayerTraits``):
    #   record(module, args, named, output) -> core.layers.Recorded
    #       one call of ``module`` (of each that shares the parameters) while rows are recorded:
    #       where rows_in needs more than the first argument, or rows_out the gradient at another
    #       tensor than the output, which then is computed anew from that tensor
    #   rows_in may be a sparse COO tensor, of at most one entry for each place: sums of squares
    #       and means of it are taken without making it dense
    #   one_hot: bool = False; a row of rows_in has one entry, so that Ā is diagonal
    #   summed: bool = False; the rows of one case are added up, g as it is and ā taken once: for
    #       parameters without an input of their own, whose block then is that of a case's gradient
    #   groups: int = 1; so many blocks of a matrix whose positions come as [S, groups]: reduced
    #       moments are taken for each group
    #   tangent(matrices, inputs, tangents) -> Tensor, and pullback(gradients, inputs) -> Tensor
    #       the layer's own forward and backward products, as core.layers.Linear has them: with
    #       both, a sequential network takes the explicit plan, which shares one forward pass


class Moments(Protocol):
    """What a block asked for of one layer, read from the store (section 5).

    Keys are the names that ``Block.wants`` returned: ``"A"`` E[ā āᵀ] ``[d_in, d_in]``, ``"G"``
    E[g gᵀ] ``[d_out, d_out]``, ``"A.diagonal"`` ``[d_in]``, ``"G.diagonal"`` ``[d_out]``,
    ``"A.mean"`` E[ā] ``[d_in]``. With shared positions A is summed over positions, G averaged
    (expand, arXiv:2311.00636); ``"A.reduced"`` E[(Σ_s ā)(Σ_s ā)ᵀ], ``"G.reduced"``, of means of g
    over positions, are those of the reduce setting.
    """

    def __getitem__(self, name: str) -> Tensor: ...

    def __contains__(self, name: str) -> bool: ...


@runtime_checkable
class ShapedMoments(Protocol):
    """Moments that also tell their layer's matrix, as those do on which the laws try blocks."""

    shape: tuple[int, int]  # (d_out, d_in)


class MomentTable(Protocol):
    """All layers' moments, for a structure: one Moments per layer, and the links' cross moments."""

    def __getitem__(self, layer: int) -> Moments: ...

    @property
    def links(self) -> Sequence[tuple[int, int]]:
        """The pairs of layers (i, j) whose cross moments are kept, in chain order."""
        ...

    def cross(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        """E[ā_i ā_jᵀ] ``[d_in_i, d_in_j]`` and E[g_i g_jᵀ] ``[d_out_i, d_out_j]``."""
        ...


class Evaluation(Protocol):
    """What the model of a step may ask: the gradient, and Jacobian products on its rows S2."""

    gradient: Vec  # ∇h(θ), ℓ2 included
    loss: Tensor  # h(θ)
    likelihood: Likelihood

    def tangents(self, basis: Sequence[Vec]) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of (outputs ``[n, ...]``, J·v for each v: ``[k, n, ...]``) that cover S2."""
        ...

    @property
    def rows(self) -> int:
        """``|S2|``, this process's share."""
        ...

    def approximate_product(self, vector: Vec) -> Vec:
        """F̆ v by the undamped blocks, for models that do without the exact Fisher."""
        ...


class SubspaceModel(Protocol):
    """M on the span of k vectors: M(Σ c_j v_j) − M(0) as a function of c (section 6.1, appendix C).

    ``curvature`` ``[k, k]`` never contains λ or η; they are added here and nowhere else.
    """

    curvature: Tensor  # [k, k]
    gram: Tensor  # [k, k]
    slope: Tensor  # [k]
    loss: Tensor | None  # h(θ), where the model tells it
    split: int  # how many vectors, the first ones, are parts of one direction, by layers; 0: none
    cases: int  # of how many cases the curvature is; 0 where it is not told

    def value(self, coefficients: Tensor, strength: DampingStrength) -> Tensor:
        """slope·c + ½ cᵀ(curvature + (λ+η) gram)c, 0-dim."""
        ...

    def minimiser(
        self,
        strength: DampingStrength,
        fixed: Mapping[int, Any] | None = None,
        ridge: Tensor | None = None,
    ) -> Tensor:
        """The c of least value ``[k]``; ``fixed`` holds some coefficients at given numbers, and a
        ``ridge`` ``[k]`` adds ½ Σ ridge_j c_j².
        """
        ...


class Space(Protocol):
    """What a momentum may build directions from."""

    gradient: Vec
    strength: DampingStrength
    predictions: int  # of the step's batch: its cases, times the positions of a categorical one

    def precondition(self, vector: Vec) -> Vec:
        """P v with the candidate's preconditioner."""
        ...

    def fisher(self, vector: Vec) -> Vec:
        """F v with the exact Fisher on S2, computed when asked."""
        ...
