"""Dampings that break one law each; ``Sound`` breaks none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from broken.half import common_half
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


class _OneTriedOnly(Sound):
    def adapt(
        self, strength: DampingStrength, part_state: PartState, record: StepRecord
    ) -> tuple[DampingStrength, PartState]:
        ((_lam, _gamma, _value),) = record.candidates
        return super().adapt(strength, part_state, record)


class _StartsBelow(Sound):
    def init(self, problem: Any) -> tuple[DampingStrength, PartState]:
        return DampingStrength(self.lam - 100 * problem.l2, 1.0), super().init(problem)[1]


class _NegativeAtNan(Sound):
    def factor(self, record: StepRecord) -> Tensor:
        found = super().factor(record)
        return torch.where(torch.isnan(record.rho), -found, found)

    def adapt(
        self, strength: DampingStrength, part_state: PartState, record: StepRecord
    ) -> tuple[DampingStrength, PartState]:
        adapted, new = super().adapt(strength, part_state, record)
        return adapted._replace(lam=strength.lam * self.factor(record)), new


class _Single(Sound):
    def init(self, problem: Any) -> tuple[DampingStrength, PartState]:
        start, part_state = super().init(problem)
        return start._replace(lam=torch.full_like(part_state["count"], self.lam)), part_state


class _MovesEta(Sound):
    def adapt(
        self, strength: DampingStrength, part_state: PartState, record: StepRecord
    ) -> tuple[DampingStrength, PartState]:
        adapted, new = super().adapt(strength, part_state, record)
        return adapted._replace(eta=strength.eta * 2), new


class _LargerFirst(Sound):
    def candidates(self, strength: DampingStrength, due: Due) -> tuple[DampingStrength, ...]:
        return super().candidates(strength, due)[::-1]


class _AlwaysSearches(Sound):
    def candidates(self, strength: DampingStrength, due: Due) -> tuple[DampingStrength, ...]:
        return super().candidates(strength, due._replace(gamma=True))


class _NegativeGamma(Sound):
    def candidates(self, strength: DampingStrength, due: Due) -> tuple[DampingStrength, ...]:
        less = strength._replace(gamma=strength.gamma - (1e-2 - strength.eta) * 1e6)
        return (strength, less) if due.gamma else (strength,)


class _OtherLambdas(Sound):
    def candidates(self, strength: DampingStrength, due: Due) -> tuple[DampingStrength, ...]:
        first, *others = super().candidates(strength, due)
        return first, *(each._replace(lam=each.lam / 2) for each in others)


class _Unbounded(Sound):
    def adapt(
        self, strength: DampingStrength, part_state: PartState, record: StepRecord
    ) -> tuple[DampingStrength, PartState]:
        adapted, new = super().adapt(strength, part_state, record)
        return adapted._replace(lam=strength.lam * self.factor(record)), new


class _GrowsWhenGood(Sound):
    def factor(self, record: StepRecord) -> Tensor:
        rho = record.rho
        return torch.where(rho > 0.5, torch.full_like(rho, 2.0), super().factor(record))


class _ShrinksWhenBad(Sound):
    def factor(self, record: StepRecord) -> Tensor:
        rho = record.rho
        return torch.where(rho > 0.25, super().factor(record), torch.full_like(rho, 0.5))


class _NeedsItAllTheSame(Sound):
    needs_rho: ClassVar[bool] = False
    follows_rho: ClassVar[bool] = False


class _SwapForgets(Sound):
    def on_swap(self, strength: DampingStrength) -> DampingStrength:
        """λ as given, whatever was kept."""
        return strength._replace(lam=self.lam)


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


class _ByStep(Sound):
    def factor(self, record: StepRecord) -> Tensor:
        return super().factor(record) * (1.0 + 0.0 * record.step)


BROKEN: dict[str, Callable[[], Any]] = {
    **common_half(Sound, "adapt"),
    "forwards_traits": unforwarding("damping", "levenberg_marquardt"),
    "starts_valid": _StartsBelow,
    "stays_valid": _NegativeAtNan,
    "scalars_double": _Single,
    "eta_kept": _MovesEta,
    "current_first": _LargerFirst,
    "alone_unless_due": _AlwaysSearches,
    "candidates_valid": _NegativeGamma,
    "candidates_differ_in_gamma": _OtherLambdas,
    "bounds_kept": _Unbounded,
    "lambda_falls_when_good": _GrowsWhenGood,
    "lambda_grows_when_bad": _ShrinksWhenBad,
    "goes_by_the_step": _NeedsItAllTheSame,
    "swap_keeps_lambda": _SwapForgets,
    "retry_valid": _RetriesBelow,
    "retry_ends": _NeverContent,
    "trains": _OneTriedOnly,
    "replays": _ByStep,
}
