"""The structure ``sharded``: another structure whose blocks are inverted by one process each.

The costs of the layers are balanced over the processes, each factorises and damps its
own blocks, and all get the results. So every process holds the whole preconditioner, and a saved
run is the same on each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab import KfacLabError, lab
from kfac_lab.core import linalg
from kfac_lab.core.parameters import parameter
from kfac_lab.core.protocols import Block, InverseOperator, Layer, MomentTable, PartState
from kfac_lab.core.state import DampingStrength
from kfac_lab.core.traits import PreconditionerTraits, StructureTraits, forwarded, traits
from kfac_lab_ddp.collective import Distributed
from kfac_lab_ddp.exchange import Told, exchanged

__all__ = ["Handed", "Sharded", "ShardedFactors"]

_RESULTS: ContextVar[Sequence[Any]] = ContextVar("kfac_lab_ddp_results")


@dataclass(frozen=True)
class Handed:
    """What the inner structure is given for a block: it hands over what the block's owner made."""

    index: int
    block: Any

    def wants(self) -> Sequence[str]:
        """The block's own."""
        wanted: Sequence[str] = self.block.wants()
        return wanted

    def factorise(self, moments: Any, part_state: PartState) -> tuple[None, PartState]:
        """Nothing for the inner structure to keep: the parts stand in ``ShardedFactors``."""
        return None, _RESULTS.get()[self.index]

    def damped(
        self, factored: None, part_state: PartState, strength: DampingStrength, previous: Any
    ) -> Any:
        """The damped inverse from its owner."""
        return _RESULTS.get()[self.index]


@dataclass(frozen=True)
class ShardedFactors:
    """What the inner structure factorised, and each block's part, whichever process made it."""

    inner: Any
    blocks: tuple[Handed, ...]
    paths: tuple[str, ...]
    costs: tuple[float, ...]
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Sharded:
    """``inner`` with its blocks shared out over the processes; needs ``collective=distributed``.

    A layer's block is one item: its cost counts as d_in³ + d_out³ for the factors that it wants
    dense, and is given to the process with the least so far. What a structure does besides, such as
    the Ψ and Σ of ``block_tridiagonal``, every process does for itself. In a single process it is
    ``inner`` itself.
    """

    inner: str = parameter(
        "block_diagonal", section="Osawa et al. 2019", help="the structure, as a recipe names it"
    )

    def check(self) -> str | None:
        """``inner`` must name a structure, and no ``sharded`` one."""
        try:
            inner = self._structure()
        except KfacLabError as error:
            return f"inner={self.inner!r}: {error}"
        if isinstance(inner, Sharded):
            return f"inner={self.inner!r} is shared out already: name the structure itself"
        return None

    @property
    def traits(self) -> StructureTraits:
        """The inner structure's."""
        return forwarded(self._structure(), StructureTraits)

    def pairs(self, chains: Sequence[Sequence[int]]) -> Sequence[tuple[int, int]]:
        """The inner structure's."""
        pairs: Sequence[tuple[int, int]] = self._structure().pairs(chains)
        return pairs

    def factorise(
        self,
        layers: Sequence[Layer],
        blocks: Sequence[Block],
        moments: MomentTable,
        part_states: Sequence[PartState],
    ) -> tuple[Any, Sequence[PartState]]:
        """Every block's own costly part, made by its owner, then the inner structure's.

        Raises:
            KfacLabError: another process could not make its share.
        """
        inner = self._structure()
        if self.alone():
            alone: tuple[Any, Sequence[PartState]] = inner.factorise(
                layers, blocks, moments, part_states
            )
            return alone
        paths = tuple(layer.path for layer in layers)
        costs = tuple(_cost(*pair) for pair in zip(layers, blocks, strict=True))
        tensors = (moments[i][name] for i, b in enumerate(blocks) for name in b.wants())
        device = next((t.device for t in tensors), torch.device("cpu"))
        made = _shared_out(
            paths,
            costs,
            lambda i: blocks[i].factorise(moments[i], part_states[i]),
            part_states,
            device,
        )
        handed = tuple(Handed(i, block) for i, block in enumerate(blocks))
        factored, after = _inside(
            [part_state for _, part_state in made],
            lambda: inner.factorise(layers, handed, moments, part_states),
        )
        parts = tuple(part for part, _ in made)
        return ShardedFactors(factored, handed, paths, costs, parts), after

    def damped(
        self,
        factored: Any,
        part_states: Sequence[PartState],
        strength: DampingStrength,
        previous: Any,
    ) -> InverseOperator:
        """Every block's damped inverse, made by its owner, then the inner structure's.

        What a single process factorised is damped as a single process does it.

        Raises:
            KfacLabError: another process could not make its share.
        """
        inner = self._structure()
        if not isinstance(factored, ShardedFactors):
            alone: InverseOperator = inner.damped(factored, part_states, strength, previous)
            return alone
        before = traits(previous, PreconditionerTraits).inverses
        if before is None or len(before) != len(factored.parts):
            before = (None,) * len(factored.parts)
        known = [
            (part, part_state, last)
            for part, part_state, last in zip(factored.parts, part_states, before, strict=True)
        ]
        inverses = _shared_out(
            factored.paths,
            factored.costs,
            lambda i: factored.blocks[i].block.damped(
                factored.parts[i], part_states[i], strength, before[i]
            ),
            known,
            torch.as_tensor(strength.gamma).device,
        )
        result: InverseOperator = _inside(
            inverses, lambda: inner.damped(factored.inner, part_states, strength, previous)
        )
        return result

    def alone(self) -> bool:
        """Whether there is nobody to share with, so that the inner structure does it all."""
        return Distributed().size == 1

    def _structure(self) -> Any:
        return lab.component("structure", self.inner)


def _cost(layer: Layer, block: Block) -> float:
    """Operations of a block's refresh, up to a factor: its dense factors' sides cubed."""
    wanted = {name.partition(".")[0] for name in block.wants() if not name.endswith(_VECTORS)}
    sides = {"A": layer.d_in, "G": layer.d_out}
    return float(sum(sides[name] ** 3 for name in wanted) + layer.d_in * layer.d_out)


_VECTORS = (".diagonal", ".mean")


def _inside(results: Sequence[Any], work: Callable[[], Any]) -> Any:
    token = _RESULTS.set(results)
    try:
        return work()
    finally:
        _RESULTS.reset(token)


# --- the work of one process, and what it has to tell ---------------------------------------------


@dataclass(frozen=True)
class _Remark:
    """A factorisation that failed as it was: what it took, or that nothing helped."""

    label: tuple[str, ...]
    operation: str
    ok: bool
    jitter: float | None


def _shared_out(
    paths: Sequence[str],
    costs: Sequence[float],
    work: Callable[[int], Any],
    known: Sequence[Any],
    device: torch.device,
) -> list[Any]:
    """``work(i)`` of every layer on every process, each done by its owner.

    A process escalates its own factorisations (``linalg.Attempt``): only it knows of them. What
    came of those that failed at first is told to all, so that all go on in the same way.
    """
    collective = Distributed()
    owners = collective.owner(paths, costs)
    own = [i for i, owner in enumerate(owners) if owner == collective.rank]
    mine: dict[int, Any] = {}
    told = Told()
    failure: Exception | None = None
    try:
        mine, told.remarks = _escalated(paths, own, work)
    except Exception as error:
        failure = error
        told.error = f"{type(error).__name__}: {error}"
    if collective.size == 1 and failure is None:
        results, remarks = [mine[i] for i in range(len(paths))], told.remarks
    elif collective.size > 1:
        try:
            results, remarks = exchanged(collective, owners, mine, known, told, device)
        except KfacLabError:
            if failure is None:
                raise
    if failure is not None:
        raise failure
    for remark in remarks:
        _pass_on(remark, device)
    return results


def _escalated(
    paths: Sequence[str], own: Sequence[int], work: Callable[[int], Any]
) -> tuple[dict[int, Any], list[_Remark]]:
    """This process's results, its factorisations tried again where they failed."""
    attempt = linalg.Attempt()
    while True:
        mine = {}
        with attempt:
            for i in own:
                with linalg.label(paths[i]):
                    mine[i] = work(i)
        failed = attempt.failed(linalg.host(attempt.flags())) if attempt.calls else ()
        following = attempt.escalate(failed)
        if following is None:
            break
        attempt = following
    hopeless = {id(failure.call) for failure in failed}
    raised = [call for call in attempt.calls if call.jitter is not None or id(call) in hopeless]
    amounts = linalg.host([c.jitter for c in raised if c.jitter is not None]) if raised else []
    numbers = iter(amounts)
    return mine, [
        _Remark(
            call.label,
            call.operation,
            id(call) not in hopeless,
            next(numbers) if call.jitter is not None else None,
        )
        for call in raised
    ]


def _pass_on(remark: _Remark, device: torch.device) -> None:
    """Enters a remark where every process's engine looks: the attempt in force."""

    def number(value: float) -> Tensor:
        return torch.full((), value, dtype=torch.float64, device=device)

    outcome = linalg.Outcome(
        (),
        number(1.0 if remark.ok else 0.0),
        None if remark.jitter is None else number(remark.jitter),
    )
    with linalg.label(*remark.label):
        linalg.guarded(remark.operation, lambda level: outcome, levels=1)
