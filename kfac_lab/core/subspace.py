"""SubspaceQuadratic: the quadratic model on the span of k vectors (section 6.1, appendix C).

Models make it, momenta and the γ search consume it; none can tell which model it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.state import DampingStrength

__all__ = ["SubspaceQuadratic"]

# A pivot below this share of its diagonal entry is a direction that the others span already.
_DEPENDENT = 1e-10


@dataclass(frozen=True)
class SubspaceQuadratic:
    """M on the span of k vectors; see ``core.protocols.SubspaceModel``."""

    curvature: Tensor  # [k, k], never with λ or η
    gram: Tensor  # [k, k]
    slope: Tensor  # [k]
    loss: Tensor | None = None  # h(θ), where it is known that h cannot fall below 0
    split: int = 0  # how many vectors, the first ones, are the parts of one direction, by layers
    cases: int = 0  # of how many cases the curvature is; 0: not known

    def _matrix(self, strength: DampingStrength) -> Tensor:
        return self.curvature + (strength.lam + strength.eta) * self.gram

    def value(self, coefficients: Tensor, strength: DampingStrength) -> Tensor:
        """M(Σ c_j v_j) − M(0), 0-dim."""
        c = coefficients
        return (self.slope * c).sum() + 0.5 * (c * (self._matrix(strength) * c).sum(1)).sum()

    def minimiser(
        self,
        strength: DampingStrength,
        fixed: Mapping[int, Any] | None = None,
        ridge: Tensor | None = None,
    ) -> Tensor:
        """The c of least value; ``fixed`` maps an index to the number its coefficient is held at.

        With a ``ridge`` ``[k]`` it is that of value(c) + ½ Σ ridge_j c_j².

        A zero or dependent direction gets the coefficient 0, which is one of the minimisers
        (section 7): elimination with selects, since a library solve would check on the host.
        """
        k = self.slope.shape[0]
        matrix, right = self._matrix(strength), -self.slope
        if ridge is not None:
            matrix = matrix + torch.diag(ridge)
        fixed = fixed or {}
        free = [j for j in range(k) if j not in fixed]
        for j, value in fixed.items():
            right = right - matrix[:, j] * value
        entries, sides = [row.unbind() for row in matrix.unbind()], right.unbind()
        # LDLᵀ of the free block, in order: the first direction is never given up for a later one.
        lower: dict[tuple[int, int], Tensor] = {}
        pivot: dict[int, Tensor] = {}
        dependent: dict[int, Tensor] = {}
        forward: dict[int, Tensor] = {}
        for a, i in enumerate(free):
            d, y = entries[i][i], sides[i]
            for j in free[:a]:
                entry = entries[i][j]
                for n in free[: free.index(j)]:
                    entry = entry - lower[i, n] * lower[j, n] * pivot[n]
                entry = (entry / pivot[j]).masked_fill(dependent[j], 0.0)
                lower[i, j] = entry
                d = d - entry * entry * pivot[j]
                y = y - entry * forward[j]
            # NaN is kept (not "> 0" alone), so that a broken curvature is seen, not hidden.
            dependent[i] = d <= _DEPENDENT * entries[i][i].abs()
            pivot[i] = d.masked_fill(dependent[i], 1.0)
            forward[i] = y.masked_fill(dependent[i], 0.0)
        solution: dict[int, Tensor] = {}
        for a in range(len(free) - 1, -1, -1):
            i = free[a]
            x = forward[i] / pivot[i]
            for j in free[a + 1 :]:
                x = x - lower[j, i] * solution[j]
            solution[i] = x.masked_fill(dependent[i], 0.0)
        for j, value in fixed.items():
            solution[j] = torch.zeros_like(sides[j]) + value
        return torch.stack([solution[j] for j in range(k)])


SubspaceModel = SubspaceQuadratic  # its former name
