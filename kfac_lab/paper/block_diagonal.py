"""F̆: every layer for itself (section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.parameters import parameter
from kfac_lab.core.protocols import Block, BlockInverse, Layer, MomentTable, PartState
from kfac_lab.core.state import DampingStrength
from kfac_lab.core.traits import BlockTraits, PreconditionerTraits, StructureTraits, traits
from kfac_lab.core.vector import Vec
from kfac_lab.paper.kronecker import KroneckerInverse, low_rank_apply
from kfac_lab.paper.low_rank import side

__all__ = ["BlockDiagonal", "BlockDiagonalFactors", "BlockDiagonalInverse"]


@dataclass(frozen=True)
class BlockDiagonalFactors:
    """What each block factorised, with the blocks themselves: ``damped`` asks them again."""

    blocks: tuple[Any, ...]
    paths: tuple[str, ...]
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class BlockDiagonalInverse:
    """One damped inverse per layer.

    ``pulls`` are P ηθ of the layers whose gradient may come by cases, at the θ of the refresh; None
    where there is no ℓ2, or where the gradient of the refresh did not come by cases: which of the
    two it is the engine knows.
    """

    inverses: tuple[Any, ...]
    pulls: tuple[Tensor | None, ...] | None = None

    def apply(self, vector: Vec) -> Vec:
        """U_i = (block i)⁻¹ V_i for every layer."""
        return Vec([p.apply(v) for p, v in zip(self.inverses, vector, strict=True)])

    def pulling(self, decay: Vec, m: int) -> BlockDiagonalInverse:
        """The same with P ηθ kept, ``decay`` being ηθ, where a gradient of m cases comes by cases.

        ηθ is of full rank and moves by a step's share of itself, so that its product is made with
        the inverse and serves as long, where η is small. A case's rows are exact at all times, so
        that Δ is wrong by P ηθ − P_r ηθ_r, r being the step of that product: by no more than
        η‖θ‖/γ² + η‖θ_r‖/γ_r².
        """
        pulls = tuple(
            inverse.apply(matrix) if _cheaper(inverse, m, matrix) else None
            for inverse, matrix in zip(self.inverses, decay, strict=True)
        )
        return replace(self, pulls=pulls)

    def pulled_as(self, before: Any) -> BlockDiagonalInverse | None:
        """The same with the P ηθ of an inverse before; None where that has none that fits."""
        if not isinstance(before, BlockDiagonalInverse) or before.pulls is None:
            return None
        if len(before.pulls) != len(self.inverses):
            return None
        pairs = zip(self.inverses, before.pulls, strict=True)
        fits = all(pull is None or pull.shape == _shape(inverse) for inverse, pull in pairs)
        return replace(self, pulls=before.pulls) if fits else None

    def apply_cases(self, cases: Sequence[tuple[Tensor, Tensor]], vector: Vec) -> Vec:
        """``apply`` of the gradient, by its cases' rows where that is cheaper (section 8).

        ``cases`` are ā ``[m, d_in]`` and g ``[m, d_out]`` of each layer, ``vector`` the same
        gradient as matrices. Two products with m rows and one of m columns, 2m(d_in² + d_out² +
        d_in·d_out) operations, stand against 2·d_in·d_out·(d_in + d_out). The rows lack ηθ, whose
        product is that of the last refresh (``pulling``).
        """
        results = []
        for i, (inverse, (inputs, gradients)) in enumerate(zip(self.inverses, cases, strict=True)):
            pull = None if self.pulls is None else self.pulls[i]
            known = self.pulls is None or pull is not None
            if known and _cheaper(inverse, inputs.shape[0], vector[i]):
                result = low_rank_apply(inverse, inputs, gradients)
                results.append(result if pull is None else result.add_(pull))
            else:
                results.append(inverse.apply(vector[i]))
        return Vec(results)


def _shape(inverse: Any) -> tuple[int, int] | None:
    """``[d_out, d_in]`` of what a Kronecker inverse is applied to."""
    if not isinstance(inverse, KroneckerInverse):
        return None
    return side(inverse.G_inverse), side(inverse.A_inverse)


def _cheaper(inverse: Any, m: int, matrix: Tensor) -> bool:
    """Whether P∇h of m cases is cheaper by their rows than by the matrix ``[d_out, d_in]``."""
    d_out, d_in = matrix.shape
    by_cases = m * (d_in**2 + d_out**2 + d_in * d_out)
    return isinstance(inverse, KroneckerInverse) and by_cases < d_in * d_out * (d_in + d_out)


@dataclass(frozen=True)
class BlockDiagonal:
    """The inverse of each layer's own block; layers do not see each other (section 4.2)."""

    low_rank: bool = parameter(
        False,
        section="8",
        help="P∇h by cases in layers wider than the batch, where the network is sequential",
    )

    @property
    def traits(self) -> StructureTraits:
        """The gradient by its cases' rows where ``low_rank`` says so."""
        return StructureTraits(by_case=self.low_rank)

    def pairs(self, chains: Sequence[Sequence[int]]) -> Sequence[tuple[int, int]]:
        """No cross moments."""
        return ()

    def factorise(
        self,
        layers: Sequence[Layer],
        blocks: Sequence[Block],
        moments: MomentTable,
        part_states: Sequence[PartState],
    ) -> tuple[BlockDiagonalFactors, Sequence[PartState]]:
        """Every block's own costly part."""
        return factorise_blocks(layers, blocks, moments, part_states)

    def damped(
        self,
        factored: BlockDiagonalFactors,
        part_states: Sequence[PartState],
        strength: DampingStrength,
        previous: Any,
    ) -> BlockDiagonalInverse:
        """Every block's damped inverse for one candidate."""
        return BlockDiagonalInverse(damped_blocks(factored, part_states, strength, previous))

    def joined(self, values: Sequence[Any]) -> Any:
        """Layers that were factorised or damped one by one, as all of them at once."""
        if isinstance(values[0], BlockDiagonalInverse):
            return BlockDiagonalInverse(tuple(i for value in values for i in value.inverses))
        return BlockDiagonalFactors(
            tuple(block for value in values for block in value.blocks),
            tuple(path for value in values for path in value.paths),
            tuple(part for value in values for part in value.parts),
        )


def factorise_blocks(
    layers: Sequence[Layer],
    blocks: Sequence[Block],
    moments: MomentTable,
    part_states: Sequence[PartState],
) -> tuple[BlockDiagonalFactors, Sequence[PartState]]:
    """Calls every block's ``factorise`` under its layer's name."""
    parts, after = [], []
    for i, (layer, block, part_state) in enumerate(zip(layers, blocks, part_states, strict=True)):
        with linalg.label(layer.path):
            part, part_state = block.factorise(moments[i], part_state)
        parts.append(part)
        after.append(part_state)
    paths = tuple(layer.path for layer in layers)
    return BlockDiagonalFactors(tuple(blocks), paths, tuple(parts)), tuple(after)


def damped_blocks(
    factored: BlockDiagonalFactors,
    part_states: Sequence[PartState],
    strength: DampingStrength,
    previous: Any,
) -> tuple[BlockInverse, ...]:
    """Calls every block's ``damped`` under its layer's name.

    ``previous`` is the preconditioner in use; where it is of a structure without ``inverses``, or
    of another number of layers, the blocks start cold.
    """
    before = traits(previous, PreconditionerTraits).inverses
    if before is None or len(before) != len(factored.parts):
        before = (None,) * len(factored.parts)
    inverses = []
    at_once = _made_at_once(factored, strength)
    for i, (block, path, part, part_state, last) in enumerate(
        zip(factored.blocks, factored.paths, factored.parts, part_states, before, strict=True)
    ):
        if i in at_once:
            inverses.append(at_once[i])
            continue
        with linalg.label(path):
            inverses.append(block.damped(part, part_state, strength, last))
    return tuple(inverses)


def _made_at_once(
    factored: BlockDiagonalFactors, strength: DampingStrength
) -> dict[int, BlockInverse]:
    """The damped blocks by layer that say which inverses they need, for those of one size to be
    made together.
    """
    asked: list[linalg.Asked] = []
    made: dict[int, tuple[int, Any]] = {}
    for i, (block, path, part) in enumerate(
        zip(factored.blocks, factored.paths, factored.parts, strict=True)
    ):
        own = traits(block, BlockTraits)
        wanted = own.asks(part, strength) if own.asks is not None and _as_asked(block) else None
        if wanted is not None and own.made_of is not None:
            made[i] = len(asked), own.made_of
            asked += [each._replace(label=(path, *each.label)) for each in wanted]
    if not made:
        return {}
    inverses = linalg.damped_inverses(asked)
    ends = [*[first for first, _ in made.values()][1:], len(asked)]
    return {
        i: by(factored.parts[i], strength, inverses[first:end])
        for (i, (first, by)), end in zip(made.items(), ends, strict=True)
    }


def _as_asked(block: Any) -> bool:
    """Whether ``damped`` is of the class that says what it ``asks``: a subclass may have changed
    it.
    """
    owner = next((kind for kind in type(block).__mro__ if "damped" in vars(kind)), None)
    return owner is not None and "asks" in vars(owner)
