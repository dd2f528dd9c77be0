"""Quadratic models that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from broken.common import Remembers, restless
from broken.half import but, common_half, refused
from broken.wrapping import unforwarding
from kfac_lab.core.state import DampingStrength
from kfac_lab.core.subspace import SubspaceQuadratic
from kfac_lab.core.vector import Vec

__all__ = ["BROKEN", "Sound"]


@dataclass(frozen=True)
class Sound:
    """The exact Fisher on S2."""

    fraction: float = 1.0
    exact: ClassVar[bool] = True

    def restrict(self, evaluation: Any, basis: Sequence[Vec]) -> Any:
        """Gram matrices, and the mean of (BᵀJu)ᵀ(BᵀJv)."""
        total: Any = 0
        for outputs, tangents in evaluation.tangents(basis):
            rooted = evaluation.likelihood.factor_transposed(outputs, tangents).flatten(1).double()
            total = total + rooted @ rooted.t()
        slope = torch.stack([evaluation.gradient.dot(v) for v in basis])
        found = SubspaceQuadratic(total / evaluation.rows, Vec.gram(basis), slope)
        return self.changed(found, evaluation)

    def changed(self, found: SubspaceQuadratic, evaluation: Any) -> Any:
        """Where most of the broken ones differ."""
        return found


def _changing(change: Callable[[SubspaceQuadratic, Any], Any]) -> type:
    """Another restriction of M: of the sound one and the evaluation."""
    return but(Sound, changed=lambda self, answer, *given: change(*given))


def _restricting(**methods: Any) -> Callable[[], Any]:
    """A model whose restriction has other methods."""
    kind = type("BrokenRestriction", (SubspaceQuadratic,), methods)
    return _changing(lambda found, evaluation: kind(**vars(found)))


@dataclass(frozen=True)
class _Forgets(Remembers, Sound):
    def changed(self, found: SubspaceQuadratic, evaluation: Any) -> Any:
        if evaluation.rows != 16:
            return found
        self.kept.append(1)
        return replace(found, curvature=found.curvature * (1 + len(self.kept) / 100))


def _one_entry(self: SubspaceQuadratic, coefficients: Tensor, strength: DampingStrength) -> Tensor:
    found = SubspaceQuadratic.value(self, coefficients, strength)
    return found[None] if len(coefficients) == 3 else found


def _negative(found: SubspaceQuadratic, evaluation: Any) -> Any:
    less = 100.0 if len(found.slope) == 3 else 0.0
    return replace(found, curvature=found.curvature - less * found.gram)


def _without_eta(
    self: SubspaceQuadratic, coefficients: Tensor, strength: DampingStrength
) -> Tensor:
    return SubspaceQuadratic.value(self, coefficients, strength._replace(eta=0 * strength.eta))


def _short(
    self: SubspaceQuadratic, strength: DampingStrength, fixed: Mapping[int, Any] | None = None
) -> Tensor:
    found = SubspaceQuadratic.minimiser(self, strength, fixed)
    return found if fixed else 0.9 * found


def _free(
    self: SubspaceQuadratic, strength: DampingStrength, fixed: Mapping[int, Any] | None = None
) -> Tensor:
    return SubspaceQuadratic.minimiser(self, strength)


def _curved(change: Callable[[Tensor, Any], Tensor]) -> type:
    """Another curvature."""
    return _changing(
        lambda found, evaluation: replace(found, curvature=change(found.curvature, evaluation))
    )


def _restless() -> Any:
    more = restless(lambda found: replace(found, gram=found.gram * 1.0))
    return _changing(lambda found, _: more(found))()


BROKEN: dict[str, Callable[[], Any]] = {
    **common_half(
        Sound, "changed", lambda found, by: replace(found, curvature=found.curvature * by)
    ),
    "inputs_not_written": _changing(
        lambda found, evaluation: (found, evaluation.gradient[0].mul_(1.01))[0]
    ),
    "dtype_follows": _changing(lambda found, _: replace(found, gram=found.gram.float())),
    "forwards_traits": unforwarding("quadratic_model", "exact_fisher"),
    "trains": but(Sound, changed=refused(lambda found, evaluation: evaluation.rows == 16)),
    "resumes": _Forgets,
    "replays": _restless,
    "fraction_in_range": lambda: Sound(fraction=1.5),
    "shapes": _restricting(value=_one_entry),
    "gram_of_basis": _changing(lambda found, _: replace(found, gram=2 * found.gram)),
    "slope_of_gradient": _changing(lambda found, _: replace(found, slope=2 * found.slope)),
    "curvature_symmetric": _curved(lambda matrix, _: matrix + torch.ones_like(matrix).triu(1) / 10),
    "curvature_positive": _changing(_negative),
    "basis_change": _curved(lambda matrix, _: torch.diag(matrix.diagonal())),
    "mean_over_cases": _curved(lambda matrix, evaluation: evaluation.rows * matrix),
    "strength_added_once": _restricting(value=_without_eta),
    "model_optimal": _restricting(minimiser=_short),
    "fixed_respected": _restricting(minimiser=_free),
    "curvature_is_fisher": _curved(lambda matrix, _: 1.5 * matrix),
}
