"""The engine's state as one tree of tensors and numbers, and back: bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kfac_lab.core.state import State, Strength, from_tree, move, to_tree
from kfac_lab.errors import CheckpointError

__all__ = ["cloned", "restore", "saved"]

FORMAT = 1


def saved(engine: Any, *, parameters: bool = True) -> dict[str, Any]:
    """Everything needed to go on bit for bit: θ, buffers, moments, inverses, memos, counts.

    Without ``parameters`` θ and the buffers are left out, for whoever keeps them elsewhere.
    """
    state = engine.state_
    tree = to_tree(
        {
            "step": state.step,
            "seconds": state.seconds,
            "strength": tuple(state.strength),
            "previous": state.previous,
            "factored": state.factored,
            "inverse": state.inverse,
            "memos": state.memos,
            "block_memos": state.block_memos,
            "kept_inverse": state.kept_inverse,
            "coupling": engine._coupling,
            "mixed": engine._mixed,
            "ages": engine._ages,
            "forced": engine._forced,
            "reference": engine._reference,
            "young": dict(engine.ledger.young) if engine.ledger is not None else {},
            "moments": dict(engine.ledger.current) if engine.ledger is not None else None,
            "fired": engine.passes.fired,
            "chains": engine.passes.chains,
            "tangent_path": engine.passes.tangent_path,
            "seed": engine.seed,
            "lr": engine.lr,
            "shapes": {n: tuple(t.shape) for n, t in engine.network.named(engine._theta).items()},
            "theta": engine.network.named(engine._theta) if parameters else None,
            "buffers": dict(engine.problem.model.named_buffers()) if parameters else None,
        }
    )
    return {"format": FORMAT, "tree": cloned(tree)}


def restore(engine: Any, state: dict[str, Any]) -> None:
    """Restores what :func:`saved` gave, for the same problem and recipe.

    Raises:
        CheckpointError: the state belongs to another network or another format; nothing has
            changed then.
    """
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"the state has format {state.get('format')!r}; this version reads format {FORMAT}"
        )
    values = from_tree(cloned(move(state["tree"], engine.device)))
    shapes = {n: tuple(t.shape) for n, t in engine.network.named(engine._theta).items()}
    saved = values["shapes"]
    if shapes != saved:
        different = sorted(set(shapes.items()) ^ set(saved.items()), key=str)[:3]
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
    bound = engine.passes.fired, engine.passes.chains, engine.passes.tangent_path, engine.ledger
    if engine.passes.fired is None and values["fired"] is not None:
        # No batch was seen yet: what a batch would tell is in the state.
        engine.passes.fired, engine.passes.chains = values["fired"], values["chains"]
        engine.ledger = engine._open_ledger()
    if engine.passes.tangent_path != "explicit" and values["fired"] is not None:
        # By which path products are taken is part of their last digits.
        engine.passes.tangent_path = values["tangent_path"]
    ledger, moments = engine.ledger, values["moments"]
    if moments is not None and ledger is not None:
        if _kinds(moments) != _kinds(ledger.current):
            engine.passes.fired, engine.passes.chains, engine.passes.tangent_path, engine.ledger = (
                bound
            )
            raise CheckpointError(
                "the state holds other moments than this recipe keeps here: load it with the "
                "recipe and the precision it was saved with"
            )
        ledger.current.update(moments)
        ledger.young = dict(values["young"])
    elif ledger is not None:  # saved before its first batch
        for value in ledger.current.values():
            value.zero_()
    if values["theta"] is not None:
        by_name = engine.network.named(engine._theta)
        for name, value in values["theta"].items():
            by_name[name].copy_(value)
        for name, value in values["buffers"].items():
            buffers[name].copy_(value)
    engine.seed, engine.lr = values["seed"], values["lr"]
    engine.passes.seed = engine.seed
    engine._ages = values["ages"]
    engine._coupling, engine._mixed = engine._number(values["coupling"]), values["mixed"]
    engine._forced, engine._reference = values["forced"], values["reference"]
    engine._pending_ok = []
    engine.state_ = State(
        step=values["step"],
        seconds=values["seconds"],
        strength=engine._strength(Strength(*values["strength"])),
        previous=values["previous"],
        factored=values["factored"],
        inverse=values["inverse"],
        memos=values["memos"],
        block_memos=values["block_memos"],
        kept_inverse=values["kept_inverse"],
    )


def _kinds(tensors: Mapping[Any, Tensor]) -> dict[Any, tuple[Any, Any]]:
    """Shape and dtype of each."""
    return {key: (tuple(t.shape), t.dtype) for key, t in tensors.items()}


def cloned(value: Any) -> Any:
    """The tree with tensors of its own."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list):
        return [cloned(v) for v in value]
    if isinstance(value, dict):
        return {k: cloned(v) for k, v in value.items()}
    return value
