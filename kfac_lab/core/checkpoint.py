"""The engine's state as one tree of tensors and numbers, and back: bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import trees
from kfac_lab.core.exchange import exchange
from kfac_lab.core.state import Bound, State, Strength
from kfac_lab.errors import CheckpointError

__all__ = ["cloned", "restore", "saved"]

FORMAT = 2
cloned = trees.copied


def saved(engine: Any, *, parameters: bool = True) -> dict[str, Any]:
    """Everything needed to go on bit for bit: the State, θ, buffers, seed and rate.

    Without ``parameters`` θ and the buffers are left out, for whoever keeps them elsewhere.
    """
    theta = engine.network.named(engine._theta)
    buffers = dict(engine.problem.model.named_buffers())
    tree = {
        "state": engine.state_,
        "seed": engine.seed,
        "lr": engine.lr,
        "shapes": {name: tuple(t.shape) for name, t in theta.items()},
        "theta": theta if parameters else None,
        "buffers": buffers if parameters else None,
    }
    return {"format": FORMAT, "tree": trees.copied(trees.encoded(tree))}


def restore(engine: Any, state: dict[str, Any]) -> None:
    """Restores what :func:`saved` gave, for the same problem and recipe.

    The new state is made beside the old; one exchange puts it in its place.

    Raises:
        CheckpointError: the state belongs to another network or another format; nothing has
            changed then.
    """
    values = _read(state, engine)
    new: State = values["state"]
    named = engine.network.named(engine._theta)
    shapes = {n: tuple(t.shape) for n, t in named.items()}
    if shapes != values["shapes"]:
        different = sorted(set(shapes.items()) ^ set(values["shapes"].items()), key=str)[:3]
        raise CheckpointError(
            "the state belongs to another network: parameters differ, such as "
            + ", ".join(f"{n} {tuple(s)}" for n, s in different)
        )
    buffers = dict(engine.problem.model.named_buffers())
    if values["buffers"] is not None:
        here, there = _kinds(buffers), _kinds(values["buffers"])
        if here != there:
            names = sorted({str(n) for n, _ in set(here.items()) ^ set(there.items())})[:3]
            raise CheckpointError(
                f"the state belongs to another network: buffers differ, such as {names}"
            )
    bound = engine.state_.bound
    if new.bound is not None:
        # What a batch would tell is in the state, where none was seen yet; and by which path
        # products are taken is part of their last digits.
        bound = bound or new.bound
        if bound.tangent_path != "explicit":
            bound = bound._replace(tangent_path=new.bound.tangent_path)
    layout = None
    if bound is not None:
        layout = engine.layout_of(engine.parts, bound)
        ledger = layout.opened()
        if new.bound is not None:
            if _kinds(new.moments) != _kinds(ledger.current):
                raise CheckpointError(
                    "the state holds other moments than this recipe keeps here: load it with the "
                    "recipe and the precision it was saved with"
                )
            ledger = layout.holding(new.moments, new.ages)
        new = replace(new, moments=ledger.current, ages=ledger.young)
    held = replace(
        engine.held,
        layout=layout,
        state=replace(new, bound=bound),
        seed=values["seed"],
        lr=values["lr"],
        record=None,
    )
    into, given = [], []
    for own, there in ((named, values["theta"]), (buffers, values["buffers"])):
        if there is not None:
            into += [own[name] for name in there]
            given += list(there.values())

    def carry_out() -> None:
        if into:
            torch._foreach_copy_(into, given)
        engine.held = held

    exchange(carry_out)


def _read(state: Mapping[str, Any], engine: Any) -> dict[str, Any]:
    """The content of a checkpoint, on the engine's device; format 1 had the State's fields loose.

    Raises:
        CheckpointError: a format that this version does not read.
    """
    known = state.get("format") if isinstance(state, Mapping) else None
    if known not in (1, FORMAT):
        raise CheckpointError(
            f"the state has format {known!r}; this version reads formats 1 and {FORMAT}"
        )
    values: dict[str, Any] = trees.decoded(trees.copied(trees.moved(state["tree"], engine.device)))
    if known == FORMAT:
        return values
    fired = values["fired"]
    bound = None
    if fired is not None:
        chains = tuple(tuple(chain) for chain in values["chains"])
        bound = Bound(tuple(fired), chains, values["tangent_path"])
    values["state"] = State(
        strength=Strength(*values["strength"]),
        moments=values["moments"] or {},
        ages=values["young"],
        block_ages=values["ages"],
        bound=bound,
        **{
            name: values[name]
            for name in (
                "step", "seconds", "previous", "factored", "inverse", "memos", "block_memos",
                "kept_inverse", "coupling", "reference", "forced",
            )
        },
    )  # fmt: skip
    return values


def _kinds(tensors: Mapping[Any, Tensor]) -> dict[Any, tuple[Any, Any]]:
    """Shape and dtype of each."""
    return {key: (tuple(t.shape), t.dtype) for key, t in tensors.items()}
