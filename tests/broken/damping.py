"""Dampings that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from broken.half import after, but, common_half, first, refused
from broken.wrapping import unforwarding
from kfac_lab.core.state import DampingStrength, Due, StepRecord

__all__ = ["BROKEN", "Sound"]

PartState = Mapping[str, Any]


@dataclass(frozen=True)
class Sound:
    """λ halves or doubles by ρ within its bounds; three γ when γ is due; counts its adaptations."""

    lam: float = 8.0
    lam_min: float = 1e-6
    lam_max: float = 1e6
    follows_rho: ClassVar[bool] = True

    def init(self, problem: Any) -> tuple[DampingStrength, PartState]:
        """λ as given."""
        return DampingStrength(self.lam, (self.lam + problem.l2) ** 0.5), {
            "count": torch.zeros((), device=problem.device)
        }

    def candidates(self, strength: DampingStrength, due: Due) -> tuple[DampingStrength, ...]:
        """γ; and γ/2 and 2γ when γ is due."""
        if not due.gamma:
            return (strength,)
        smaller, larger = strength.gamma / 2, strength.gamma * 2
        return strength, strength._replace(gamma=smaller), strength._replace(gamma=larger)

    def factor(self, record: StepRecord) -> Tensor:
        """What λ is multiplied with."""
        rho = torch.as_tensor(record.rho, dtype=torch.float64, device=record.lam.device)
        shrink = torch.where(rho > 0.75, torch.full_like(rho, 0.5), torch.ones_like(rho))
        return torch.where(rho > 0.25, shrink, torch.full_like(rho, 2.0))

    def adapt(
        self, strength: DampingStrength, part_state: PartState, record: StepRecord
    ) -> tuple[DampingStrength, PartState]:
        """λ by ρ."""
        lam = torch.clamp(strength.lam * self.factor(record), self.lam_min, self.lam_max)
        count = part_state["count"] if "count" in part_state else strength.lam * 0
        return strength._replace(lam=lam), {"count": count + 1}


_Unbounded = but(
    Sound, adapt=lambda self, a, old, *rest: _unclamped(a(old, *rest), old, self.factor(rest[-1]))
)


def _unclamped(found: Any, strength: DampingStrength, factor: Tensor) -> Any:
    return found[0]._replace(lam=strength.lam * factor), found[1]


def _negative_at_nan(found: Tensor, record: StepRecord) -> Tensor:
    return torch.where(torch.isnan(record.rho), -found, found)


def _negative(found: Sequence[DampingStrength], strength: DampingStrength, due: Due) -> Any:
    less = strength._replace(gamma=strength.gamma - (1e-2 - strength.eta) * 1e6)
    return (strength, less) if due.gamma else (strength,)


def _other_lambdas(found: Sequence[DampingStrength], *given: Any) -> Any:
    return found[0], *(each._replace(lam=each.lam / 2) for each in found[1:])


def _single(found: DampingStrength, problem: Any) -> DampingStrength:
    return found._replace(lam=torch.full((), float(found.lam), device=problem.device))


def _where(rho_below: bool, factor: float) -> Any:
    """Another factor of λ on one side of ρ = 0.5 (above), 0.25 (below)."""

    def other(found: Tensor, record: StepRecord) -> Tensor:
        here = record.rho <= 0.25 if rho_below else record.rho > 0.5
        return torch.where(here, torch.full_like(found, factor), found)

    return after(other)


class _NeverContent(Sound):
    def retry(
        self, strength: DampingStrength, part_state: PartState, record: StepRecord, tries: int
    ) -> DampingStrength | None:
        """Ever larger, from step 1000 on."""
        return None if record.step < 1000 else strength._replace(lam=strength.lam * 1.5)


class _RetriesBelow(Sound):
    def retry(
        self, strength: DampingStrength, part_state: PartState, record: StepRecord, tries: int
    ) -> DampingStrength | None:
        """A λ below 0, once, from step 1000 on."""
        return strength._replace(lam=-strength.lam) if record.step >= 1000 and not tries else None


class _SwapForgets(Sound):
    def on_swap(self, strength: DampingStrength) -> DampingStrength:
        """λ as given, whatever was kept."""
        return strength._replace(lam=self.lam)


BROKEN: dict[str, Callable[[], Any]] = {
    **common_half(Sound, "adapt"),
    "forwards_traits": unforwarding("damping", "levenberg_marquardt"),
    "starts_valid": but(
        Sound, init=first(lambda found, problem: DampingStrength(found.lam - 100 * problem.l2, 1.0))
    ),
    "stays_valid": but(_Unbounded, factor=after(_negative_at_nan)),
    "scalars_double": but(Sound, init=first(_single)),
    "eta_kept": but(Sound, adapt=first(lambda found, old, *_: found._replace(eta=old.eta * 2))),
    "current_first": but(Sound, candidates=after(lambda found, *_: found[::-1])),
    "alone_unless_due": but(
        Sound, candidates=lambda self, a, old, due: a(old, due._replace(gamma=True))
    ),
    "candidates_valid": but(Sound, candidates=after(_negative)),
    "candidates_differ_in_gamma": but(Sound, candidates=after(_other_lambdas)),
    "bounds_kept": _Unbounded,
    "lambda_falls_when_good": but(Sound, factor=_where(False, 2.0)),
    "lambda_grows_when_bad": but(Sound, factor=_where(True, 0.5)),
    "goes_by_the_step": but(Sound, needs_rho=False, follows_rho=False),
    "swap_keeps_lambda": _SwapForgets,
    "retry_valid": _RetriesBelow,
    "retry_ends": _NeverContent,
    "trains": but(Sound, adapt=refused(lambda old, state, record: len(record.candidates) != 1)),
    "replays": but(Sound, factor=after(lambda found, record: found * (1.0 + 0.0 * record.step))),
}
