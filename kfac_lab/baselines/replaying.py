"""A baseline's gradient and update as programs, and both as one launch on an accelerator.

Rates fade and bias corrections move with k: they are numbers that a replay is given anew, and a
launch has them as 0-dim tensors. What no kernel takes as a tensor (μ of fused SGD) is another
program for each value.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kfac_lab.core.exchange import exchange
from kfac_lab.core.program import Known, Repeated, supplied, takes_numbers

if TYPE_CHECKING:
    from kfac_lab.baselines.base import Baseline

__all__ = ["LaunchedStep", "Replaying", "rate"]

AHEAD = 2  # h and the error, which a gradient's program gives before ∇h
CHAINS = 8  # sizes of a batch and the like for which both programs were found


def rate(number: int) -> Hashable:
    """The label of an optimiser's rate."""
    return "rate", number


@dataclass(eq=False)
class LaunchedStep:
    """A step that is one launch, ready to be launched once.

    Attributes:
        seen: what an optimiser of ours counts in Python, after it.
    """

    known: Known
    repeated: Repeated
    inputs: Sequence[Tensor]
    numbers: list[float]
    seen: int
    places: list[Tensor] = field(default_factory=list)

    def launched(self) -> bool:
        """θ and the optimisers' memory are those of the next step. True: it has been done."""
        assert self.known.captured is not None
        self.places = self.known.captured.launched(self.inputs, 0, self.numbers)
        self.repeated.counted()
        return True

    def given(self) -> tuple[Tensor, Tensor]:
        """h and the error."""
        assert self.known.captured is not None
        loss, error = self.known.captured.given(self.places)
        return loss, error


class Replaying:
    """What a baseline's steps are replayed by, where ``baseline.repeated`` is given."""

    def __init__(self, baseline: Baseline) -> None:
        self._of = baseline
        self._lasting: list[Tensor] = []  # θ and the optimisers' memory, which stay where they are
        self._chains: dict[Hashable, Known] = {}  # by what both functions depend on
        self._repeated: Repeated | None = None  # whose they are

    def forget(self) -> None:
        """The optimisers' memory is other tensors from here on."""
        self._lasting = []

    # --- one by one -------------------------------------------------------------------------------

    def evaluated(
        self, inputs: Any, targets: Any, k: int
    ) -> tuple[Tensor, Tensor, list[Tensor], dict[str, Tensor]]:
        """``_evaluate``, or a replay of it where the model has nothing but parameters."""
        own = self._of
        if own.repeated is None or not self._plain(inputs, targets):
            return own._evaluate(inputs, targets, k)

        def function() -> list[Tensor]:
            loss, error, gradients, _ = own._evaluate(inputs, targets, k)
            return [loss, error, *gradients]

        given = [inputs, targets]
        made, _ = own.repeated(self._gradient_key(), function, given, own._parameters, {})
        loss, error, *gradients = made
        return loss, error, gradients, {}

    def updated(self, k: int) -> bool:
        """``_move``, or a replay of it; True: it has been made."""
        own = self._of
        lasting = self._what_lasts()
        if own.repeated is None or not lasting or not own._repeats():
            self.forget()  # it may make tensors
            return own._move(k)

        def function() -> list[Tensor]:
            rates = [o.param_groups[0]["lr"] for o in own._optimisers]
            try:
                if takes_numbers():
                    for n, optimiser in enumerate(own._optimisers):
                        optimiser.param_groups[0]["lr"] = supplied(rate(n), rates[n])
                own._move(k)
            finally:
                for lr, optimiser in zip(rates, own._optimisers, strict=True):
                    optimiser.param_groups[0]["lr"] = lr
            return []

        seen = own._seen()
        gradients = [t.grad for t in own._theta if t.grad is not None]
        numbers = self._numbers()
        _, replayed = own.repeated(
            self._update_key(), function, gradients, lasting, numbers, writes=True
        )
        if replayed:
            own._counted(seen + 1)
        return True

    # --- as one -----------------------------------------------------------------------------------

    def whole(self, inputs: Any, targets: Any, k: int) -> LaunchedStep | None:
        """Gradient and update as one launch, where reads are not free and both are known; the rates
        are those of the step. Nothing has changed.
        """
        own, repeated = self._of, self._of.repeated
        if repeated is None or repeated.capture is None or own._reads_are_free:
            return None
        if not self._plain(inputs, targets) or not own._repeats():
            return None
        lasting = self._what_lasts()
        chain = self._chain(repeated, inputs, targets, lasting)
        if chain is None or chain.launched is None:
            return None
        given = [inputs, targets, *own._parameters, *lasting]
        numbers = chain.launched.numbers(self._numbers())
        ready: list[bool] = []

        def opened() -> None:
            if not ready:
                ready.append(repeated.opened(chain, given, 2, numbers, lasting))

        exchange(opened)  # to capture it may be to call it, which is undone
        if not ready[0]:
            return None
        return LaunchedStep(chain, repeated, given, numbers, own._seen() + 1)

    def _chain(
        self, repeated: Repeated, inputs: Tensor, targets: Tensor, lasting: list[Tensor]
    ) -> Known | None:
        """Both programs as one, by what they depend on."""
        if repeated is not self._repeated:
            self._chains, self._repeated = {}, repeated
        own = self._of
        first, second = self._gradient_key(), self._update_key()
        shapes = tuple((t.dtype, t.shape, t.stride()) for t in (inputs, targets))
        key = first, second, shapes, len(lasting)
        known = self._chains.get(key)
        if known is None or known.launched is None:
            # Gradients lie as θ does; they are tensors of their own.
            like = [t.detach() for t in own._theta]
            found = repeated.chained(
                repeated.known(first, [inputs, targets, *own._parameters]),
                repeated.known(second, [*like, *lasting]),
                AHEAD,
            )
            if found is None:
                return None
            while len(self._chains) >= CHAINS:
                del self._chains[next(iter(self._chains))]
            known = self._chains[key] = found
        return known

    # --- what they depend on ----------------------------------------------------------------------

    def _plain(self, inputs: Any, targets: Any) -> bool:
        own = self._of
        return isinstance(inputs, Tensor) and isinstance(targets, Tensor) and not own._buffers

    def _gradient_key(self) -> Hashable:
        problem = self._of.problem
        return "gradient", problem.l2, problem.model.training

    def _update_key(self) -> Hashable:
        """Every Python value that an update depends on, but for the numbers that it is given."""
        left_out = {"params", "lr"} if takes_numbers() else {"params"}
        groups = (g for o in self._of._optimisers for g in o.param_groups)
        return "update", *(tuple(v for n, v in g.items() if n not in left_out) for g in groups)

    def _numbers(self) -> Mapping[Hashable, float]:
        own = self._of
        rates = {rate(n): o.param_groups[0]["lr"] for n, o in enumerate(own._optimisers)}
        return {**rates, **own._numbers()}

    def _what_lasts(self) -> list[Tensor]:
        """θ and the optimisers' memory; none before there is any."""
        if not self._lasting:
            own = self._of
            owned = (v for o in own._optimisers for m in o.state.values() for v in m.values())
            memory = [v for v in owned if isinstance(v, Tensor)]
            self._lasting = [*own._theta, *memory] if memory else []
        return self._lasting
