"""Keeping: a run as a file, on request and on its way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kfac_lab.core.exchange import exchange
from kfac_lab.core.problem import Problem
from kfac_lab.core.traits import StepperTraits, traits
from kfac_lab.core.trees import moved
from kfac_lab.errors import CheckpointError, DataError
from kfac_lab.history import History
from kfac_lab.hooks import Recipe
from kfac_lab.run import saving
from kfac_lab.run.autosave import Autosave
from kfac_lab.run.returning import Returning

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Kept"]


class Kept(Returning):
    """The part of a Run that is saved and loaded."""

    def __init__(self, *given: Any, **named: Any) -> None:
        raise NotImplementedError

    def save(self, path: str | Path) -> Path:
        """Writes everything to go on bit for bit; the file appears whole or not at all.

        It holds a SHA-256 of every tensor and of itself, which :meth:`load` compares. Returns the
        path.

        Raises:
            CheckpointError: the file cannot be written; an older one there is as it was.
            RecipeError: a component whose class nobody has registered, so that nothing could load
                it.
        """
        content = self._alone(self._content)
        saving.warn_skipped(traits(self.stepper, StepperTraits).skipped)
        return saving.write(path, content)

    def _content(self) -> dict[str, Any]:
        self._apply_queue()
        return {
            "problem": self.named,
            "name": self.problem.name,
            "recipe": self.recipe.text(complete=True),
            "seed": self.seed,
            "tf32": self.tf32,
            "precision": self.precision.text,
            "where": saving.where(self.device),
            "notes": dict(self.notes),
            "bad_batches": self.bad_batches,
            "stepper": moved(self.stepper.state(), torch.device("cpu")),
            "history": self.history.state(),
        }

    def autosave(
        self, path: str | Path | None, every: int | None = None, *, seconds: float | None = None
    ) -> Self:
        """Saves the run to ``path`` on its way: after ``every`` steps, or every so many seconds.

        It is also saved where an interrupt ends :meth:`advance`. A save that fails is a warning:
        the last good file stays, the run goes on and tries again when the next one is due. A
        ``path`` of None ends it. Returns the run itself.

        Raises:
            RecipeError: neither or both of ``every`` and ``seconds``, or one that is none.
            CheckpointError: the path names no file in a folder that exists.
        """
        found = None if path is None else Autosave.of(path, every, seconds, self.step)
        self._autosave = found
        return self

    @classmethod
    def load(
        cls,
        path: str | Path,
        problem: Problem | None = None,
        device: str | torch.device = "auto",
    ) -> Self:
        """Continues a saved run; ``problem`` is needed where it was made from objects.

        On the same machine, torch, device type and thread count the continuation is bit-exact; a
        difference is said once in a warning.

        Raises:
            CheckpointError: the file is no run of ours, is damaged, or does not fit the problem,
                which is then as it was.
        """
        content = saving.read(path)
        if problem is None and content["problem"] is None:
            raise CheckpointError(
                f"{path} holds a run on the problem {content['name']!r}, which was made from "
                "objects: give them again, Run.load(path, problem=Problem(…))"
            )
        if not isinstance(problem, (Problem, type(None))):
            raise CheckpointError(
                f"problem is a {type(problem).__name__}: give the Problem that {path} was saved "
                "with, or none for a named one"
            )
        source: Any = problem if problem is not None else content["problem"]
        name = source if isinstance(source, str) else source.name
        try:
            history = History.restore(content["history"])
            recipe = Recipe.from_text(content["recipe"])
            run = cls(
                source,
                recipe,
                content["seed"],
                device,
                tf32=content["tf32"],
                precision=content.get("precision"),
            )
            loaded = run._now._replace(history=history, snapshots=())

            def commit() -> None:
                loaded.stepper.load(content["stepper"])
                run._now, run.notes = loaded, dict(content.get("notes", {}))
                run.bad_batches = content.get("bad_batches", 0)

            exchange(commit)
        except (CheckpointError, DataError, MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except KeyError as error:
            raise CheckpointError(f"{path} is damaged: it lacks {error}") from error
        except Exception as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            raise CheckpointError(f"{path} does not fit problem {name!r}: {reason}") from error
        run._snapshot()
        saving.warn_elsewhere("run", content["where"], run.device)
        return run
