"""Several likelihoods side by side: a model with several heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.cases import Cases, HeadTargets
from kfac_lab.core.likelihood.outputs import listed
from kfac_lab.core.likelihood.protocol import (
    Counted,
    Flaw,
    Likelihood,
    is_examined,
    is_joining,
    is_weighted,
)
from kfac_lab.core.likelihood.weights import root, shaped, times, weight_flaws
from kfac_lab.core.traits import LikelihoodTraits, traits
from kfac_lab.errors import DataError, RecipeError

__all__ = ["Joint"]


class Joint:
    """Independent heads under one network: losses add up, F_R has a block for each head.

    ``Joint(policy="categorical", value=Gaussian(scale=0.5))`` takes a model's dict or dataclass by
    these names, and a tuple in their order; targets likewise. A head is whatever ``likelihood=``
    takes, torch's losses included, each with its own mean. Every head draws its own targets. The
    error reported is the sum of the heads'.

    Raises:
        RecipeError: no head, or one that is no likelihood.
    """

    def __init__(self, **heads: Any) -> None:
        from kfac_lab.core.likelihood.resolve import resolve

        if not heads:
            raise RecipeError(
                "Joint needs a likelihood for each head of the model: "
                "Joint(policy='categorical', value='gaussian')"
            )
        self.heads: dict[str, Likelihood] = {name: resolve(each) for name, each in heads.items()}
        self.shapes: dict[str, tuple[int, ...]] | None = None  # of one case

    def _made(
        self, heads: Mapping[str, Likelihood], shapes: Mapping[str, tuple[int, ...]] | None
    ) -> Joint:
        other = object.__new__(Joint)
        other.heads, other.shapes = dict(heads), None if shapes is None else dict(shapes)
        return other

    def __repr__(self) -> str:
        return f"Joint({', '.join(f'{name}={each!r}' for name, each in self.heads.items())})"

    @property
    def traits(self) -> LikelihoodTraits:
        """The sum is never below 0 where no head's loss is."""
        heads = (traits(head, LikelihoodTraits) for head in self.heads.values())
        return LikelihoodTraits(nonnegative=all(own.nonnegative for own in heads))

    # --- the heads' outputs as one tensor ---------------------------------------------------------

    def joined(self, outputs: Any) -> tuple[Tensor, Joint]:
        """The heads' outputs ``[N, ...]`` as one ``[N, D]``, and the Joint that knows their shapes.

        Raises:
            DataError: a head is not among the outputs.
        """
        if isinstance(outputs, Tensor) and self.shapes is not None:
            return outputs, self
        parts = self._by_head(outputs, "the model's outputs")
        heads, flat, shapes = {}, [], {}
        for name, head in self.heads.items():
            part = parts[name]
            if is_joining(head):
                part, head = head.joined(part)
            if not isinstance(part, Tensor):
                raise DataError(
                    f"the head {name!r} of the model gives a {type(part).__name__}, and its "
                    "likelihood is of one tensor"
                )
            heads[name], shapes[name] = head, tuple(part.shape[1:])
            flat.append(part.reshape(part.shape[0], -1))
        same = self.shapes == shapes and all(heads[n] is h for n, h in self.heads.items())
        return torch.cat(flat, 1), self if same else self._made(heads, shapes)

    def fitted(self, **shapes: tuple[int, ...]) -> Joint:
        """The Joint for heads whose outputs for one case have these shapes."""
        return self._made(self.heads, shapes)

    def _by_head(self, given: Any, what: str) -> dict[str, Any]:
        tree = given.tree if isinstance(given, Cases) else given
        parts = {} if isinstance(tree, Tensor) else listed(tree)
        numbered = isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields")
        if numbered and len(parts) == len(self.heads):
            return dict(zip(self.heads, parts.values(), strict=True))
        lacking = [name for name in self.heads if name not in parts]
        if numbered or lacking:
            had = f"a {type(tree).__name__}" + (f" of {', '.join(parts)}" if parts else "")
            raise DataError(
                f"{what} are {had}, and the Joint has heads {', '.join(self.heads)}: give a dict "
                "of these names, or a tuple in their order"
            )
        return parts

    def _slices(self) -> dict[str, tuple[slice, tuple[int, ...]]]:
        if self.shapes is None:
            raise RecipeError(
                "a Joint learns the shapes of its heads from the model's outputs: call "
                "joint.joined(outputs), or joint.fitted(policy=(4,), value=(1,))"
            )
        found, at = {}, 0
        for name, shape in self.shapes.items():
            size = torch.Size(shape).numel()
            found[name] = slice(at, at + size), shape
            at += size
        return found

    def _cut(self, values: Tensor) -> list[Tensor]:
        """``[..., D]`` by heads ``[..., *shape]``."""
        ahead = values.shape[:-1]
        return [values[..., where].reshape(*ahead, *s) for where, s in self._slices().values()]

    def _each(self, outputs: Tensor) -> list[tuple[Any, Tensor]]:
        return list(zip(self.heads.values(), self._cut(outputs), strict=True))

    def _labelled(
        self, outputs: Tensor, targets: Any
    ) -> list[tuple[Any, Tensor, Any, Tensor | None]]:
        """Each head, its outputs, its targets and its weights of cases."""
        own = self._by_head(targets, "targets")
        parts = zip(self.heads.items(), self._cut(outputs), strict=True)
        return [(head, z, *_apart(own[name])) for (name, head), z in parts]

    def weighed(self, targets: Any, weights: Mapping[str, Any]) -> Cases:
        """Targets by head, of which those of the heads in ``weights`` have a weight a case ``[n]``.

        Raises:
            DataError: a name that is no head, or weights that are not a real number for each case.
        """
        own = self._by_head(targets, "targets")
        strange = [name for name in weights if name not in self.heads]
        if strange:
            raise DataError(
                f"weights are given for {', '.join(strange)}, and the Joint has heads "
                f"{', '.join(self.heads)}"
            )
        for name, w in weights.items():
            count = len(own[name])
            if not isinstance(w, Tensor) or not w.is_floating_point() or w.shape != (count,):
                what = f"{tuple(w.shape)} of {w.dtype}" if isinstance(w, Tensor) else repr(w)
                raise DataError(
                    f"weights of the head {name!r} are one real number for each of {count} cases, "
                    f"not {what}"
                )
        pairs = {n: HeadTargets(own[n], w.detach()) for n, w in weights.items()}
        return Cases({name: pairs.get(name, own[name]) for name in self.heads}, "targets")

    @staticmethod
    def _flat(parts: Sequence[Tensor], ahead: int = 1) -> Tensor:
        return torch.cat([p.flatten(ahead) if p.dim() > ahead else p[..., None] for p in parts], -1)

    # --- Likelihood -------------------------------------------------------------------------------

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """The sum of the heads' losses ``[N]``."""
        found = [times(h.loss(z, y), w) for h, z, y, w in self._labelled(outputs, targets)]
        return torch.stack(found).sum(0)

    def gradient(self, outputs: Tensor, targets: Any) -> Tensor:
        """As of ``Likelihood``."""
        return self._flat(
            [
                times(h.gradient(z, y), shaped(w, z))
                for h, z, y, w in self._labelled(outputs, targets)
            ]
        )

    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """As of ``Likelihood``; every head draws by its own uniforms."""
        pairs = zip(self._each(outputs), self._cut(uniforms), strict=True)
        return self._flat([head.sampled_gradient(z, u) for (head, z), u in pairs])

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        pairs = zip(self._each(outputs), self._cut(tangents), strict=True)
        return self._flat([head.factor_transposed(z, u) for (head, z), u in pairs], 2)

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        """As of ``Likelihood``."""
        pairs = zip(self._each(outputs), self._cut(tangents), strict=True)
        return self._flat([head.fisher(z, u) for (head, z), u in pairs])

    def factor_columns(self, outputs: Tensor) -> int:
        """As of ``Likelihood``."""
        return sum(head.factor_columns(z) for head, z in self._each(outputs))

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        """As of ``Likelihood``: a column of one head, 0 in the others."""
        parts = []
        for head, z in self._each(outputs):
            count = head.factor_columns(z)
            own = 0 <= column < count
            parts.append(head.factor_column(z, column) if own else torch.zeros_like(z))
            column -= count
        return self._flat(parts)

    def error(self, outputs: Tensor, targets: Any) -> Tensor:
        """The sum of the heads' errors ``[N]``."""
        found = [times(h.error(z, y), w) for h, z, y, w in self._labelled(outputs, targets)]
        return torch.stack(found).sum(0)

    def mean(self, outputs: Tensor) -> Any:
        """E[y|z] by head."""
        pairs = zip(self.heads, self._each(outputs), strict=True)
        return {name: head.mean(z) for name, (head, z) in pairs}

    def predictions(self, outputs: Tensor) -> int:
        """As of ``Counted``: those of the head that makes most."""
        counts = [h.predictions(z) for h, z in self._each(outputs) if isinstance(h, Counted)]
        return max([1, *counts])

    # --- Weighted ---------------------------------------------------------------------------------

    def _each_with(self, change: Callable[[Likelihood], Likelihood]) -> Joint:
        return self._made({name: change(h) for name, h in self.heads.items()}, self.shapes)

    @property
    def bare(self) -> Joint:
        """As of ``Weighted``."""
        return self._each_with(lambda h: h.bare if is_weighted(h) else h)

    def weights(self, outputs: Tensor, targets: Any) -> Tensor | float | None:
        """As of ``Weighted``."""
        own: Any = self._by_head(targets, "targets") if targets is not None else {}
        found = []
        for (name, head), z in zip(self.heads.items(), self._cut(outputs), strict=True):
            y, cases = _apart(own.get(name))
            w = head.weights(z, y) if is_weighted(head) else None
            found.append(w if cases is None else times(shaped(cases, z), w))
        if all(w is None for w in found):
            return None
        parts = [
            torch.ones_like(z) if w is None else torch.ones_like(z) * w
            for w, z in zip(found, self._cut(outputs), strict=True)
        ]
        return self._flat(parts)

    def totals(self, targets: Any) -> tuple[Tensor, ...]:
        """As of ``Weighted``: those of the heads, in their order."""
        own = self._by_head(targets, "targets")
        return tuple(
            total
            for name, head in self.heads.items()
            if is_weighted(head)
            for total in head.totals(_apart(own[name])[0])
        )

    def on_batch(self, cases: int, totals: Iterator[Tensor]) -> Joint:
        """As of ``Weighted``."""
        return self._each_with(lambda h: h.on_batch(cases, totals) if is_weighted(h) else h)

    def label_gradient(self, outputs: Tensor, targets: Any) -> Tensor:
        """As of ``Weighted``."""
        parts = []
        for head, z, y, w in self._labelled(outputs, targets):
            own = head.label_gradient if is_weighted(head) else head.gradient
            parts.append(times(own(z, y), root(shaped(w, z))))
        return self._flat(parts)

    def flaws(self, outputs: Tensor | None, targets: Any) -> Sequence[Flaw]:
        """As of ``Examined``: those of the heads, each named.

        Raises:
            DataError: targets of a head that are no tensor.
        """
        own = self._by_head(targets, "targets")
        known: list[Any] = self._cut(outputs) if outputs is not None else [None] * len(self.heads)
        found = []
        for (name, head), z in zip(self.heads.items(), known, strict=True):
            y, w = _apart(own[name])
            if not isinstance(y, Tensor):
                raise DataError(
                    f"targets of the head {name!r} are a {type(y).__name__}: give a tensor [n, ...]"
                )
            flaws = list(head.flaws(z, y)) if is_examined(head) else []
            flaws += [] if w is None else weight_flaws(w)
            found += [_named(name, flaw) for flaw in flaws]
        return found


def _apart(own: Any) -> tuple[Any, Tensor | None]:
    """A head's targets, and its weights of cases."""
    return (own.targets, own.weights) if isinstance(own, HeadTargets) else (own, None)


def _named(head: str, flaw: Flaw) -> Flaw:
    return flaw._replace(says=lambda: f"head {head!r}: {flaw.says()}")
