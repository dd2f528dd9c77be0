"""The nine verbs and who plays them. Read this file first.

Sections and appendices, here and in every other docstring, are those of arXiv:1503.05671v7.

One step of K-FAC (section 9) is

    sample · observe · invert · propose · model · choose · judge · move · average

and ``engine/step.py`` is that sequence and nothing else. Each verb is played by a *strategy*:
a small frozen dataclass of its own parameters that has the methods of one Protocol below; what it
is given (layers, moments, a batch as it was seen) is in ``core/given.py``. What a
strategy has to remember is its *part_state*, a dict of tensors and numbers that the engine keeps in
the State. It starts as ``init()`` returns it ({} where there is no ``init``); a strategy returns a
new dict and never writes into the old one or into its tensors: that is what lets a step be
committed or dropped.

Shapes: N cases, S shared positions (1 for a plain network), ``d_in`` counts the homogeneous 1,
k vectors in a basis. Matrices of a layer are ``[d_out, d_in]``, the last column the bias. ``ā``
are a layer's inputs with the 1 appended, ``g`` the derivatives of one case's loss with respect to
its pre-activations. All scalars inside a step are 0-dim float64 tensors on the device.

Host reads: a steady step reads nothing from an accelerator. So the methods marked ``device-only``
use tensor arithmetic and ``torch.where`` in place of Python's ``if``; where a read is unavoidable
on a refresh step, ``linalg.host`` is the one function that may.

What a strategy needs, gives and promises beside these methods it declares as its ``traits``, and
optional methods are there or not: ``core/traits.py`` has a frozen class of both for every slot, and
one function that reads them. Any component may have ``check() -> str | None`` (a sentence when its
fields contradict each other).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from kfac_lab.core.given import (
    Evaluation,
    Layer,
    Moments,
    MomentTable,
    PartState,
    Space,
    SubspaceModel,
)
from kfac_lab.core.likelihood import Likelihood
from kfac_lab.core.state import DampingStrength, Due, Signals, StepRecord
from kfac_lab.core.vector import Vec

__all__ = [
    "Average",
    "Batch",
    "Block",
    "BlockInverse",
    "Collective",
    "Damping",
    "Estimator",
    "Evaluation",
    "InverseOperator",
    "Layer",
    "Memo",
    "Model",
    "MomentTable",
    "Moments",
    "Momentum",
    "PartState",
    "QuadraticModel",
    "Restriction",
    "Schedule",
    "Space",
    "Stepper",
    "Structure",
    "SubspaceModel",
]
Memo = PartState  # its former name


# --- the slots ----------------------------------------------------------------------------------


@runtime_checkable
class Estimator(Protocol):
    """observe: where the derivatives g come from (sections 2.2 and 5)."""

    fraction: float  # τ1: S1 is the leading ⌈τ1 m⌉ rows of the batch

    def decay(self, k: int) -> float:
        """ε of step k = 1, 2, …: moments ← ε·moments + (1−ε)·new; 0 at k = 1, they open at zero."""
        ...

    def cotangents(
        self,
        likelihood: Likelihood,
        outputs: Tensor,
        targets: Tensor,
        draw: Callable[[str], Tensor],
    ) -> Iterator[Tensor]:
        """Cotangents on the outputs, each of their shape; Σ over them of g gᵀ estimates G.

        ``draw(purpose)`` gives this step's seeded uniforms in (0, 1), of the outputs' shape.
        """
        ...

    # ``EstimatorTraits``: unbiased=False where the sum's mean is not F_R, as for the labels.
    # Optional: rows(m) -> |S1|, in place of ⌈fraction·m⌉


@runtime_checkable
class Block(Protocol):
    """invert, one layer: the curvature of a layer, its damped inverse (sections 3, 4 and 6.3)."""

    def wants(self) -> Sequence[str]:
        """The moments it needs; see :class:`Moments` for the names."""
        ...

    def factorise(self, moments: Moments, part_state: PartState) -> tuple[Any, PartState]:
        """The costly part, free of γ; must not keep references into ``moments``."""
        ...

    def damped(
        self, factored: Any, part_state: PartState, strength: DampingStrength, previous: Any
    ) -> BlockInverse:
        """The inverse for one candidate; ``previous`` is the one in use, or None (warm start)."""
        ...

    # Optional (``BlockTraits``): init() -> part_state
    #   observe(part_state, rows, cotangents, weight) -> part_state
    #       for what is not a second moment: rows [N, S, d_in], cotangents [C, N, S, d_out] (C is 1
    #       for sampled), weight = 1 − ε; runs on the statistics rows of a step
    #       observes=False says that this instance needs none: its rows are not kept
    #   fitted(d_out, d_in, limit, one_hot) -> Block
    #       what stands for the block in a layer with a side above ``limit``, or, where ``one_hot``,
    #       with an Ā that is diagonal: factors that take less memory; or itself
    #   asks(factored, strength) -> the ``linalg.Asked`` inverses that damped needs, or None; and
    #   made_of(factored, strength, inverses) -> what damped gives: an accelerator inverts those of
    #   several blocks at once. Whoever overrides damped overrides both.
    #   product(moments, part_state, matrix) -> matrix
    #       the undamped curvature times a matrix, which approximate_fisher needs


@runtime_checkable
class BlockInverse(Protocol):
    """A damped inverse of one block; a frozen dataclass of tensors, so that it can be saved."""

    def apply(self, matrix: Tensor) -> Tensor:
        """U with vec(U) = (block)⁻¹ vec(V): ``[d_out, d_in]`` to ``[d_out, d_in]``."""
        ...

    def dense(self) -> Tensor:
        """The inverse for column-stacked vec: ``[d_in·d_out, d_in·d_out]``; for tests and plots."""
        ...

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """The damped Ā [d_in, d_in] and G [d_out, d_out] where the block is their product; or None.

        None ends its chain (section 4.3).
        """
        ...


@runtime_checkable
class Structure(Protocol):
    """invert, all layers: how the blocks make one preconditioner (section 4)."""

    def pairs(self, chains: Sequence[Sequence[int]]) -> Sequence[tuple[int, int]]:
        """Which cross moments to keep; ``chains`` are runs of layers that may be linked."""
        ...

    def factorise(
        self,
        layers: Sequence[Layer],
        blocks: Sequence[Block],
        moments: MomentTable,
        part_states: Sequence[PartState],
    ) -> tuple[Any, Sequence[PartState]]:
        """What all candidates share; the result is saved with the run."""
        ...

    def damped(
        self,
        factored: Any,
        part_states: Sequence[PartState],
        strength: DampingStrength,
        previous: Any,
    ) -> InverseOperator:
        """The preconditioner for one candidate; saved with the run."""
        ...

    # Optional (``StructureTraits``): joined(values) -> what ``factorise`` or ``damped`` gives of
    #   all layers, made of what it gives of each layer alone, bit for bit: then a schedule may
    #   spread a refresh by layer. keeps_blocks=False where P of unlinked layers is not the blocks'
    #   own damped inverses, or P⁻¹ has not their curvature on its diagonal; by_case=True where it
    #   wants each case's rows of the gradient (then P may have apply_cases(cases, gradient),
    #   and pulling(ηθ, m), after which its apply_cases adds P ηθ, kept as ``pulls``, which is None
    #   before; with pulled_as(the one before) it may take over that one's)


@runtime_checkable
class InverseOperator(Protocol):
    """The damped inverse of the whole approximate Fisher."""

    def apply(self, vector: Vec) -> Vec:
        """P v."""
        ...


@runtime_checkable
class QuadraticModel(Protocol):
    """quadratic_model: M on a small basis (section 6.1, appendix C).

    ``fraction`` is τ2: S2 is the leading ⌈τ2 m⌉ rows of the batch.
    """

    fraction: float

    def restrict(self, evaluation: Evaluation, basis: Sequence[Vec]) -> SubspaceModel:
        """M restricted to the span of ``basis``."""
        ...

    # ``ModelTraits``: exact=True where curvature is vᵀFv of the exact F on S2, to which the kit
    #   then holds it; needs_tangents=False where it asks for no tangents; has_curvature=False where
    #   M is linear, so that ρ means nothing. Optional: rows(m) -> |S2|; by_spread=True, with
    #   spread_rows(m, spread) -> |S2| and case_curvature(evaluation, δ) -> means over S2 of the
    #   cases' δᵀF_iδ and of their squares, where the spread of these has a say


@runtime_checkable
class Damping(Protocol):
    """choose and judge: λ and γ (section 6)."""

    def init(self, problem: Any) -> tuple[DampingStrength, PartState]:
        """The strengths at step 1; ``problem.l2`` is η."""
        ...

    def candidates(self, strength: DampingStrength, due: Due) -> tuple[DampingStrength, ...]:
        """Strengths to try in this step; [0] is the current one, the others differ in γ alone, and
        only where ``due.gamma`` are there any. Device-only.
        """
        ...

    def adapt(
        self, strength: DampingStrength, part_state: PartState, record: StepRecord
    ) -> tuple[DampingStrength, PartState]:
        """Called when ``due.lam``, with ``record.rho`` set. Device-only."""
        ...

    # Optional (``DampingTraits``):
    #   retry(strength, part_state, record, tries) -> DampingStrength | None
    #       refresh steps only, after choose: a strength means invert, propose and choose again with
    #       it; may read through linalg.host; bounded by the engine
    #   on_swap(strength) -> DampingStrength
    #       at a swap to this damping, with λ and γ that are kept: γ may follow λ, λ stays
    # follows_rho: whether λ falls with ρ, to which the kit then holds it; None does not say
    # needs_rho=False where ``adapt`` goes by the step alone: then it is called with ρ = NaN, also
    #   where the model gives λ's adaptation no ground


@runtime_checkable
class Momentum(Protocol):
    """propose and choose: the basis of the step and its coefficients (sections 6.4 and 7)."""

    def basis(
        self, space: Space, direction: Vec, previous: Vec | None, part_state: PartState
    ) -> tuple[Vec, ...]:
        """The vectors to combine; [0] is ``direction``; ``previous`` is δ0, None at first."""
        ...

    def choose(self, restriction: SubspaceModel, strength: DampingStrength, step: int) -> Tensor:
        """The coefficients ``[k]``. Device-only."""
        ...

    # Optional (``MomentumTraits``): init() -> part_state; and at commit
    #   update(part_state, coefficients, record) -> part_state; before the candidates
    #   length(part_state, space, previous) -> (part_state, factor): the step is ``factor`` times
    #   what ``choose`` says, None for 1 (``space`` has no preconditioner yet). adapts=False where
    #   the coefficients
    #   are not the model's minimiser (ρ has no ground); minimises=True where they always are: then
    #   the kit holds ``choose`` to it


@runtime_checkable
class Schedule(Protocol):
    """When to do what (section 8)."""

    def due(self, step: int, part_state: PartState, signals: Signals) -> tuple[Due, PartState]:
        """What step k = 1, 2, … has to do."""
        ...

    # Optional (``ScheduleTraits``): init() -> part_state; drift_period, every how many steps the
    #   engine measures the factors' drift; spread_over(step) -> over how many steps the refresh
    #   due at ``step`` is spread: n > 1 takes the moments of that step, builds on the n − 1 that
    #   follow, and the last of these has the new inverse


@runtime_checkable
class Batch(Protocol):
    """sample: how many cases (section 13)."""

    def size(self, step: int, available: int | None) -> int:
        """m of step k; ``available`` is ``|S|``, or None where data come from a callable."""
        ...


@runtime_checkable
class Average(Protocol):
    """average: iterate averaging (section 13). θ is the list of the trained tensors.

    θ̄ has their shapes.
    """

    def init(self, theta: Sequence[Tensor]) -> PartState:
        """Before the first step."""
        ...

    def update(self, part_state: PartState, theta: Sequence[Tensor]) -> PartState:
        """After a step, with the θ it leads to."""
        ...

    def read(self, part_state: PartState) -> Sequence[Tensor] | None:
        """θ̄, or None where there is none."""
        ...


@runtime_checkable
class Collective(Protocol):
    """Several processes as one (Osawa et al. 2019); ``single_process`` does nothing.

    The whole batch is the processes' shares in turn: of P processes, rank r has cases r, r + P, ….
    Means are taken of loss, gradient, moments, restriction, products with F, and of the floating
    tensors of an observing block's state. θ and the module's buffers are rank 0's at attach, the
    buffers after every step as well.
    """

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor, of any shape, by its mean over processes, in place."""
        ...

    def owner(self, keys: Sequence[Any], costs: Sequence[float]) -> Sequence[int]:
        """Which process builds which part."""
        ...

    def broadcast_(self, tensors: Sequence[Tensor], owner: int) -> None:
        """Overwrites the tensors, of any shapes, with the owner's, in place."""
        ...

    # rank: int, size: int
    # ``CollectiveTraits``: processes=True where it works by torch.distributed's default group: the
    #   kit then tries it between two processes


@runtime_checkable
class Stepper(Protocol):
    """A method: what a Run advances. ``attach(problem, recipe, seed)`` makes one.

    It uses ``recipe["batch"]`` and ``recipe["average"]``, and trains ``problem.model`` in place.
    """

    def step(self) -> StepRecord:
        """One step."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything to go on bit for bit, as dicts of tensors and numbers."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Restores what ``state`` gave."""
        ...

    # Optional, all six or none; without them the run counts and times the steps, and there is no
    # average and no swap:
    #   step_count: int, k of the last step made; seconds: float, training time so far
    #   names: tuple[str, ...], the trained parameters; average() -> tensors in their order, or None
    #   coverage() -> list of core.capture.CoverageRow
    #   swap(recipe, named): batch and average from the next step on
    # And with these: check(recipe), RecipeError where ``swap`` would refuse; it changes nothing


Restriction = SubspaceModel  # its former name
Model = QuadraticModel  # its former name
Preconditioner = InverseOperator  # its former name
