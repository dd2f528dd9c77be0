"""The store: running second moments of every layer and linked pair (section 5).

Two sides are kept per moment. A step accumulates into the spare side and reads from it; its commit
names that side the current one. So a step that fails has changed nothing, and commit allocates
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from kfac_lab.core.layers import dense
from kfac_lab.core.limits import memory_of, shown
from kfac_lab.core.precision import shortened
from kfac_lab.core.program import supplied
from kfac_lab.core.program.stepwise import RECORDING
from kfac_lab.core.program.supplied import called
from kfac_lab.core.protocols import Layer
from kfac_lab.core.row_products import parts, reduced, sums, symmetric_update
from kfac_lab.core.rows import Grouped
from kfac_lab.core.traits import LayerTraits, traits
from kfac_lab.errors import CoverageError, RecipeError

__all__ = ["Accumulation", "Ledger", "MomentLayout", "MomentStore", "Table", "aged"]

Key = tuple[str, int, int]  # name, layer, layer; both equal but for cross moments
WIDE = 192  # on a CPU: from which side on a moment is updated by strips, from 256 rows up
NAMES = ("A", "G", "A.diagonal", "G.diagonal", "A.mean", "A.reduced", "G.reduced")


class _OfLayer(Mapping[str, Tensor]):
    def __init__(self, side: Mapping[Key, Tensor], layer: int) -> None:
        self._side, self._layer = side, layer

    def __getitem__(self, name: str) -> Tensor:
        return self._side[name, self._layer, self._layer]

    def __iter__(self) -> Iterator[str]:
        return (name for name, i, j in self._side if i == j == self._layer)

    def __len__(self) -> int:
        return sum(1 for _ in iter(self))

    def __contains__(self, name: object) -> bool:
        return (name, self._layer, self._layer) in self._side


def aged(ages: Mapping[Key, int]) -> dict[Key, int]:
    """Of moments that a swap opened, after one more update."""
    return {key: age + 1 for key, age in ages.items()}


class Table:
    """One side of the store as structures see it: ``table[i]["A"]``, ``table.cross(i, j)``."""

    def __init__(self, side: Mapping[Key, Tensor], links: Sequence[tuple[int, int]]) -> None:
        self._side = side
        self.links = tuple(links)

    def __getitem__(self, layer: int) -> Mapping[str, Tensor]:
        return _OfLayer(self._side, layer)

    def cross(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        """E[ā_i ā_jᵀ] and E[g_i g_jᵀ]."""
        return self._side["A", i, j], self._side["G", i, j]


class Accumulation:
    """New second moments of one step, gathered into the store's spare side chunk by chunk."""

    def __init__(
        self, store: MomentStore, epsilon: float, cases: int, kind: str = "float32"
    ) -> None:
        self._store, self._epsilon, self._cases = store, epsilon, cases
        self._kind = kind  # of its products (``core.precision``)
        self._current, self._spare = store.current, store.spare
        self._started: set[Key] = set()
        self._sums: dict[Key, Tensor] = {}  # of rows whose number is known at the end alone
        self._counts: dict[int, int] = {}  # such rows of each layer, once for each case served

    def inputs(self, rows: Sequence[Grouped | None]) -> None:
        """ā of each layer for a chunk of cases: ``[n, S, d_in]``, or None where not recorded.

        Rows that have no case of their own come as a tuple (``core.rows``).
        """
        for i, own in enumerate(rows):
            if isinstance(own, tuple) or i in self._counts:
                more = sum(r.count for r in parts(own)) if own is not None else 0
                self._counts[i] = self._counts.get(i, 0) + more
        self._gathered("A", rows)

    def gradients(self, rows: Sequence[Grouped | None]) -> None:
        """g of each layer for a chunk of cases and one cotangent: ``[n, S, d_out]``."""
        self._gathered("G", rows)

    def _gathered(self, kind: str, rows: Sequence[Grouped | None]) -> None:
        with shortened(self._kind):
            self._gather(kind, rows)

    def _loose(self, key: Key, rows: Grouped) -> None:
        """Sums over rows of no case's own: A counts them for each case served, G once."""
        name, layer, _ = key
        if name.endswith(".reduced"):
            path = self._store.layout.paths[layer]
            raise CoverageError(
                f"{path}: which rows belong to a case is not known, so they cannot be reduced "
                "(Eschenhagen et al. 2023): block='kronecker' takes them one by one"
            )
        for part in parts(rows):
            values = part.values.flatten(0, 1)
            if not len(values):
                continue  # what got nothing keeps what it has
            if name.endswith(".diagonal"):
                new = (values * values).sum(0)
            elif name.endswith(".mean"):
                new = values.sum(0)
            else:
                new = values.t() @ values
            if name.startswith("A") and part.times > 1:
                new = new * part.times
            before = self._sums.get(key)
            self._sums[key] = new if before is None else before + new

    def _close(self, key: Key) -> None:
        """A ← Σ/N and G ← Σ/R, R counting a row for each case that it serves."""
        count = self._counts[key[1]]
        old, new = self._weights(key)
        if key[0].endswith(".mean"):
            scale = 1 / math.sqrt(self._cases * count)
        else:
            scale = 1 / self._cases if key[0].startswith("A") else 1 / count
        self._add(key, self._sums[key], old, new * scale)

    def takes_fisher(self, layer: int) -> bool:
        """Whether G of a layer has no cross moment and no reduced one, which need its rows."""
        keys = [k for k in self._store.keys if k[0].startswith("G") and layer in k[1:]]
        return {k[0] for k in keys} <= {"G", "G.diagonal"} and all(k[1] == k[2] for k in keys)

    def fisher(self, layer: int, diagonal: Tensor, root: Tensor | None) -> None:
        """G of a layer from the F_R of its rows: ``diagonal`` d and ``root`` r ``[n, S, d_out]``,
        each row's being diag(d) − r rᵀ.
        """
        weight = self._cases * diagonal.shape[1]
        rows = None if root is None else root.flatten(0, 1)
        for key in self._store.keys:
            if key[1:] != (layer, layer) or not key[0].startswith("G"):
                continue
            old, new = self._weights(key)
            total = diagonal.flatten(0, 1).sum(0)
            if key[0] == "G":
                total = torch.diag(total) if rows is None else torch.diag(total) - rows.t() @ rows
            elif rows is not None:
                total = total - (rows * rows).sum(0)
            self._add(key, total, old, new / weight)

    def _gather(self, kind: str, rows: Sequence[Grouped | None]) -> None:
        for key, form in self._store.layout.by_kind[kind]:
            _, i, j = key
            left, right = rows[i], rows[j]
            if left is None or right is None:
                continue
            if i == j and (i in self._counts or isinstance(left, tuple)):
                self._loose(key, left)
                continue
            if isinstance(left, tuple) or isinstance(right, tuple):
                continue  # a link whose end has lost its cases
            # A sums over shared positions, G averages over them (KFC, 2016); the outer product
            # of the mean is the part of A that the mean makes.
            positions = left.shape[1]
            old, new = self._weights(key)
            if form == "reduced":
                groups = self._store.groups[i]
                left = right = reduced(left, groups, mean=kind == "G")
                positions = groups
            new = new / self._cases if kind == "A" else new / self._cases / positions
            if form == "diagonal":
                self._add(key, sums(left, squared=True), old, new)
            elif form == "mean":
                self._add(key, sums(left, squared=False), old, new / math.sqrt(positions))
            else:
                flat = dense(left).flatten(0, 1)
                other = flat if right is left else dense(right).flatten(0, 1)
                self._product(key, flat, other, old, new)

    def weights(self) -> dict[Hashable, float]:
        """Of the old moment and of the new, for every key, as a program is given them."""
        found: dict[Hashable, float] = {}
        for key in self._store.keys:
            found["old", key], found["new", key] = self._plainly(key)
        return found

    def _weights(self, key: Key) -> tuple[float, float]:
        """:meth:`_plainly`, for a call of this step."""
        old, new = self._plainly(key)
        if RECORDING.get() is None:  # a step asks for every key
            return old, new
        return supplied(("old", key), old), supplied(("new", key), new)

    def _plainly(self, key: Key) -> tuple[float, float]:
        """Of the old moment and of the new: (ε, 1−ε), and a running mean for one just opened.

        A cross moment has the geometric means of its ends' weights, so that the joint second
        moment is a sum of positive semidefinite parts whatever the ends' ages.
        """
        name, i, j = key
        if i == j:
            own = self._own(key)
            return own, 1.0 - own
        a, b = self._own((name, i, i)), self._own((name, j, j))
        if a == b:
            return a, 1.0 - a
        return math.sqrt(a * b), math.sqrt((1.0 - a) * (1.0 - b))

    def _own(self, key: Key) -> float:
        age = self._store.ages.get(key)
        return self._epsilon if age is None else min(self._epsilon, 1.0 - 1.0 / (age + 1))

    def _product(self, key: Key, left: Tensor, right: Tensor, old: float, new: float) -> None:
        spare, current = self._spare[key], self._current[key]
        if key in self._started:
            current, old = spare, 1.0
        self._started.add(key)
        wide = left.device.type == "cpu" and left.shape[1] >= WIDE
        if wide and key[1] == key[2]:
            symmetric_update(spare, current, left, old, new)
        else:
            called(torch.addmm, current, left.t(), right, beta=old, alpha=new, out=spare)

    def _add(self, key: Key, sums: Tensor, old: float, new: float) -> None:
        spare = self._spare[key]
        if key not in self._started:
            torch.mul(self._current[key], old, out=spare)
            self._started.add(key)
        called(Tensor.add_, spare, sums, alpha=new)

    def finish(self) -> list[Tensor]:
        """The spare side's tensors; moments that got nothing new decay nothing and are kept."""
        for key in self._sums:
            self._close(key)
        for key in self._store.keys:
            if key not in self._started:
                self._spare[key].copy_(self._current[key])
        return [self._store.spare[key] for key in self._store.keys]


def _check_room(layers: Sequence[Layer], wants: Sequence[Sequence[str]], like: Tensor) -> None:
    """Dense moments, twice, have to fit into the memory there is.

    Raises:
        RecipeError: they do not; the largest layer is named.
    """
    sizes = []
    for layer, names in zip(layers, wants, strict=True):
        sides = [layer.d_in if n.startswith("A") else layer.d_out for n in names if "." not in n]
        sizes.append(2 * like.dtype.itemsize * sum(side * side for side in sides))
    room = memory_of(like.device)
    if not like.is_meta and sum(sizes) > room:
        most = max(range(len(sizes)), key=sizes.__getitem__)
        layer = layers[most]
        raise RecipeError(
            f"the moments of all layers take {shown(sum(sizes))}, more than the {shown(room)} "
            f"there are on {like.device}: {layer.path}, of sides {layer.d_out} and {layer.d_in}, "
            f"takes {shown(sizes[most])} of it; give it a smaller block, such as block="
            f"{{{layer.path!r}: 'diagonal', '*': 'kronecker'}}"
        )


class MomentLayout:
    """Which moments are kept, of what shape, and memory for two sides of each.

    Args:
        layers: the geometry, for the shapes. A layer may have ``groups`` (1 where it has none): its
            positions come as ``[S, groups]``, and ``"A.reduced"`` and ``"G.reduced"`` take the
            positions of each group together.
        wants: for each layer, the names its block asked for.
        links: pairs whose cross moments are kept; they open at zero and share the weights of the
            diagonals, so that the joint second moment stays positive semidefinite.
        like: a tensor of the right dtype and device.

    Raises:
        RecipeError: a block wants a moment that there is not.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        wants: Sequence[Sequence[str]],
        links: Sequence[tuple[int, int]],
        like: Tensor,
    ) -> None:
        self.links = tuple(links)
        self.paths = tuple(layer.path for layer in layers)
        self.groups = tuple(int(traits(layer, LayerTraits).groups) for layer in layers)
        self.nothing = like.new_zeros(())
        _check_room(layers, wants, like)
        first: dict[Key, Tensor] = {}
        for i, names in enumerate(wants):
            for name in names:
                if name not in NAMES:
                    raise RecipeError(
                        f"layer {layers[i].path}: its block wants the moment {name!r}, which is "
                        f"none of {', '.join(NAMES)}"
                    )
                side = layers[i].d_in if name.startswith("A") else layers[i].d_out
                shape = (side,) if name.endswith((".diagonal", ".mean")) else (side, side)
                first[name, i, i] = like.new_zeros(shape)
        for i, j in self.links:
            first["A", i, j] = like.new_zeros((layers[i].d_in, layers[j].d_in))
            first["G", i, j] = like.new_zeros((layers[i].d_out, layers[j].d_out))
        self.keys: tuple[Key, ...] = tuple(first)
        # the keys of ā and of g, each with what is behind its dot
        self.by_kind: Mapping[str, tuple[tuple[Key, str], ...]] = {
            kind: tuple((k, k[0].partition(".")[2]) for k in first if k[0].startswith(kind))
            for kind in "AG"
        }
        self.sides = first, {key: torch.empty_like(value) for key, value in first.items()}

    def opened(self) -> MomentStore:
        """The store before its first update: everything zero."""
        return MomentStore(self, self.sides[0], {})

    def holding(self, moments: Mapping[Key, Tensor], ages: Mapping[Key, int]) -> MomentStore:
        """A store of these moments, which become one of the two sides; the keys are the layout's.

        Nothing that another store holds is written into.
        """
        own = dict(moments)
        self.sides = own, self.sides[1]
        return MomentStore(self, own, dict(ages))

    def inheriting(self, other: MomentStore) -> MomentStore:
        """A store with the moments that ``other`` keeps too (a swap of block or structure).

        What is new opens at zero, and starts as a running mean.
        """
        known, free = other.current, other.spare
        same = {k for k, v in self.sides[0].items() if k in known and known[k].shape == v.shape}
        first, second = (
            {key: kept[key] if key in same else own for key, own in side.items()}
            for side, kept in zip(self.sides, (known, free), strict=True)
        )
        self.sides = first, second
        ages = {
            key: other.ages.get(key, 0)
            for key in self.keys
            if key[1] == key[2] and (key not in known or key in other.ages)
        }
        return MomentStore(self, first, ages)


class MomentStore:
    """Running estimates of E[ā_i ā_jᵀ] and E[g_i g_jᵀ] for the pairs asked for: a value.

    Attributes:
        current: the moments as the last step left them; one of the layout's two sides.
        spare: the side that a step accumulates into.
        ages: updates so far of moments that a swap opened: they start as a running mean.
    """

    def __init__(
        self, layout: MomentLayout, current: Mapping[Key, Tensor], ages: Mapping[Key, int]
    ) -> None:
        self.layout, self.current, self.ages = layout, current, ages
        self.keys, self.links, self.groups = layout.keys, layout.links, layout.groups
        first, second = layout.sides
        self.spare: dict[Key, Tensor] = second if current is first else first

    def accumulate(self, epsilon: float, cases: int, kind: str = "float32") -> Accumulation:
        """Starts ε·current + (1−ε)·(mean over ``cases``) on the spare side; its products are of
        the ``kind`` that ``core.precision`` says.
        """
        return Accumulation(self, epsilon, cases, kind)

    def table(self, *, spare: bool) -> Table:
        """The moments as this step sees them, or as the last one left them."""
        return Table(self.spare if spare else self.current, self.links)

    def exchanged(self) -> MomentStore:
        """The store after a step: what was accumulated is current."""
        return MomentStore(self.layout, self.spare, aged(self.ages))

    def diagonals(self) -> list[Tensor]:
        """Of the moments on the spare side, and the cross moments' sums: finite exactly where the
        increments are.
        """
        return [
            (value.diagonal() if value.dim() == 2 else value) if i == j else value.sum()
            for (_, i, j), value in self.spare.items()
        ]


Ledger = MomentStore  # its former name
