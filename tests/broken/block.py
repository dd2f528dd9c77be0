"""Blocks that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from broken.common import Remembers, named, restless
from broken.half import after, but, common_half, refused
from broken.wrapping import unforwarding
from kfac_lab.core.linalg import Asked, damped_inverse
from kfac_lab.core.state import DampingStrength
from kfac_lab.testing.dense import of_map

__all__ = ["BROKEN", "Inverse", "Sound"]

PartState = Mapping[str, Any]


@dataclass(frozen=True)
class Inverse:
    """(Ā + γI)⁻¹ ⊗ (G + γI)⁻¹."""

    left: Tensor  # (G + γI)⁻¹
    right: Tensor  # (Ā + γI)⁻¹
    a: Tensor  # damped
    g: Tensor
    scale: float = 1.0
    more: Any = None

    def apply(self, matrix: Tensor) -> Tensor:
        """G⁻¹ V Ā⁻¹."""
        return self.left @ matrix @ self.right * self.scale

    def dense(self) -> Tensor:
        """Ā⁻¹ ⊗ G⁻¹."""
        shape = self.g.shape[0], self.a.shape[0]
        if self.a.is_meta:
            return torch.empty(shape[0] * shape[1], shape[0] * shape[1], device="meta")
        return of_map(self.apply, shape, self.a.dtype)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Ā and G, damped."""
        return self.a, self.g


@dataclass(frozen=True)
class _Plain:
    """Ā ⊗ G, each damped by γ; no product."""

    def wants(self) -> Sequence[str]:
        """Both factors."""
        return ("A", "G")

    def factorise(self, moments: Any, part_state: PartState) -> tuple[Any, PartState]:
        """Copies."""
        return (moments["A"].clone(), moments["G"].clone()), part_state

    def damped(
        self, factored: Any, part_state: PartState, strength: DampingStrength, previous: Any
    ) -> Any:
        """Both inverted."""
        return self.changed(inverted(factored, strength.gamma), previous)

    def changed(self, inverse: Inverse, previous: Any) -> Any:
        """Where most of the broken ones differ."""
        return inverse


@dataclass(frozen=True)
class Sound(_Plain):
    """The same, with its product."""

    def product(self, moments: Any, part_state: PartState, matrix: Tensor) -> Tensor:
        """G V Ā."""
        found: Tensor = moments["G"] @ matrix @ moments["A"]
        return found


class _Asks(Sound):
    """Asks for G with twice its γ."""

    def asks(self, factored: Any, strength: DampingStrength) -> tuple[Asked, ...]:
        a, g = factored
        return Asked(("Ā",), a, strength.gamma), Asked(("G",), g, 2 * strength.gamma)

    def made_of(self, factored: Any, strength: DampingStrength, inverses: Any) -> Inverse:
        whole = inverted(factored, strength.gamma)
        return replace(whole, right=inverses[0], left=inverses[1])


def inverted(factored: tuple[Tensor, Tensor], gamma: Any) -> Inverse:
    """The inverse of both factors with γ added to each."""
    a, g = factored
    shift = torch.as_tensor(gamma).to(a.dtype)
    right, left = damped_inverse(a, shift), damped_inverse(g, shift)
    eyes = [torch.eye(len(m), dtype=m.dtype, device=m.device) for m in (a, g)]
    return Inverse(left, right, a + shift * eyes[0], g + shift * eyes[1])


def _changing(change: Callable[[Inverse, Any], Any]) -> type:
    """Another inverse: of the sound one and the previous."""
    return but(Sound, changed=lambda self, answer, *given: change(*given))


def _inverse(**methods: Any) -> Callable[[], Any]:
    """A block whose inverse has other methods."""
    kind = named(__name__, Inverse, **methods)
    return _changing(lambda inverse, previous: kind(**vars(inverse)))


@dataclass(frozen=True)
class _Forgets(Remembers, Sound):
    def changed(self, inverse: Inverse, previous: Any) -> Any:
        if len(inverse.a) != 8:
            return inverse
        self.kept.append(1)
        return replace(inverse, scale=1 + len(self.kept) / 100)


def _skewed(self: Inverse, matrix: Tensor) -> Tensor:
    return Inverse.apply(self, matrix) + matrix.roll(1, 0) / 100


def _negative(self: Inverse, matrix: Tensor) -> Tensor:
    first = torch.zeros_like(matrix)
    first[0, 0] = 1
    return Inverse.apply(self, matrix) - 100 * first * matrix


def _by_rows(self: Inverse) -> Tensor:
    return torch.kron(self.left.contiguous(), self.right.contiguous())


def _undamped(self: Inverse) -> tuple[Tensor, Tensor]:
    return 2 * self.a, self.g


def _damping(gamma: Callable[[DampingStrength], Any], sound: type = Sound) -> type:
    """Another γ than it is given."""
    return but(
        sound,
        damped=lambda self, answer, factored, part_state, strength, previous: answer(
            factored, part_state, strength._replace(gamma=gamma(strength)), previous
        ),
    )


def _less_in_the_middle(strength: DampingStrength) -> Tensor:
    gamma = torch.as_tensor(strength.gamma)
    return torch.where((gamma > 0.2) & (gamma < 1.0), gamma / 10, gamma)


@dataclass(frozen=True)
class _Observer(_Plain):
    """G's diagonal from what it is shown."""

    def observe(
        self, part_state: PartState, rows: Tensor, cotangents: Tensor, weight: float
    ) -> PartState:
        """ε·old + (1−ε)·new."""
        new = self.shown(cotangents)
        return {"g": new if "g" not in part_state else self.mixed(part_state["g"], new, weight)}

    def shown(self, cotangents: Tensor) -> Tensor:
        """Of one step: a mean over cases and positions, summed over cotangents."""
        return cotangents.square().sum(0).mean((0, 1))

    def mixed(self, old: Tensor, new: Tensor, weight: float) -> Tensor:
        """ε·old + (1−ε)·new."""
        return (1 - weight) * old + weight * new

    def factorise(self, moments: Any, part_state: PartState) -> tuple[Any, PartState]:
        g = torch.diag(part_state["g"]) if "g" in part_state else moments["G"].clone()
        return (moments["A"].clone(), g), part_state


def _product(change: Callable[[Tensor, Tensor], Tensor]) -> type:
    """Another product: of the sound one and the matrix."""
    return but(Sound, product=after(lambda found, moments, state, v: change(found, v)))


def _leans(inverse: Inverse, previous: Any) -> Inverse:
    if isinstance(previous, Inverse) and previous.a.shape == inverse.a.shape:
        return replace(inverse, right=(inverse.right + previous.right) / 2)
    return inverse


def _unsaved(inverse: Inverse, previous: Any) -> Inverse:
    return replace(inverse, more=object()) if len(inverse.a) == 2 else inverse


def _restless() -> Any:
    more = restless(lambda inverse: replace(inverse, right=inverse.right * 1.0))
    return _changing(lambda inverse, previous: more(inverse))()


BROKEN: dict[str, Callable[[], Any]] = {
    **common_half(Sound, "changed", lambda inverse, factor: replace(inverse, scale=factor)),
    "inputs_not_written": but(
        Sound, factorise=after(lambda found, moments, _: (found, moments["A"].mul_(0.5))[0])
    ),
    "dtype_follows": _inverse(apply=lambda self, v: Inverse.apply(self, v).double()),
    "forwards_traits": unforwarding("block", "kronecker"),
    "trains": but(Sound, changed=refused(lambda inverse, _: len(inverse.a) == 8)),
    "resumes": _Forgets,
    "replays": _restless,
    "wants_known": but(Sound, wants=after(lambda names: (*names, "A"))),
    "shapes": _inverse(dense=lambda self: Inverse.dense(self)[:-1]),
    "linear": _inverse(apply=lambda self, v: Inverse.apply(self, v) * (1 + v * v / 100)),
    "symmetric": _inverse(apply=_skewed),
    "positive_definite": _inverse(apply=_negative),
    "equals_dense": _inverse(dense=_by_rows),
    "equals_its_factors": _inverse(factors=_undamped),
    "falls_with_gamma": _damping(_less_in_the_middle),
    "damping_limit": _damping(lambda strength: strength.gamma**2),  # γ⁴ stands for λ + η
    "gamma_damps": _damping(lambda strength: torch.sqrt(strength.lam + strength.eta), _Plain),
    "product_linear": _product(lambda found, v: found + v * v),
    "product_symmetric": _product(lambda found, v: found + v.roll(1, 0) / 100),
    "product_positive": _product(lambda found, v: found - 100 * v),
    "inverts_its_product": _product(lambda found, v: 2 * found),
    "observe_weighs": but(_Observer, mixed=lambda self, a, old, new, weight: a(new, old, weight)),
    "observe_means": but(_Observer, shown=after(lambda g, rows: g * rows.shape[1])),
    "cotangents_even": but(
        _Observer, shown=after(lambda g, rows: rows.sum(0).square().mean((0, 1)))
    ),
    "keeps_no_moments": but(
        Sound, factorise=after(lambda found, moments, _: ((moments["A"], found[0][1]), found[1]))
    ),
    "asked_is_damped": _Asks,
    "previous_is_a_hint": _changing(_leans),
    "saved": _changing(_unsaved),
}
