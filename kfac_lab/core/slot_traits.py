"""The traits of each slot: what its parts may need, give, read and promise.

``core.traits`` says how they are declared and reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from kfac_lab.core.slots import BySlot

__all__ = [
    "BOUND",
    "NEED",
    "OWN",
    "SLOT_TRAITS",
    "AverageTraits",
    "BatchTraits",
    "BlockTraits",
    "CollectiveTraits",
    "CurvatureTraits",
    "DampingTraits",
    "EstimatorTraits",
    "InverseTraits",
    "LayerTraits",
    "LikelihoodTraits",
    "Method",
    "MethodTraits",
    "ModelTraits",
    "MomentumTraits",
    "PreconditionerTraits",
    "RowsTraits",
    "ScheduleTraits",
    "StepperTraits",
    "StructureTraits",
    "Traits",
    "ViewTraits",
]

Method = Callable[..., Any]

# What binds a part that wraps another. BOUND: the inner part's limits are the wrapper's. NEED: what
# the inner part needs the wrapper needs, and it may need more. FREE: the wrapper's too, unless it
# says otherwise. OWN: a promise about the part itself, which says nothing of a wrapper.
BOUND, NEED, FREE, OWN = "bound", "need", "free", "own"


def _flag(default: Any, kind: str, *, old: str | tuple[str, str] | None = None) -> Any:
    """A declared trait; ``old`` is the attribute that said the same before traits were declared."""
    olds = (old,) if isinstance(old, str) else old
    return field(default=default, metadata={"wrapper": kind, "old": olds})


def _method(kind: str = BOUND) -> Any:
    """A method that a part may have: bound to the part, or None."""
    return field(default=None, metadata={"wrapper": kind, "method": True})


def _attribute(default: Any) -> Any:
    """What a part may have as an attribute of the same name: it changes, and is never declared."""
    return field(default=default, metadata={"wrapper": FREE, "attribute": True})


@dataclass(frozen=True)
class Traits:
    """What all slots' traits are."""

    def settled(self) -> Any:
        """The traits as they are used, where one says something about another."""
        return self


@dataclass(frozen=True)
class RowsTraits(Traits):
    """Of what takes the leading rows of a batch."""

    rows: Method | None = _method(OWN)  # (m) -> how many of m; None: ⌈fraction·m⌉
    # True: ``spread_rows(m, spread)`` says how many. A spread is a standard deviation over a mean,
    # at the last refresh, NaN before: an estimator's that of the cases' losses, a model's that of
    # their curvatures along the step.
    by_spread: bool = _flag(False, OWN)
    spread_rows: Method | None = _method(OWN)


@dataclass(frozen=True)
class EstimatorTraits(RowsTraits):
    """Of an estimator."""

    unbiased: bool = _flag(True, BOUND, old="unbiased")  # False: Σ g gᵀ does not estimate F_R
    exact_output: bool = _flag(False, OWN)  # G of the last layer is the mean F_R, not sampled
    of_loss: bool = _flag(False, OWN)  # its one cotangent is the gradient of the loss itself
    # Cotangents of different cases are independent with mean zero, so that a sum over cases has
    # the sum of their second moments; else the engine gives each case a sign of its own.
    independent: bool = _flag(False, BOUND)


@dataclass(frozen=True)
class BlockTraits(Traits):
    """Of a block."""

    init: Method | None = _method()  # () -> its first part_state
    observe: Method | None = _method()  # (part_state, rows, cotangents, weight) -> part_state
    observes: bool = _flag(True, OWN, old="observes")  # False: this instance needs no ``observe``
    product: Method | None = (
        _method()
    )  # (moments, part_state, matrix) -> undamped curvature · matrix
    with_diagonal_g: Method | None = _method(OWN)  # () -> the same block for a G that is diagonal
    # (factored, strength) -> which ``linalg.Asked`` inverses ``damped`` needs, None: it has ways of
    # its own; and (factored, strength, inverses) -> what ``damped`` gives: those of several blocks
    # are made in one call
    asks: Method | None = _method(OWN)
    made_of: Method | None = _method(OWN)
    # (d_out, d_in, limit, one_hot) -> the block for a layer with sides above ``limit``
    fitted: Method | None = _method(OWN)

    def settled(self) -> BlockTraits:
        """An ``observe`` that this instance does not need is none."""
        if self.observes == (self.observe is not None):
            return self
        return replace(self, observe=self.observe if self.observes else None, observes=False)


@dataclass(frozen=True)
class StructureTraits(Traits):
    """Of a structure."""

    # False: P of unlinked layers is not the blocks' own damped inverses, or P⁻¹ has not their
    # curvature on its diagonal.
    keeps_blocks: bool = _flag(True, BOUND, old="keeps_blocks")
    by_case: bool = _flag(False, BOUND, old="low_rank")  # P∇h from each case's rows of the gradient
    # (values) -> what ``factorise`` or ``damped`` gives of all layers, of what each alone gives
    joined: Method | None = _method(OWN)


@dataclass(frozen=True)
class PreconditionerTraits(Traits):
    """Of what a structure's ``damped`` gives."""

    # (cases, gradient) -> P∇h by the cases' rows, which lack ηθ; (ηθ, m) -> itself with P ηθ kept;
    # (an earlier one) -> itself with that one's, or None where it has none that fits; what is kept.
    # Where that is None and η is not 0, P∇h is asked for by the whole gradient.
    apply_cases: Method | None = _method()
    pulling: Method | None = _method()
    pulled_as: Method | None = _method()
    pulls: Any = _attribute(None)
    inverses: tuple[Any, ...] | None = _attribute(None)  # one damped block per layer


@dataclass(frozen=True)
class InverseTraits(Traits):
    """Of what a block's ``damped`` gives."""

    A_shift: Any = _attribute(None)  # what was added to the diagonal of Ā
    G_shift: Any = _attribute(None)  # … and of G


@dataclass(frozen=True)
class ModelTraits(RowsTraits):
    """Of a quadratic model."""

    exact: bool = _flag(False, OWN, old="exact")  # the curvature is vᵀFv of the exact F on S2
    needs_tangents: bool = _flag(True, NEED, old="needs_tangents")  # it asks for J v
    # (evaluation, δ) -> means over S2 of the cases' δᵀF_iδ and of their squares [2], for one that
    # goes by the spread
    case_curvature: Method | None = _method(OWN)
    has_curvature: bool = _flag(
        True, BOUND, old="grounded"
    )  # it has curvature, so that ρ means something


@dataclass(frozen=True)
class DampingTraits(Traits):
    """Of a damping."""

    needs_rho: bool = _flag(
        True, NEED, old="needs_rho"
    )  # False: ``adapt`` goes by the step, ρ is NaN
    follows_rho: bool | None = _flag(
        None, FREE, old="follows_rho"
    )  # λ falls with ρ; None: not said
    # The ρ between which λ stays.
    band: tuple[float, float] | None = _flag(None, FREE, old=("lower", "upper"))
    # h that rises by this factor takes the last step back; 0: never. (strength) -> a larger one.
    guard: float = _attribute(0.0)
    back: Method | None = _method()
    retry: Method | None = (
        _method()
    )  # (strength, part_state, record, tries) -> DampingStrength or None
    on_swap: Method | None = (
        _method()
    )  # (strength) -> DampingStrength, with a λ and γ that are kept


@dataclass(frozen=True)
class MomentumTraits(Traits):
    """Of a momentum."""

    adapts: bool = _flag(True, BOUND, old="adapts")  # False: the coefficients are not the model's
    minimises: bool = _flag(False, OWN, old="minimises")  # they are its minimiser, always
    # Python counts in its part_state, which it asks by ``core.program.branch`` and ``counted``.
    counts: tuple[str, ...] = _flag((), OWN)
    init: Method | None = _method()  # () -> its first part_state
    update: Method | None = _method()  # (part_state, coefficients, record) -> part_state, at commit
    length: Method | None = _method()  # (part_state, space, previous) -> (part_state, factor)


@dataclass(frozen=True)
class ScheduleTraits(Traits):
    """Of a schedule."""

    # Every how many steps it wants to know how far the diagonal moments have moved.
    drift_period: int | None = _flag(None, BOUND, old="check")
    init: Method | None = _method()  # () -> its first part_state
    # (step) -> over how many steps new factors that are due at it are spread; 1: made at once
    spread_over: Method | None = _method()


@dataclass(frozen=True)
class BatchTraits(Traits):
    """Of a batch: nothing so far."""


@dataclass(frozen=True)
class AverageTraits(Traits):
    """Of an average: nothing so far."""


@dataclass(frozen=True)
class CollectiveTraits(Traits):
    """Of a collective."""

    rank: int = _attribute(0)
    size: int = _attribute(1)
    processes: bool = _flag(False, FREE, old="processes")  # by torch.distributed's default group


@dataclass(frozen=True)
class MethodTraits(Traits):
    """Of a method: nothing so far."""


@dataclass(frozen=True)
class StepperTraits(Traits):
    """Of a stepper: with all of the first six it counts, averages and swaps by itself."""

    step_count: int | None = _attribute(None)
    seconds: float | None = _attribute(None)
    names: tuple[str, ...] | None = _attribute(None)
    average: Method | None = _method()
    coverage: Method | None = _method()
    swap: Method | None = _method()
    check: Method | None = _method()  # (recipe): RecipeError where ``swap`` would refuse
    record: Any = _attribute(None)  # of the last step committed
    skip: Method | None = _method()  # (batch): a step that changes nothing but k
    swaps: tuple[str, ...] | None = _attribute(None)  # the slots that ``swap`` takes; None: any
    skipped: tuple[int, ...] = _attribute(())  # steps found to be, which nobody was told of yet

    @property
    def lacks(self) -> tuple[str, ...]:
        """Which of the six are not there."""
        return tuple(f.name for f in fields(self)[:6] if getattr(self, f.name) is None)


@dataclass(frozen=True)
class LayerTraits(Traits):
    """Of a layer."""

    record: Method | None = _method()  # one call while rows are recorded
    tangent: Method | None = _method()  # with ``pullback``: the explicit plan
    pullback: Method | None = _method()
    partial_tangent: Method | None = _method()  # where matrices may be None, and tangents fewer
    groups: int = _attribute(1)  # blocks of a matrix with positions [S, groups]
    one_hot: bool = _attribute(False)  # a row has one entry: Ā is diagonal
    summed: bool = _attribute(False)  # a case's rows are added up: its own gradient is its one row


@dataclass(frozen=True)
class LikelihoodTraits(Traits):
    """Of a likelihood."""

    predictions: Method | None = _method()  # (outputs) -> how many predictions a case makes
    # (outputs) -> (d, r), each like the outputs: F_R is diag(d) − r rᵀ; r is None where it is 0
    fisher_rows: Method | None = _method()
    diagonal: bool = _flag(False, OWN)  # F_R is: r is always None
    nonnegative: bool = _flag(False, OWN)  # ``loss`` is never below 0, whatever the outputs


@dataclass(frozen=True)
class CurvatureTraits(Traits):
    """Of a stepper that keeps curvature: what whoever looks at it finds there."""

    network: Any = _attribute(None)  # its ``layers``
    store: Any = _attribute(None)  # its second moments; None before the first batch
    state_: Any = _attribute(None)  # all that persists


@dataclass(frozen=True)
class ViewTraits(Traits):
    """Of a view: one of the two methods, and what may stand beside it."""

    plot: Method | None = _method()  # (runs, seen) -> Plot
    draw: Method | None = _method()  # (axes, history)
    title: str = _attribute("")
    wants: tuple[str, ...] = _attribute(())  # what of a run it is given as ``seen``
    heavy: bool = _attribute(False)  # dear to look at: asked by its cost


#: slot → its traits: what a recipe fills, who steps first, then in the order of the step's verbs
SLOT_TRAITS: Mapping[str, type[Traits]] = BySlot(
    method=MethodTraits,
    estimator=EstimatorTraits,
    block=BlockTraits,
    structure=StructureTraits,
    quadratic_model=ModelTraits,
    damping=DampingTraits,
    momentum=MomentumTraits,
    schedule=ScheduleTraits,
    batch=BatchTraits,
    average=AverageTraits,
    collective=CollectiveTraits,
)
