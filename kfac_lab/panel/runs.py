"""The runs of a panel as things: a name, a look, a group, and what is done with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kfac_lab.errors import KfacLabError, RecipeError

__all__ = ["Item", "Roster"]


@dataclass
class Item:
    """A run in the list.

    Attributes:
        run: it, or whatever has a history.
        order: of its look; a run keeps it whatever becomes of the others.
        hidden: it is not drawn.
        trains: Start trains it too, beside the current one.
        group: the name that runs of several seeds share.
        shared: the step up to which it is another run's own past, which is not drawn twice.
        failed: what its last step raised.
        made: the step and the seconds of training at its last Start.
    """

    run: Any
    order: int
    hidden: bool = False
    trains: bool = False
    group: str = ""
    shared: int = 0
    failed: str = ""
    made: tuple[int, float] = (0, 0.0)


class Roster:
    """Label → Item, in order. Every change puts another dict in place: other threads read on."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._count = 0

    def __getitem__(self, label: str) -> Item:
        if label not in self._items:
            raise RecipeError(f"there is no run {label!r}; there are {', '.join(self._items)}")
        return self._items[label]

    def __contains__(self, label: object) -> bool:
        return label in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> list[tuple[str, Item]]:
        """All of them, with their labels."""
        return list(self._items.items())

    @property
    def runs(self) -> dict[str, Any]:
        """Label → run."""
        return {label: item.run for label, item in self._items.items()}

    def label_of(self, run: Any) -> str:
        """The label of a run; "" where it is gone."""
        return next((label for label, item in self._items.items() if item.run is run), "")

    def add(self, label: str, run: Any, **more: Any) -> Item:
        """A run under a label that is free; under its own label it is the same item."""
        if label in self._items:
            self._items[label].run = run
            return self._items[label]
        item = Item(run, self._count, **more)
        self._count += 1
        self._items = {**self._items, label: item}
        return item

    def rename(self, label: str, to: str) -> None:
        """Another label; everything else stays.

        Raises:
            RecipeError: that label is none, or taken.
        """
        to = to.strip()
        if not to:
            raise RecipeError("a run needs a name of at least one letter")
        if to in self._items and to != label:
            raise RecipeError(f"there is a run {to!r} already")
        self[label]
        self._items = {to if name == label else name: i for name, i in self._items.items()}

    def remove(self, label: str) -> None:
        """Takes a run out of the list.

        Raises:
            RecipeError: it is not there, or the only one.
        """
        self[label]
        if len(self._items) == 1:
            raise RecipeError("a panel needs a run: add another before this one is removed")
        self._items = {name: i for name, i in self._items.items() if name != label}

    def free(self, label: str) -> str:
        """The label, with a number behind it where it is taken."""
        name, count = label, 2
        while name in self._items:
            name, count = f"{label} ({count})", count + 1
        return name

    def shared(self, run: Any, label: str = "") -> int:
        """Up to which step a run's past is that of another one in the list."""
        most = 0
        mine = _rows(run)
        for name, item in self._items.items():
            if name == label or item.run is run:
                continue
            other = _rows(item.run)
            count = min(len(mine[0]), len(other[0]))
            different = [k for k in range(count) if mine[0][k] != other[0][k]]
            same = different[0] if different else count
            while same and mine[1][same - 1] != other[1][same - 1]:
                same -= 1
            if same:
                most = max(most, int(run.history["step"][same - 1]))
        return most


def _rows(run: Any) -> tuple[list[float], list[float]]:
    """What tells two pasts apart: the clock, which no two runs share, and the loss."""
    try:
        return list(run.history["seconds"]), list(run.history["loss"])
    except KfacLabError:
        return [], []
