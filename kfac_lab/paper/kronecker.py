"""The Kronecker-factored block Ā ⊗ G and its damped inverse (sections 3, 4.2, 6.3 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.iterative import newton_schulz_inverse
from kfac_lab.core.kronecker_sum import eigenbasis_inverse
from kfac_lab.core.limits import ONE_HOT
from kfac_lab.core.linalg import Eigen
from kfac_lab.core.parameters import parameter
from kfac_lab.core.program import filled
from kfac_lab.core.protocols import BlockInverse, Moments, PartState
from kfac_lab.core.state import DampingStrength
from kfac_lab.core.traits import BlockTraits
from kfac_lab.paper import low_rank
from kfac_lab.paper.low_rank import Factor, LowRank

__all__ = [
    "EigenbasisInverse",
    "Kronecker",
    "KroneckerFactors",
    "KroneckerInverse",
    "low_rank_apply",
]


@dataclass(frozen=True)
class KroneckerFactors:
    """What all γ candidates of one refresh share: the undamped factors, π, eigenbases if any."""

    A: Factor  # [d_in, d_in]
    G: Factor  # [d_out, d_out]
    pi: Tensor  # 0-dim float64
    A_eigen: Eigen | None = None
    G_eigen: Eigen | None = None


@dataclass(frozen=True)
class KroneckerInverse:
    """(Ā + πγI)⁻¹ ⊗ (G + γ/π I)⁻¹, matrices ``[d_in, d_in]`` and ``[d_out, d_out]``."""

    A_inverse: Factor
    G_inverse: Factor
    A: Factor  # undamped
    G: Factor
    A_shift: Tensor  # πγ, 0-dim
    G_shift: Tensor  # γ/π, 0-dim

    def apply(self, matrix: Tensor) -> Tensor:
        """U = G⁻¹ V Ā⁻¹ (section 4.2); either order costs the same."""
        right = low_rank.times(matrix, self.A_inverse)
        if isinstance(self.G_inverse, Tensor):
            return linalg.product(self.G_inverse, right)
        return low_rank.times(right.t(), self.G_inverse).t()

    def dense(self) -> Tensor:
        """Ā⁻¹ ⊗ G⁻¹ for column-stacked vec: ``[d_in·d_out, d_in·d_out]``."""
        return torch.kron(
            low_rank.dense(self.A_inverse).contiguous(), low_rank.dense(self.G_inverse).contiguous()
        )

    def matrices(self) -> tuple[Tensor, Tensor]:
        """The damped (Ā, G) of any kind, formed as matrices."""
        return _shifted(self.A, self.A_shift), _shifted(self.G, self.G_shift)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """The damped (Ā, G) where both are dense.

        A factor that replaces part of its moment by a diagonal does not fit the cross moments of
        a chain: together they need not be positive semidefinite. Such a block ends its chain.
        """
        both = isinstance(self.A, Tensor) and isinstance(self.G, Tensor)
        return self.matrices() if both else None


@dataclass(frozen=True)
class EigenbasisInverse:
    """(Ā ⊗ G + shift·I ⊗ I)⁻¹ in the eigenbases of the factors (appendix B)."""

    A_basis: Tensor  # [d_in, d_in]
    G_basis: Tensor  # [d_out, d_out]
    scale: Tensor  # [d_out, d_in]: the inverse eigenvalues

    def apply(self, matrix: Tensor) -> Tensor:
        """U = Q_G [(Q_Gᵀ V Q_A) ⊘ (d_G d_Aᵀ + shift)] Q_Aᵀ."""
        inside = self.G_basis.t() @ matrix @ self.A_basis
        return self.G_basis @ (inside * self.scale) @ self.A_basis.t()

    def dense(self) -> Tensor:
        """The inverse for column-stacked vec: ``[d_in·d_out, d_in·d_out]``."""
        basis = torch.kron(self.A_basis.contiguous(), self.G_basis.contiguous())
        return (basis * self.scale.t().reshape(-1)) @ basis.t()

    def factors(self) -> None:
        """No product of two factors: it ends its chain."""


DENSE, DIAGONAL = "dense", "diagonal"
RANK1, LOWRANK = "rank1_plus_diagonal", "lowrank_plus_diagonal"


@dataclass(frozen=True)
class Kronecker:
    """The block Ā ⊗ G, damped factor by factor (section 6.3) or, as an option, exactly.

    ``factored``: (Ā + πγI) ⊗ (G + γ/π I). ``unfactored``: Ā ⊗ G + γ² I ⊗ I in the eigenbases, γ²
    standing for λ + η; it ends its chain.
    """

    pi: str = parameter(
        "trace",
        symbol="π",
        section="6.3",
        choices=("trace", "frobenius", "spectral", "median", "one"),
        help="the norm whose ratio splits γ between the two factors",
    )
    inverse: str = parameter(
        "cholesky",
        section="8",
        choices=("cholesky", "eigh", "newton_schulz"),
        help="eigh shares one decomposition among the γ candidates; newton_schulz is matmuls only",
    )
    factor_a: str = parameter(
        DENSE,
        symbol="Ā",
        section="8",
        choices=(DENSE, DIAGONAL, RANK1, LOWRANK),
        help="rank1_plus_diagonal is E[ā]E[ā]ᵀ + diag(Var ā)",
    )
    factor_g: str = parameter(
        DENSE, symbol="G", section="8", choices=(DENSE, DIAGONAL, LOWRANK), help="as factor_a"
    )
    rank: int = parameter(16, section="8", low=1, help="columns of a lowrank_plus_diagonal factor")
    tikhonov: str = parameter(
        "factored", section="6.3", choices=("factored", "unfactored"), help="how γ is added"
    )
    iterations: int | None = parameter(
        None, section="8", low=1, high=100, help="of newton_schulz; None is enough for any start"
    )

    def check(self) -> str | None:
        """Combinations that have no cheap form."""
        kinds = {self.factor_a, self.factor_g}
        if self.tikhonov == "unfactored" and kinds != {DENSE}:
            return "tikhonov='unfactored' needs dense factors, because it uses their eigenbases"
        if self.pi in ("spectral", "median") and kinds & {RANK1, LOWRANK}:
            return f"pi={self.pi!r} needs dense or diagonal factors; 'trace' works with all"
        return None

    def with_diagonal_g(self) -> Kronecker:
        """The same with G as its diagonal; itself where its fields need a dense one."""
        changed = replace(self, factor_g=DIAGONAL)
        fits = self.factor_g == DENSE and changed.check() is None
        return changed if fits and self.pi in ("trace", "frobenius", "one") else self

    def fitted(self, d_out: int, d_in: int, limit: int, one_hot: bool) -> Kronecker:
        """Itself, or with a factor above ``limit`` as low rank plus diagonal (section 8); a large
        table's Ā, which is diagonal, as its diagonal.
        """
        if self.tikhonov == "unfactored":
            return self
        found = self
        if self.factor_a == DENSE and one_hot and d_in > min(limit, ONE_HOT):
            found = replace(found, factor_a=DIAGONAL)
        elif self.factor_a == DENSE and d_in > limit:
            found = replace(found, factor_a=LOWRANK)
        if self.factor_g == DENSE and d_out > limit:
            found = replace(found, factor_g=LOWRANK)
        kinds = {found.factor_a, found.factor_g}
        if found.pi in ("spectral", "median") and LOWRANK in kinds:
            found = replace(found, pi="trace")  # the norm that all kinds have
        return found

    # --- statistics ---

    def wants(self) -> Sequence[str]:
        """The moments of both factors."""
        of_a = {
            DENSE: ("A",),
            DIAGONAL: ("A.diagonal",),
            RANK1: ("A.mean", "A.diagonal"),
            LOWRANK: ("A.diagonal",),
        }
        return (*of_a[self.factor_a], "G" if self.factor_g == DENSE else "G.diagonal")

    @property
    def traits(self) -> BlockTraits:
        """Only sketches need the rows themselves."""
        return BlockTraits(observes=LOWRANK in (self.factor_a, self.factor_g))

    def observe(
        self, part_state: PartState, rows: Tensor, cotangents: Tensor, weight: float
    ) -> PartState:
        """Sketches of the factors kept as low rank plus diagonal: Y ← (1−w) Y + w M Ω.

        ``rows`` are ``[N, S, d_in]`` and count summed over positions, ``cotangents`` are
        ``[C, N, S, d_out]`` and count averaged over positions, summed over C.
        """
        new = dict(part_state)
        if self.factor_a == LOWRANK:
            new |= self._sketched(part_state, "A", rows.flatten(0, 1), rows.shape[0], weight)
        if self.factor_g == LOWRANK:
            cases = cotangents.shape[1] * cotangents.shape[2]
            new |= self._sketched(part_state, "G", cotangents.flatten(0, 2), cases, weight)
        return new

    def _sketched(
        self, part_state: PartState, name: str, rows: Tensor, count: int, weight: float
    ) -> dict[str, Tensor]:
        test = part_state.get(f"{name}.test")
        if test is None:
            like = rows.new_empty(0, rows.shape[-1])  # what a recording keeps holds no rows
            test = filled(lambda _: low_rank.test_matrix(like, self.rank), 0)
        sketch = part_state.get(f"{name}.sketch")
        # Opens at zero and shares the diagonal's weights, as a cross moment does (section 5).
        sketch = torch.zeros_like(test) if sketch is None else sketch
        new = rows.t() @ (rows @ test)
        return {
            f"{name}.test": test,
            f"{name}.sketch": sketch * (1.0 - weight) + new * (weight / count),
        }

    def _factor(self, name: str, kind: str, moments: Moments, part_state: PartState) -> Factor:
        """A fresh copy of one undamped factor; nothing in it belongs to the store."""
        if kind == DENSE:
            return linalg.symmetrise(moments[name])
        diagonal = moments[f"{name}.diagonal"].clone()
        if kind == DIAGONAL:
            columns = diagonal.new_zeros((diagonal.shape[0], 0))
        elif kind == RANK1:
            columns = moments[f"{name}.mean"].unsqueeze(1).clone()
        elif f"{name}.sketch" in part_state:
            columns = low_rank.nystrom(part_state[f"{name}.sketch"], part_state[f"{name}.test"])
        else:
            columns = diagonal.new_zeros((diagonal.shape[0], 0))
        rest = (diagonal - (columns * columns).sum(1)).clamp(min=0)
        return LowRank(rest, columns)

    # --- invert ---

    def factorise(
        self, moments: Moments, part_state: PartState
    ) -> tuple[KroneckerFactors, PartState]:
        """Copies of the undamped factors, π from them, and eigenbases where they are used."""
        with linalg.label("Ā"):
            A = self._factor("A", self.factor_a, moments, part_state)
            A_eigen = self._eigen(A)
        with linalg.label("G"):
            G = self._factor("G", self.factor_g, moments, part_state)
            G_eigen = self._eigen(G)
        top, bottom = self._norm(A, A_eigen), self._norm(G, G_eigen)
        usable = (top > 0) & (bottom > 0)
        one = torch.ones_like(top)
        ratio = torch.where(usable, top, one) / torch.where(usable, bottom, one)
        keep = self.inverse == "eigh" or self.tikhonov == "unfactored"
        return KroneckerFactors(
            A, G, ratio.sqrt(), A_eigen if keep else None, G_eigen if keep else None
        ), part_state

    def _eigen(self, factor: Factor) -> Any:
        if not isinstance(factor, Tensor):
            return None
        if self.inverse == "eigh" or self.tikhonov == "unfactored":
            return linalg.eigh(factor)
        return linalg.eigh(factor) if self.pi in ("spectral", "median") else None

    def _norm(self, factor: Factor, eigen: Any) -> Tensor:
        """‖factor ⊗ I‖ up to what cancels in π, 0-dim float64 (section 6.3)."""
        if self.pi == "trace":
            return low_rank.mean_diagonal(factor)
        if self.pi == "frobenius":
            return low_rank.frobenius(factor) / low_rank.side(factor) ** 0.5
        if self.pi == "one":
            return torch.ones((), dtype=torch.float64, device=_device(factor))
        values = factor.diagonal if isinstance(factor, LowRank) else eigen.values
        return (values.max() if self.pi == "spectral" else values.median()).double()

    def damped(
        self,
        factored: KroneckerFactors,
        part_state: PartState,
        strength: DampingStrength,
        previous: Any,
    ) -> BlockInverse:
        """The damped inverse for one γ (sections 6.3 and 6.6)."""
        gamma = torch.as_tensor(strength.gamma, dtype=torch.float64, device=factored.pi.device)
        if self.tikhonov == "unfactored":
            return self._unfactored(factored, gamma)
        A_shift, G_shift = _shifts(factored, strength)
        before = previous if isinstance(previous, KroneckerInverse) else None
        with linalg.label("Ā"):
            A_inverse = self._inverted(
                factored.A, A_shift, factored.A_eigen, before and before.A_inverse
            )
        with linalg.label("G"):
            G_inverse = self._inverted(
                factored.G, G_shift, factored.G_eigen, before and before.G_inverse
            )
        return KroneckerInverse(A_inverse, G_inverse, factored.A, factored.G, A_shift, G_shift)

    def asks(
        self, factored: KroneckerFactors, strength: DampingStrength
    ) -> tuple[linalg.Asked, ...] | None:
        """(Ā + πγI)⁻¹ and (G + γ/π I)⁻¹ where both are made by Cholesky."""
        if self.inverse != "cholesky" or self.tikhonov != "factored":
            return None
        if isinstance(factored.A, LowRank) or isinstance(factored.G, LowRank):
            return None
        A_shift, G_shift = _shifts(factored, strength)
        return linalg.Asked(("Ā",), factored.A, A_shift), linalg.Asked(("G",), factored.G, G_shift)

    def made_of(
        self, factored: KroneckerFactors, strength: DampingStrength, inverses: Sequence[Tensor]
    ) -> BlockInverse:
        """What ``damped`` gives, of the inverses that it ``asks`` for."""
        A_inverse, G_inverse = inverses
        shifts = _shifts(factored, strength)
        return KroneckerInverse(A_inverse, G_inverse, factored.A, factored.G, *shifts)

    def _inverted(self, factor: Factor, shift: Tensor, eigen: Any, previous: Any) -> Factor:
        if isinstance(factor, LowRank):
            return factor.shifted(shift.to(factor.diagonal.dtype)).inverse()
        if self.inverse == "eigh":
            return eigen.inverse(shift)
        if self.inverse == "newton_schulz":
            fits = (
                isinstance(previous, Tensor)
                and previous.shape == factor.shape
                and previous.dtype == factor.dtype
                and previous.device == factor.device
            )
            return newton_schulz_inverse(factor, shift, previous if fits else None, self.iterations)
        return linalg.damped_inverse(factor, shift)

    def _unfactored(self, factored: KroneckerFactors, gamma: Tensor) -> EigenbasisInverse:
        assert factored.A_eigen is not None and factored.G_eigen is not None
        found = eigenbasis_inverse(factored.A_eigen, factored.G_eigen, gamma * gamma)
        return EigenbasisInverse(found.right, found.left, found.weights)

    def product(self, moments: Moments, part_state: PartState, matrix: Tensor) -> Tensor:
        """G V Ā, undamped: ``[d_out, d_in]`` to ``[d_out, d_in]``."""
        A = self._factor("A", self.factor_a, moments, part_state)
        G = self._factor("G", self.factor_g, moments, part_state)
        return low_rank.times(low_rank.times(matrix, A).t(), G).t()


def low_rank_apply(inverse: KroneckerInverse, inputs_rows: Tensor, gradient_rows: Tensor) -> Tensor:
    """G⁻¹ V Ā⁻¹ for V = 𝒢𝒜ᵀ/m without forming V, cheaper where m < d (section 8).

    U = 1/m (G⁻¹𝒢)(𝒜ᵀĀ⁻¹) for ``inputs_rows`` ``[m, d_in]`` (ā of each case) and ``gradient_rows``
    ``[m, d_out]`` (each case's own derivatives). V contains no ℓ2 term, which is of full rank.
    """
    left = low_rank.times(gradient_rows, inverse.G_inverse)
    right = low_rank.times(inputs_rows, inverse.A_inverse)
    return linalg.product(left.t() / inputs_rows.shape[0], right)


def _shifted(factor: Factor, shift: Tensor) -> Tensor:
    matrix = low_rank.dense(factor).clone()
    matrix.diagonal().add_(shift.to(matrix.dtype))
    return matrix


def _shifts(factored: KroneckerFactors, strength: DampingStrength) -> tuple[Tensor, Tensor]:
    """πγ and γ/π (section 6.3)."""
    gamma = torch.as_tensor(strength.gamma, dtype=torch.float64, device=factored.pi.device)
    return factored.pi * gamma, gamma / factored.pi


def _device(factor: Factor) -> torch.device:
    return factor.device if isinstance(factor, Tensor) else factor.diagonal.device
