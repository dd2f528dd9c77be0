"""States of both faces: sealed when saved, checked before anything is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kfac_lab import engine as _engine
from kfac_lab.core import archive, checkpoint
from kfac_lab.core.exchange import exchange
from kfac_lab.core.schema import anything, check, maybe, record, table, tensor, text, whole
from kfac_lab.errors import CheckpointError, KfacLabError
from kfac_lab.hooks import Recipe
from kfac_lab.run import warn_elsewhere, where
from kfac_lab.run.saving import WHERE, warn_skipped

__all__ = ["restored", "saved", "seal", "text_of"]

FORMAT = 2  # of a state; 1 had no seal


def text_of(recipe: Recipe) -> str | None:
    """The recipe as text; None where a component has no name to be found by."""
    try:
        return recipe.text(complete=True)
    except KfacLabError:
        return None  # a component of nobody's class: whoever loads has to bring it


def saved(
    engine: _engine.Engine, parameters: bool, mean: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """A face's state, with a seal over all of it; ``mean`` is of a loop's gradients, by name."""
    saved = {
        "kfac_lab": FORMAT,
        "recipe": text_of(engine.recipe),
        "where": where(engine.device),
        "engine": engine.state(parameters=parameters),
    }
    if mean:
        saved["mean"] = {name: t.detach().clone() for name, t in mean.items()}
    warn_skipped(engine.skipped)
    return {**saved, "seal": seal(saved)}


def restored(
    who: str,
    engine: _engine.Engine,
    saved: Any,
    parameters: bool,
    adopt: Callable[[_engine.Engine], None],
) -> None:
    """Takes over a saved state: into the same engine, or into another where the recipe differs.

    ``adopt`` is what its owner notes with it, by assignments: both happen, or neither.
    """
    none = f"this is no state that a {who} of this version has saved"
    if not isinstance(saved, Mapping) or saved.get("kfac_lab") not in range(1, FORMAT + 1):
        raise CheckpointError(none)
    saved = dict(saved)
    stated = saved.pop("seal", None)
    check(saved, _SAVED, "the state")
    if saved["kfac_lab"] > 1 and stated != seal(saved):
        raise CheckpointError("the state is damaged: it is not what was saved; load an older copy")
    target, text = engine, saved["recipe"]
    try:
        recipe, unseen = engine.recipe, checkpoint.unseen(saved["engine"])
        if text is not None and text != text_of(recipe):
            recipe = Recipe.from_text(text)
        if recipe is not engine.recipe or unseen != engine.unseen:
            target = _engine.attach(
                engine.problem,
                recipe,
                engine.seed,
                tf32=engine.tf32,
                precision=engine.precision,
                leave=engine.leave,
                unseen=unseen,
                graphs=engine.graphs,
            )

        def commit() -> None:
            target.load(saved["engine"], parameters=parameters)
            adopt(target)

        exchange(commit)
    except (CheckpointError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise CheckpointError(f"the state does not fit this model: {reason}") from error
    warn_elsewhere("state", saved["where"], target.device)


def seal(saved: Mapping[str, Any]) -> str:
    """Of the recipe and of the engine's state: by it a state that was changed is known."""
    return archive.seal([saved[k] for k in ("recipe", "engine", "mean") if k in saved])


_SAVED = record(
    {
        "kfac_lab": whole(1, FORMAT),
        "recipe": maybe(text()),
        "where": WHERE,
        "engine": table(anything),
    },
    {"mean": table(tensor)},
)
