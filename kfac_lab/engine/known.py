"""What is known of steps with a key: how often they came, their recording, their program."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence, ValuesView
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kfac_lab.core.program import Captured, Program, Recording
from kfac_lab.core.program.calls import HeldValue
from kfac_lab.engine.asked import StepInputs

if TYPE_CHECKING:
    from kfac_lab.engine.padding import Padding

__all__ = ["AGAIN", "KEPT", "KnownStep", "KnownSteps"]

AGAIN = 500  # replays of a program between two that are tried against the step itself
KEPT = 16  # programs and keys of an engine; the one that was not used for longest goes first


@dataclass(eq=False)
class KnownStep:
    """What is known of a key."""

    holds: Any  # objects whose identity is in the key
    seen: int = 0
    recording: Recording | None = None
    program: Program | None = None
    captured: Captured | None = None
    padding: Padding | None = None
    numbers: list[float] | None = None  # of the last replay
    missed: int = 0  # replays in a row whose reads came out otherwise
    unclear: int = 0  # recordings that did not tell numbers apart
    template: Any = None
    refused: bool = False


@dataclass(eq=False)
class KnownSteps:
    """The entries of an engine, by key and by what steps decide."""

    kind: type[KnownStep] = KnownStep
    _entries: OrderedDict[Any, KnownStep] = field(default_factory=OrderedDict)
    _choices: dict[Any, dict[tuple[Any, ...], Any]] = field(default_factory=dict)

    def entries(self) -> ValuesView[KnownStep]:
        """All of them."""
        return self._entries.values()

    def of(self, asked: StepInputs, k: int) -> KnownStep:
        """What is known of steps with this key that decide by k and by counts as this one does."""
        choices = self._choices.get(asked.key, {})
        decided: tuple[Any, ...] = ()
        while decided in choices:
            choose, of = choices[decided]
            decided = (*decided, choose(k if of is None else asked.counts[of]))
        known = asked.key, decided
        entry = self._entries.get(known)
        if entry is None:
            entry = self._entries[known] = self.kind(asked.holds)
            if len(self._entries) > KEPT:
                self._entries.popitem(last=False)
                living = {key for key, _ in self._entries}
                self._choices = {key: own for key, own in self._choices.items() if key in living}
        self._entries.move_to_end(known)
        return entry

    def file(self, asked: StepInputs, entry: KnownStep, held: Sequence[HeldValue]) -> None:
        """Puts what is known where steps with the same decisions find it: each depends on those
        before it alone.
        """
        choices = self._choices.setdefault(asked.key, {})
        decided: tuple[Any, ...] = ()
        for choose, value, of in held:
            choices[decided] = choose, of
            decided = (*decided, value)
        for known in [known for known, own in self._entries.items() if own is entry]:
            del self._entries[known]
        self._entries[asked.key, decided] = entry
