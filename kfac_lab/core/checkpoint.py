"""The engine's state as one tree of tensors and numbers, and back: bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core import trees
from kfac_lab.core.checkpoint_schema import BOUND, CONTENT, FORMAT_1, STATE
from kfac_lab.core.exchange import exchange
from kfac_lab.core.schema import (
    anything,
    check,
    record,
    whole,
)
from kfac_lab.core.state import Bound, DampingStrength, State
from kfac_lab.errors import CheckpointError

__all__ = ["check_same", "cloned", "opened", "restore", "saved", "unseen"]

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


def unseen(state: Mapping[str, Any]) -> tuple[str, ...]:
    """The paths of the layers that the fallback looks after in a saved state, whose network is one
    without them.

    Raises:
        CheckpointError: this is no such state.
    """
    content = trees.decoded(state.get("tree")) if isinstance(state, Mapping) else None
    own = content.get("state") if isinstance(content, dict) else None
    bound = own.bound if isinstance(own, State) else None
    if bound is None:
        return ()
    check(bound, BOUND, "the state's bound")
    found: tuple[str, ...] = bound.unseen
    return found


def opened(
    state: Mapping[str, Any], formats: Sequence[int], device: torch.device
) -> tuple[int, Any]:
    """The format of a saved state, and a copy of its tree on the device; not looked into yet.

    Raises:
        CheckpointError: it has none of these formats.
    """
    known: Any = state.get("format") if isinstance(state, Mapping) else None
    if known not in formats:
        read = " and ".join(map(str, formats))
        several = "s" * (len(formats) > 1)
        raise CheckpointError(
            f"the state has format {known!r}; this version reads format{several} {read}"
        )
    check(dict(state), record({"format": whole(), "tree": anything}), "the state")
    return known, trees.decoded(trees.copied(trees.moved(state["tree"], device)))


def check_same(what: str, saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Checks that saved tensors are those of this network, by name, shape and dtype.

    Raises:
        CheckpointError: they are others.
    """
    there, here = _kinds(saved), _kinds(own)
    if there != here:
        different = sorted(set(there.items()) ^ set(here.items()), key=str)[:3]
        raise CheckpointError(
            f"the state belongs to another network: {what} differ, such as "
            + ", ".join(f"{n} {kind}" for n, kind in different)
        )


def restore(engine: Any, state: dict[str, Any], *, parameters: bool = True) -> None:
    """Restores what :func:`saved` gave, for the same problem and recipe.

    Every field is checked before anything is made of it. The new state is made beside the old; one
    exchange puts it in its place.

    Raises:
        CheckpointError: the state belongs to another network or another format; nothing has
            changed then.
    """
    values = _read(state, engine)
    check(values, CONTENT, "the state")
    new: State = values["state"]
    check({f.name: getattr(new, f.name) for f in fields(new)}, STATE, "the state")
    apart = () if new.bound is None else new.bound.unseen
    if apart != engine.unseen:
        raise CheckpointError(
            f"the state leaves {list(apart)} to the fallback, and this network leaves "
            f"{list(engine.unseen)}: their rows do not see every use of them"
        )
    named = engine.network.named(engine._theta)
    shapes = {n: tuple(t.shape) for n, t in named.items()}
    if shapes != values["shapes"]:
        different = sorted(set(shapes.items()) ^ set(values["shapes"].items()), key=str)[:3]
        raise CheckpointError(
            "the state belongs to another network: parameters differ, such as "
            + ", ".join(f"{n} {tuple(s)}" for n, s in different)
        )
    buffers = dict(engine.problem.model.named_buffers())
    if parameters and (values["theta"] is None or values["buffers"] is None):
        raise CheckpointError("the state holds no parameters: it is that of a Preconditioner")
    if values["theta"] is not None and _kinds(named) != _kinds(values["theta"]):
        raise CheckpointError("the state's parameters are of another shape or precision")
    if values["buffers"] is not None:
        check_same("buffers", values["buffers"], buffers)
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
        store = layout.opened()
        if new.bound is not None:
            if _kinds(new.moments) != _kinds(store.current):
                raise CheckpointError(
                    "the state holds other moments than this recipe keeps here: load it with the "
                    "recipe and the precision it was saved with"
                )
            store = layout.holding(new.moments, new.ages)
        new = replace(new, moments=store.current, ages=store.ages)
    new = engine.completed(new)
    _check_fits(new, engine, bound)
    held = replace(
        engine.held,
        layout=layout,
        state=replace(new, bound=bound),
        seed=values["seed"],
        lr=values["lr"],
        record=None,
        skipped=(),
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
    known, values = opened(state, (1, FORMAT), engine.device)
    if known == FORMAT:
        return values
    check(values, FORMAT_1, "the state")
    fired = values["fired"]
    bound = None
    if fired is not None:
        chains = tuple(tuple(chain) for chain in values["chains"])
        bound = Bound(tuple(fired), chains, values["tangent_path"])
    values["state"] = State(
        strength=DampingStrength(*values["strength"]),
        moments=values["moments"] or {},
        ages=values["young"],
        block_ages=values["ages"],
        bound=bound,
        **{
            State.RENAMED.get(name, name): values[name]
            for name in (
                "step", "seconds", "previous", "factored", "inverse", "memos", "block_memos",
                "kept_inverse", "coupling", "reference", "forced",
            )
        },
    )  # fmt: skip
    return values


def _check_fits(new: State, engine: Any, bound: Bound | None) -> None:
    """That the state's pieces are as many, and of the shapes, that the engine has.

    Raises:
        CheckpointError: they are not.
    """
    count, state = len(engine.blocks), engine.state_
    like = [tuple(m.shape) for m in engine.network.pack(engine._theta)]
    previous = None if new.previous is None else [tuple(m.shape) for m in new.previous]
    reference = new.reference or {}
    sound = {
        "the last update": previous in (None, like),
        "the parameters before it": new.before is None
        or _kinds(dict(enumerate(new.before))) == _kinds(dict(enumerate(engine._theta))),
        "the blocks' memories": len(new.block_states) == len(new.block_ages) == count,
        "the parts' memories": new.part_states.keys() == state.part_states.keys(),
        "the moments' ages": new.ages.keys() <= new.moments.keys(),
        "the moments of the last refresh": all(
            value.shape == new.moments[key].shape
            for key, value in reference.items()
            if key in new.moments  # a swap may have closed some
        ),
        "the refresh under way": new.build is None
        or (
            _kinds(new.build.moments) == _kinds(new.moments)
            and len(new.build.block_states) == count
            and len(new.build.factored) <= count
        ),
        "the layers' order": bound is None
        or (
            all(0 <= n < count for n in bound.fired)
            and all(0 <= n < count for chain in bound.chains for n in chain)
        ),
        "λ, γ and η": all(bool((v >= 0) & torch.isfinite(v)) for v in new.strength)
        if engine.device.type == "cpu"
        else True,
    }
    for what, right in sound.items():
        if not right:
            raise CheckpointError(f"the state is damaged: {what} are not those of this network")


def _kinds(tensors: Mapping[Any, Tensor]) -> dict[Any, tuple[Any, Any]]:
    """Shape and dtype of each."""
    return {key: (tuple(t.shape), t.dtype) for key, t in tensors.items()}
