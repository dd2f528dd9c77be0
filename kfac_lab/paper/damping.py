"""λ and γ: Levenberg–Marquardt, the γ search, and simpler rules (section 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from kfac_lab.core import linalg
from kfac_lab.core.parameters import parameter
from kfac_lab.core.program import branch, numbers
from kfac_lab.core.state import DampingStrength, Due, StepRecord
from kfac_lab.core.traits import DampingTraits

__all__ = ["ConstantDamping", "LevenbergMarquardt", "Promised", "Scheduled", "Steered", "Tied"]

PartState = Mapping[str, Any]
OMEGA_1 = 0.95**5  # ω1 for T1 = 5
OMEGA_2 = math.sqrt(0.95) ** 20  # ω2 for T2 = 20


def _tied(lam: Any, eta: Any) -> Any:
    total = lam + eta
    return torch.sqrt(total) if isinstance(total, Tensor) else math.sqrt(total)


def _silent(record: StepRecord, predicted: Tensor) -> Tensor:
    """Whether rounding alone moves ρ by 1/4: it says nothing, and would inflate a converged λ."""
    return 0.25 * predicted.abs() <= torch.as_tensor(record.rounding, device=predicted.device)


@dataclass(frozen=True)
class _Rule:
    """The λ rule that several strategies share (section 6.5)."""

    lam: float = parameter(
        150.0, symbol="λ", section="6.5", low=0.0, log=True, help="at step 1; err on the large side"
    )
    omega1: float = parameter(
        OMEGA_1, symbol="ω1", section="6.5", low=0.01, high=1.0, help="λ factor, (19/20)^T1"
    )
    lower: float = parameter(0.25, section="6.5", help="ρ below: λ grows")
    upper: float = parameter(0.75, section="6.5", help="ρ above: λ shrinks")
    denominator: Literal["model", "without_lambda"] = parameter(
        "model",
        section="6.5",
        choices=("model", "without_lambda"),
        help="of ρ: M with λ (the paper), or without it (later libraries)",
    )
    safeguard: bool = parameter(
        True, section="6.5", help="an increase of h counts as ρ = −∞, whatever M promised"
    )
    share: float = parameter(
        0.0,
        section="6.5",
        low=0.0,
        high=1.0,
        help="λ shrinks only while λ‖δ‖² is at least this share of δᵀ(F+λ+η)δ; 0 is the paper",
    )
    lam_min: float = parameter(0.0, section="6.5", low=0.0, log=True)
    lam_max: float = parameter(math.inf, section="6.5", low=0.0, log=True)
    guard: float = parameter(
        0.0, low=0.0, help="h that rises by this factor takes the last step back; 0: never"
    )

    def back(self, strength: DampingStrength) -> DampingStrength:
        """λ and γ² tenfold, for the step after one that was taken back."""
        lam = torch.clamp(10 * torch.clamp(strength.lam, min=1e-12), self.lam_min, self.lam_max)
        return strength._replace(lam=lam, gamma=strength.gamma * math.sqrt(10))

    @property
    def traits(self) -> DampingTraits:
        """λ falls with ρ, and stays where ρ is between the bounds."""
        return DampingTraits(follows_rho=True, band=(self.lower, self.upper))

    def check(self) -> str | None:
        """Bounds in their order."""
        if not self.lower <= self.upper:
            return f"lower={self.lower} must not be above upper={self.upper}"
        if not self.lam_min <= self.lam_max:
            return f"lam_min={self.lam_min} must not be above lam_max={self.lam_max}"
        return None

    def _ratio(self, record: StepRecord) -> Tensor:
        """ρ by the chosen denominator."""
        rho = torch.as_tensor(record.rho, dtype=torch.float64)
        if self.denominator == "model":
            return rho
        without = record.predicted - 0.5 * record.lam * record.norm_squared
        return torch.as_tensor(record.actual / without)

    def _adapted(self, lam: Any, record: StepRecord) -> Tensor:
        rho = self._ratio(record)
        lam = torch.as_tensor(lam, dtype=torch.float64, device=rho.device)
        actual = torch.as_tensor(record.actual, dtype=torch.float64, device=rho.device)
        predicted = torch.as_tensor(record.predicted, dtype=torch.float64, device=rho.device)
        grow = (rho < self.lower) | torch.isnan(rho)
        if self.safeguard:
            grow = grow | (actual > 0)
        shrink = ~grow & (rho > self.upper)
        if self.share:  # below it λ no longer shapes the model, and only γ would collapse
            curvature = -torch.as_tensor(record.slope, dtype=torch.float64, device=rho.device)
            shrink = shrink & (record.lam * record.norm_squared >= self.share * curvature)
        moved = torch.where(grow, lam / self.omega1, torch.where(shrink, lam * self.omega1, lam))
        moved = torch.clamp(moved, self.lam_min, self.lam_max)
        return torch.where(_silent(record, predicted), lam, moved)


@dataclass(frozen=True)
class LevenbergMarquardt(_Rule):
    """λ by the reduction ratio, γ by a search of its own (sections 6.5 and 6.6).

    γ starts at √(λ+η). When γ is due, ω2γ, γ and γ/ω2 are tried, the outer two clipped to
    [√η, gamma_max]; the lowest M wins and its inverse stays in use. The clip comes from the
    authors' release; ``gamma_max=inf`` is the rule as printed.
    """

    gamma: float | None = parameter(
        None, symbol="γ", section="6.6", low=0.0, log=True, help="at step 1; None is √(λ+η)"
    )
    omega2: float = parameter(
        OMEGA_2, symbol="ω2", section="6.6", low=0.01, high=1.0, help="γ factor, √(19/20)^T2"
    )
    gamma_min: float | None = parameter(
        None, section="6.6", low=0.0, log=True, help="of the candidates; None is √η"
    )
    gamma_max: float = parameter(
        1.0, section="6.6", low=0.0, log=True, help="of the candidates", infinite=True
    )

    def init(self, problem: Any) -> tuple[DampingStrength, PartState]:
        """λ and γ as given."""
        gamma = self.gamma if self.gamma is not None else _tied(self.lam, problem.l2)
        return DampingStrength(self.lam, gamma), {}

    def back(self, strength: DampingStrength) -> DampingStrength:
        """λ and γ² tenfold; γ grows no further than ``gamma_max``, as the candidates do not."""
        grown = super().back(strength)
        gamma = torch.maximum(strength.gamma, torch.clamp(grown.gamma, max=self.gamma_max))
        return grown._replace(gamma=gamma)

    def candidates(self, strength: DampingStrength, due: Due) -> tuple[DampingStrength, ...]:
        """γ; and ω2γ and γ/ω2 when γ is due."""
        if not due.gamma:
            return (strength,)
        gamma = strength.gamma
        low = self.gamma_min if self.gamma_min is not None else torch.sqrt(strength.eta)
        low = torch.as_tensor(low, dtype=gamma.dtype, device=gamma.device)
        smaller = torch.maximum(gamma * self.omega2, low)
        larger = torch.clamp(gamma / self.omega2, max=self.gamma_max)
        return (strength, strength._replace(gamma=smaller), strength._replace(gamma=larger))

    def adapt(
        self, strength: DampingStrength, part_state: PartState, record: StepRecord
    ) -> tuple[DampingStrength, PartState]:
        """λ by ρ; γ is not touched."""
        return strength._replace(lam=self._adapted(strength.lam, record)), part_state


@dataclass(frozen=True)
class Tied(_Rule):
    """λ by the reduction ratio, γ = √(λ+η) at all times (section 6.3)."""

    def init(self, problem: Any) -> tuple[DampingStrength, PartState]:
        """λ as given."""
        return DampingStrength(self.lam, _tied(self.lam, problem.l2)), {}

    def back(self, strength: DampingStrength) -> DampingStrength:
        """λ tenfold, and γ with it."""
        lam = super().back(strength).lam
        return strength._replace(lam=lam, gamma=torch.sqrt(lam + strength.eta))

    def on_swap(self, strength: DampingStrength) -> DampingStrength:
        """γ follows the λ that was kept."""
        return strength._replace(gamma=_tied(strength.lam, strength.eta))

    def candidates(self, strength: DampingStrength, due: Due) -> tuple[DampingStrength, ...]:
        """One: γ follows λ."""
        return (strength._replace(gamma=torch.sqrt(strength.lam + strength.eta)),)

    def adapt(
        self, strength: DampingStrength, part_state: PartState, record: StepRecord
    ) -> tuple[DampingStrength, PartState]:
        """λ by ρ, γ with it."""
        lam = self._adapted(strength.lam, record)
        return strength._replace(lam=lam, gamma=torch.sqrt(lam + strength.eta)), part_state


def _quick() -> Any:
    """ω1 of the rules that move λ by more than the paper's."""
    return parameter(
        0.5, symbol="ω1", section="6.5", low=0.01, high=1.0, help="λ factor per adaptation"
    )


def _floor() -> Any:
    """The share below which λ no longer shapes the model, and stops shrinking."""
    said = "λ shrinks only while λ‖δ‖² is at least this share of δᵀ(F+λ+η)δ"
    return parameter(0.01, section="6.5", low=0.0, high=1.0, help=said)


@dataclass(frozen=True)
class Steered(Tied):
    """``tied``, with λ steered through the first steps by the predicted relative reduction.

    In the first ``steps`` steps −(M(δ) − M(0))/h is kept between ``low`` and ``high``: a step
    outside is proposed again with another λ. At step 1 the search goes both ways until the band
    is met, so that ``lam`` is a starting guess and nothing more. Afterwards the rule is ``tied``'s
    with a quicker factor, and a floor: once λ no longer shapes the model it stops shrinking.
    """

    omega1: float = _quick()
    share: float = _floor()
    steps: int = parameter(20, section="6.5", low=0, help="how many steps are steered")
    low: float = parameter(0.06, section="6.5", low=0.0, high=1.0, help="least relative reduction")
    high: float = parameter(0.2, section="6.5", low=0.0, high=1.0, help="most relative reduction")

    def check(self) -> str | None:
        """low must lie below high, and the rule's own bounds in their order."""
        if not self.low < self.high:
            return f"low={self.low} must be below high={self.high}"
        return super().check()

    def retry(
        self, strength: DampingStrength, part_state: PartState, record: StepRecord, tries: int
    ) -> DampingStrength | None:
        """Another λ while the step is steered and its reduction lies outside the band."""
        if branch(lambda k: k > self.steps, record.step):
            return None
        length = record.lam * record.norm_squared
        loss, shape, curvature, *flat = linalg.host(
            [torch.as_tensor(x, dtype=torch.float64) for x in (record.loss, length, -record.slope)]
            + [torch.as_tensor(x) for lam, _, value in record.candidates for x in (lam, value)]
        )
        if not loss > 0:
            return None
        tried = [(lam, -value / loss) for lam, value in zip(flat[::2], flat[1::2], strict=True)]
        wanted = self._first(tried) if branch(lambda k: k == 1, record.step) else self._later(tried)
        if wanted is None or not 1e-12 < wanted < 1e12:
            return None
        if wanted < tried[-1][0] and shape < self.share * curvature:
            return None  # λ no longer shapes the model, and only γ would collapse
        lam = strength.lam * 0 + wanted
        return strength._replace(lam=lam, gamma=torch.sqrt(lam + strength.eta))

    def _first(self, tried: list[tuple[float, float]]) -> float | None:
        """Step 1: ever longer strides to the band, then bisection in log λ.

        Too small a λ spoils the proposal before it spoils the model, so the reduction has a peak
        in λ. Where it stays below the band the search settles at the best λ met.
        """
        lam, reduction = tried[-1]
        if self.low <= reduction <= self.high or len(tried) > 40:
            return None
        small = [x for x, r in tried if r > self.high]
        large = [x for x, r in tried if r < self.low and x > max(small, default=0.0)]
        if small and large:
            return math.sqrt(max(small) * min(large))
        stride = 2.0 ** (1 + len(tried) // 2)
        if reduction > self.high:
            return lam * stride
        best = max(tried, key=lambda pair: pair[1])
        if len(tried) > 1 and reduction < best[1]:
            return best[0] if lam != best[0] else None
        return lam / stride

    def _later(self, tried: list[tuple[float, float]]) -> float | None:
        """Steps after: doubled until the reduction is in bounds; halved once, if that helps."""
        first, (lam, reduction) = tried[0], tried[-1]
        if reduction > self.high:
            return 2 * lam
        if len(tried) == 1:
            return lam / 2 if reduction < self.low else None
        if lam < first[0] and reduction < first[1]:
            return first[0]  # halving did not help
        return None


@dataclass(frozen=True)
class Promised(Tied):
    """``tied``, with λ moved through the first steps by what each step promised.

    ``steered`` makes an inverse for every λ it tries; here the step is made as it is and the next
    one has another λ. In the first ``steps`` steps λ grows fourfold after a step that failed (h
    rose, or ρ < 1/4) and doubles after one that promised ``high`` of h and did not quite keep it
    (ρ < 1/2). It falls by a factor of 16 after one that promised less than ``low`` and gave all of
    it (ρ ≥ 0.95): λ is orders of magnitude too large then, and its inverse is not due at every
    step; by half after one that gave less of it, but more than half. By 16 too after one that gave
    more (ρ > 5/4), held back by λ, which made half of the model's curvature. So ``lam`` is a guess
    and no more. Afterwards the rule is ``tied``'s, quicker and with the floor of ``share``.
    """

    omega1: float = _quick()
    share: float = _floor()
    steps: int = parameter(20, section="6.5", low=0, help="steps that move λ by their promise")
    low: float = parameter(
        0.06, section="6.5", low=1e-6, high=1.0, help="λ falls while less of h is promised"
    )
    high: float = parameter(
        0.2, section="6.5", low=1e-6, high=1.0, help="λ doubles where so much was not quite kept"
    )

    def check(self) -> str | None:
        """low must lie below high, and the rule's own bounds in their order."""
        if not self.low < self.high:
            return f"low={self.low} must be below high={self.high}"
        return super().check()

    @property
    def traits(self) -> DampingTraits:
        """At first λ goes by the promise: a good ρ alone does not lower it."""
        return DampingTraits()

    def adapt(
        self, strength: DampingStrength, part_state: PartState, record: StepRecord
    ) -> tuple[DampingStrength, PartState]:
        """λ by the promise at first, then by ρ; γ with it."""
        if branch(lambda k: k > self.steps, record.step):
            return super().adapt(strength, part_state, record)
        rho, actual, predicted, loss = (
            torch.as_tensor(x, dtype=torch.float64, device=strength.lam.device)
            for x in (record.rho, record.actual, record.predicted, record.loss)
        )
        failed = (actual > 0) | ~(rho >= 0.25)
        shaped = record.lam * record.norm_squared >= -self.share * record.slope
        promise = -predicted / torch.clamp(loss, min=1e-300)
        held = record.lam * record.norm_squared >= -0.5 * record.slope
        timid = (rho > 0.5) & (promise < self.low) & shaped | (rho > 1.25) & held
        bold = (rho < 0.5) & (promise > 0.999 * self.high)
        one = torch.ones_like(rho)
        fall = torch.where(rho >= 0.95, one / 16, one / 2)
        factor = torch.where(timid, fall, torch.where(bold, 2 * one, one))
        factor = torch.where(failed, 4 * one, factor)
        moved = torch.clamp(
            strength.lam * factor, max(self.lam_min, 1e-12), min(self.lam_max, 1e12)
        )
        lam = torch.where(_silent(record, predicted) | ~(loss > 0), strength.lam, moved)
        return strength._replace(lam=lam, gamma=torch.sqrt(lam + strength.eta)), part_state


@dataclass(frozen=True)
class ConstantDamping:
    """Fixed λ and γ; with ``pi="one"`` in the block this is Heskes' damping (2000)."""

    lam: float = parameter(1e-2, symbol="λ", section="6.3", low=0.0, log=True)
    gamma: float | None = parameter(
        None, symbol="γ", section="6.3", low=0.0, log=True, help="None is √(λ+η)"
    )
    traits: ClassVar[DampingTraits] = DampingTraits(follows_rho=False)

    def init(self, problem: Any) -> tuple[DampingStrength, PartState]:
        """λ and γ as given."""
        gamma = self.gamma if self.gamma is not None else _tied(self.lam, problem.l2)
        return DampingStrength(self.lam, gamma), {}

    def candidates(self, strength: DampingStrength, due: Due) -> tuple[DampingStrength, ...]:
        """The one there is."""
        return (strength,)

    def adapt(
        self, strength: DampingStrength, part_state: PartState, record: StepRecord
    ) -> tuple[DampingStrength, PartState]:
        """Nothing moves."""
        return strength, part_state


@dataclass(frozen=True)
class Scheduled:
    """λ falls from ``lam`` to ``lam_end`` geometrically over ``steps`` steps; γ = √(λ+η)."""

    lam: float = parameter(1.0, symbol="λ", section="6.3", low=1e-30, log=True)
    traits: ClassVar[DampingTraits] = DampingTraits(needs_rho=False, follows_rho=False)
    lam_end: float = parameter(1e-3, symbol="λ", section="6.3", low=1e-30, log=True)
    steps: int = parameter(500, section="6.3", low=1)

    def init(self, problem: Any) -> tuple[DampingStrength, PartState]:
        """λ at its start."""
        return DampingStrength(self.lam, _tied(self.lam, problem.l2)), {}

    def candidates(self, strength: DampingStrength, due: Due) -> tuple[DampingStrength, ...]:
        """The current one."""
        return (strength,)

    def adapt(
        self, strength: DampingStrength, part_state: PartState, record: StepRecord
    ) -> tuple[DampingStrength, PartState]:
        """λ of the next step; moves when λ is due."""

        def value(k: int) -> list[float]:
            return [self.lam * (self.lam_end / self.lam) ** min(k / self.steps, 1.0)]

        (lam,) = numbers(value, record.step, strength.lam)
        return strength._replace(lam=lam, gamma=torch.sqrt(lam + strength.eta)), part_state


Constant = ConstantDamping  # its former name
