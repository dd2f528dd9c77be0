"""The block of the factors relative to their sizes: Ā/ā ⊗ G/ḡ, or Ā/ā ⊗ I."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.parameters import parameter
from kfac_lab.core.protocols import Moments, PartState
from kfac_lab.core.state import DampingStrength
from kfac_lab.errors import RecipeError

__all__ = ["Relative", "RelativeFactors", "RelativeInverse"]


@dataclass(frozen=True)
class RelativeFactors:
    """The undamped factors of one refresh, each of mean diagonal 1; G is None where it is I."""

    A: Tensor  # [d_in/taps, d_in/taps]
    G: Tensor | None  # [d_out, d_out]
    like: Tensor  # [d_out], of which only the length matters
    taps: int = 1


@dataclass(frozen=True)
class RelativeInverse:
    """(Ā/ā + sI)⁻¹ ⊗ (G/ḡ + sI)⁻¹, or (Ā/ā + sI)⁻¹ ⊗ I; column-stacked vec.

    Where the factor is of channels alone, (Ā/ā + sI)⁻¹ ⊗ I of the taps stands in its place.
    """

    A_inverse: Tensor  # [d_in/taps, d_in/taps]
    G_inverse: Tensor | None  # [d_out, d_out]
    factored: RelativeFactors
    shift: Tensor  # s, 0-dim

    def apply(self, matrix: Tensor) -> Tensor:
        """U = (G/ḡ + sI)⁻¹ V (Ā/ā + sI)⁻¹, both ``[d_out, d_in]``."""
        right = _times(matrix, self.A_inverse, self.factored.taps)
        return right if self.G_inverse is None else linalg.product(self.G_inverse, right)

    def dense(self) -> Tensor:
        """The inverse for column-stacked vec: ``[d_in·d_out, d_in·d_out]``."""
        left = self._identity() if self.G_inverse is None else self.G_inverse
        return torch.kron(self._of_taps(self.A_inverse), left.contiguous())

    def factors(self) -> tuple[Tensor, Tensor]:
        """The damped Ā/ā and G/ḡ, or I."""
        G = self.factored.G
        A = self._of_taps(self._damped(self.factored.A))
        return A, self._identity() if G is None else self._damped(G)

    def _of_taps(self, factor: Tensor) -> Tensor:
        """``factor`` ⊗ I, ``[d_in, d_in]``."""
        taps = self.factored.taps
        one = torch.eye(taps, dtype=factor.dtype, device=factor.device)
        return torch.kron(factor.contiguous(), one) if taps > 1 else factor.contiguous()

    def _damped(self, factor: Tensor) -> Tensor:
        damped = factor.clone()
        damped.diagonal().add_(self.shift.to(damped.dtype))
        return damped

    def _identity(self) -> Tensor:
        return torch.diag(torch.ones_like(self.factored.like))


@dataclass(frozen=True)
class Relative:
    """Ā/ā ⊗ G/ḡ with ā = tr Ā/d_in and ḡ = tr G/d_out: the block of section 4.2 without its scale.

    Damped as (Ā/ā + γI) ⊗ (G/ḡ + γI): what section 6.3 does with π, but γ is relative to each
    layer's own factors, so that neither the loss's scale nor a layer's inputs' changes how much of
    the curvature is left. For whoever gives the step's length by another rule (``normalise``).

    With ``outputs=False`` G counts as a multiple of I (FOOF, Benzing 2022): (Ā/ā + γ²I) ⊗ I. One
    side is inverted and multiplied by in place of two.

    A convolution's inputs are channels times the taps of its kernel. With ``taps`` 9 (3 by 3) Ā is
    the mean over the taps of the channels' second moments, as if taps were uncorrelated and alike:
    a ninth of the side to be inverted and multiplied by. For layers without a bias.
    """

    outputs: bool = parameter(
        True, symbol="G", section="3", help="False: the inputs' second moments alone, G as I"
    )
    taps: int = parameter(1, section="3", low=1, help="of a kernel, over which Ā is averaged")

    def wants(self) -> Sequence[str]:
        """Ā and G; the diagonal of G tells d_out where G is not asked for."""
        return ("A", "G" if self.outputs else "G.diagonal")

    def factorise(
        self, moments: Moments, part_state: PartState
    ) -> tuple[RelativeFactors, PartState]:
        """Copies of the factors, of mean diagonal 1; nothing in them belongs to the store."""
        A = self._inputs(moments)
        if self.outputs:
            G = _relative(moments["G"])
            return RelativeFactors(A, G, torch.zeros_like(G[0]), self.taps), part_state
        like = torch.zeros_like(moments["G.diagonal"])
        return RelativeFactors(A, None, like, self.taps), part_state

    def _inputs(self, moments: Moments) -> Tensor:
        """Ā/ā of the channels.

        Raises:
            RecipeError: the layer's inputs are no channels of so many taps.
        """
        A, taps = moments["A"], self.taps
        if taps > 1:
            channels, rest = divmod(A.shape[0], taps)
            if rest:
                raise RecipeError(
                    f"block='relative(taps={taps})' is for layers whose number of inputs is a "
                    f"multiple of {taps}, and one has {A.shape[0]}: name such layers in rules of "
                    f"their own, block={{'Conv2d': 'relative(taps={taps})', '*': 'relative'}}"
                )
            A = A.view(channels, taps, channels, taps).diagonal(dim1=1, dim2=3).mean(-1)
        return _relative(A)

    def damped(
        self,
        factored: RelativeFactors,
        part_state: PartState,
        strength: DampingStrength,
        previous: Any,
    ) -> RelativeInverse:
        """The inverse for one γ."""
        inverses = []
        for asked in self.asks(factored, strength):
            with linalg.label(*asked.label):
                inverses.append(linalg.damped_inverse(asked.matrix, asked.shift))
        return self.made_of(factored, strength, inverses)

    def asks(
        self, factored: RelativeFactors, strength: DampingStrength
    ) -> tuple[linalg.Asked, ...]:
        """The inverse of one or both damped factors."""
        shift = _shift(factored, strength)
        ours = linalg.Asked(("Ā",), factored.A, shift)
        return (ours,) if factored.G is None else (ours, linalg.Asked(("G",), factored.G, shift))

    def made_of(
        self, factored: RelativeFactors, strength: DampingStrength, inverses: Sequence[Tensor]
    ) -> RelativeInverse:
        """What ``damped`` gives, of the inverses that it ``asks`` for."""
        G_inverse = None if factored.G is None else inverses[1]
        return RelativeInverse(inverses[0], G_inverse, factored, _shift(factored, strength))

    def product(self, moments: Moments, part_state: PartState, matrix: Tensor) -> Tensor:
        """G/ḡ V Ā/ā, undamped: ``[d_out, d_in]`` to ``[d_out, d_in]``."""
        right = _times(matrix, self._inputs(moments), self.taps)
        return _relative(moments["G"]) @ right if self.outputs else right


def _times(matrix: Tensor, factor: Tensor, taps: int) -> Tensor:
    """matrix · (factor ⊗ I of the taps), ``[d_out, d_in]``: inputs are channels, then taps."""
    if taps == 1:
        return linalg.product(matrix, factor)
    split = matrix.unflatten(1, (-1, taps)).mT  # [d_out, taps, channels]
    return linalg.product(split.flatten(0, 1), factor).view(split.shape).mT.flatten(1)


def _relative(moment: Tensor) -> Tensor:
    """The moment over the mean of its diagonal, symmetric; zeros where nothing was seen."""
    mean = moment.diagonal().mean()
    return linalg.symmetrise(moment) / torch.where(mean > 0, mean, torch.ones_like(mean))


def _shift(factored: RelativeFactors, strength: DampingStrength) -> Tensor:
    """s = γ for two factors, γ² for one: γ² stands for λ + η in both."""
    gamma = torch.as_tensor(strength.gamma, dtype=torch.float64, device=factored.A.device)
    return gamma * gamma if factored.G is None else gamma
