"""What a model is given between two steps, for a Preconditioner."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from kfac_lab.core import seeds
from kfac_lab.core.cases import Arguments, Cases, Unlabelled, as_cases, concatenated
from kfac_lab.core.passes import WatchedPasses
from kfac_lab.core.problem import Drawn, weighed
from kfac_lab.errors import DataError, NumericalError, RecipeError

__all__ = ["Tap", "kind_of", "unlabelled", "watched"]

ACCUMULATED = 64  # forward passes between two steps whose cases count


class Tap:
    """A forward pre-hook that notes what the model is given: inputs, detached, by reference."""

    passive = True  # see core.plan: it changes nothing, so a pass of our own may do without it

    def __init__(self, watching: Any = None, open: bool = True) -> None:
        self._open, self._watching = open, watching
        self.rows: WatchedPasses | None = None  # of what was seen, where they are wanted
        self._seen: deque[Any] = deque(maxlen=ACCUMULATED)  # tensors or Cases
        self._odd: str | None = None
        self._ended = False  # whether another pass begins anew
        self._empty = False  # whether a pass had no cases

    def __reduce__(self) -> Any:
        return Tap, (None, False)  # a copied or unpickled model has no Preconditioner

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook: one call of the model."""
        if not (self._open and module.training and torch.is_grad_enabled()):
            return
        if self._ended:
            self.forget()
        try:
            if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
                inputs: Any = args[0]
            else:
                inputs = Cases(Arguments(args, dict(kwargs)))
            if not inputs.dim():
                raise DataError("inputs are one number without cases")
        except DataError as error:
            names = [*(type(a).__name__ for a in args), *(f"{name}=…" for name in kwargs)]
            self._odd = f"{type(module).__name__}({', '.join(names)}): {error}"
        else:
            if len(inputs):
                self._watch(module, inputs)
                self._seen.append(inputs.detach())
            self._empty |= not len(inputs)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Inside nothing is noted, and no layer watched: for passes of our own."""
        if self.rows is not None:
            self.rows.over()
        with ExitStack() as after:  # puts it back where an interrupt comes at a line of ours too
            after.callback(setattr, self, "_open", self._open)
            self._open = False
            yield

    def seen(self) -> tuple[list[Any], str | None]:
        """What :meth:`see` takes."""
        return list(self._seen), self._odd

    def see(self, seen: tuple[list[Any], str | None]) -> None:
        """Notes what was seen before, and nothing else."""
        self._seen, self._odd = deque(seen[0], maxlen=ACCUMULATED), seen[1]

    def _watch(self, module: nn.Module, inputs: Any) -> None:
        """Hooks on the layers for this one call, where its rows are wanted."""
        watching = None if self._watching is None else self._watching()
        if watching is None:
            return
        if not self._seen:
            self.rows = watching()
        elif len(self._seen) == ACCUMULATED or kind_of(self._seen[-1]) != kind_of(inputs):
            self.rows = None
        rows = self.rows
        if rows is None:
            return

        def after(module: nn.Module, args: Any, output: Any) -> None:
            rows.end()
            handle.remove()

        rows.begin(len(inputs))
        handle = module.register_forward_hook(after, always_call=True)

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """Where the step ends here, what was seen serves it again; another pass begins anew."""
        try:
            yield
        except NumericalError:
            self._ended = True
            raise

    def forget(self) -> None:
        """Lets go of all that was seen."""
        self._ended = self._empty = False
        self._seen.clear()
        self._odd, self.rows = None, None

    def drawn(
        self,
        seed: int,
        step: int,
        targets: Any,
        estimator: Any,
        weights: Any = None,
        *,
        likelihood: Any = None,
        ordered: bool = True,
    ) -> Drawn | None:
        """The cases seen, in the order of the passes; where ``ordered`` a permutation says S1, for
        statistics.
        """
        if self._odd is not None:
            raise RecipeError(
                "a Preconditioner follows models whose arguments are tensors of cases, and the "
                f"model was called as {self._odd}; wrap it in a module whose forward takes such"
            )
        if not self._seen:
            if self._empty and ordered:
                raise RecipeError(
                    "statistics are due, and the model was called with no cases: leave out the "
                    "step of an empty batch, optimizer.step() too"
                )
            return None
        last = self._seen[-1]
        kind = kind_of(last)
        inputs = concatenated([x for x in self._seen if kind_of(x) == kind])
        rows = inputs.shape[0]
        if targets is None:
            targets = unlabelled(type(estimator).__name__)
        elif isinstance(targets, (Tensor, Mapping, tuple)):
            targets = as_cases(targets, "targets")
        for name, given in (("targets", targets), ("weights", weights)):
            if given is None or isinstance(given, (Unlabelled, Mapping)):
                continue
            count = len(given) if isinstance(given, (Tensor, Cases)) and given.dim() else "no"
            if count != rows:
                raise RecipeError(
                    f"{name} have {count} rows, and the model has seen {rows} cases since the "
                    "last step: give one for each, in the same order"
                )
        order = seeds.permutation(seed, "rows", step, rows) if ordered else None
        return Drawn(inputs, weighed(targets, weights, likelihood), order)


def unlabelled(estimator: str) -> Unlabelled:
    """Stands where labels would be: whoever asks for them is told that there are none."""

    def refuse() -> NoReturn:
        raise RecipeError(
            f"the estimator {estimator} asks for labels: pre.step(targets=…), or use "
            "estimator='sampled'"
        )

    return Unlabelled(refuse)


def kind_of(inputs: Any) -> str:
    """The shape and type of a case."""
    parts = inputs.tensors if isinstance(inputs, Cases) else [inputs]
    return ", ".join(f"shape {tuple(t.shape[1:])} and {t.dtype}" for t in parts)


def watched(engine: Any) -> WatchedPasses | None:
    """Hooks for a pass of the user's, where the engine's next step wants rows that it has."""
    if not engine.parts.declares("estimator").of_loss or not engine.observes_next:
        return None
    for use, block, observes in zip(
        engine.network.uses, engine.blocks, engine.parts.observing, strict=True
    ):
        if not use.modules and (observes or block.wants()):
            return None  # what no layer claims has its gradient summed over S1
    return WatchedPasses(engine.network)
