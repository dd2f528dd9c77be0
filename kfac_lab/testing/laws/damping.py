"""The laws of a damping: λ and γ (section 6).

Beside the common ones: ``starts_valid``, ``stays_valid``, ``scalars_double``, ``eta_kept``,
``current_first``, ``alone_unless_due``, ``candidates_valid``, ``candidates_differ_in_gamma``,
``bounds_kept``,
``lambda_falls_when_good``, ``lambda_grows_when_bad``, ``goes_by_the_step``, ``swap_keeps_lambda``,
``retry_valid``, ``retry_ends``.

The direction of λ is judged only where the component says ``follows_rho=True``.
"""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.state import DampingStrength, Due, StepRecord
from kfac_lab.core.traits import DampingTraits, traits
from kfac_lab.testing.law import Broken, Case, law, try_last
from kfac_lab.testing.laws.common import (
    CHEAP,
    Trial,
    common_laws,
    exempt_unless,
    same_to_the_bit,
)
from kfac_lab.testing.laws.damping_subjects import (
    HUGE,
    NAN,
    RHOS,
    SEARCH,
    drafted,
    needs_rho,
    refresh,
    run,
    subjects,
)
from kfac_lab.testing.steps import engine_strength, number, record, strength, toy_problem
from kfac_lab.testing.trees import InputWatch

common_laws(Trial(slot="damping", subjects=subjects, run=run, refresh=refresh, dtypes=False))


# --- valid numbers --------------------------------------------------------------------------------


@law("damping", "At step 1, λ and γ are finite and not negative.", needs=CHEAP)
def starts_valid(case: Case) -> None:
    for eta in (0.0, 1e-5, 1.0):
        start, part_state = case.component.init(toy_problem(eta))
        _valid(f"init, η={eta:g}", start)
        if not isinstance(part_state, (Mapping, type(None))):
            raise Broken(
                f"init, η={eta:g}", "a part_state that is a dict", type(part_state).__name__
            )


@law(
    "damping",
    "Whatever ρ says, λ and γ stay finite and not negative.",
    needs=(*CHEAP, "starts_valid"),
)
def stays_valid(case: Case) -> None:
    rhos = RHOS if needs_rho(case.component) else (NAN,)
    for start in _starts(case):
        for rho in rhos:
            draft = drafted(case.component, rho, float(start.strength.lam))
            adapted = case.component.adapt(start.strength, start.part_state, draft)[0]
            _valid(f"{start.where}, ρ={rho:g}", adapted)
    if needs_rho(case.component):
        for start in _starts(case):
            silent = replace(start.record(NAN), predicted=number(0.0), actual=number(0.0))
            adapted = case.component.adapt(start.strength, start.part_state, silent)[0]
            _valid(f"{start.where}, no change predicted and none found", adapted)


@law("damping", "λ and γ that are tensors are 0-dim and float64.", needs=("runs",))
def scalars_double(case: Case) -> None:
    for subject in subjects(case):
        results = run(case.component, subject.fresh(), InputWatch())
        made = [("init", results["init"])]
        made += [("candidates", s) for s in results["candidates"]]
        made += [("adapt", s) for s, _ in results["adapt"].values()]
        for name, given in made:
            for symbol, value in (("λ", given.lam), ("γ", given.gamma)):
                if isinstance(value, Tensor) and (value.dim() or value.dtype != torch.float64):
                    got = f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
                    raise Broken(f"{name}, {subject.where}", f"{symbol} 0-dim and float64", got)


@law("damping", "η is the problem's: it is left out or left as it is.", needs=CHEAP)
def eta_kept(case: Case) -> None:
    for subject in subjects(case):
        results = run(case.component, subject.fresh(), InputWatch())
        eta = float(subject["l2"])
        made = [*results["candidates"], *(s for s, _ in results["adapt"].values())]
        for given in (results["init"], *made):
            if given.eta is not None and float(given.eta) != eta:
                raise Broken(subject.where, f"η={eta:g}", f"η={float(given.eta):g}")


# --- candidates -----------------------------------------------------------------------------------


@law("damping", "The first candidate is the current strength.", needs=(*CHEAP, "stays_valid"))
def current_first(case: Case) -> None:
    for where, now in _lives(case):
        for due in (Due(), SEARCH):
            found = case.component.candidates(now, due)
            if not len(found):
                raise Broken(where, "at least one candidate", "none")
            _alike(f"{where}, γ {'is' if due.gamma else 'is not'} due", now, found[0])


@law("damping", "There is one candidate unless γ is due.", needs=("current_first",))
def alone_unless_due(case: Case) -> None:
    for where, now in _lives(case):
        for due in (Due(), Due(stats=True, factors=True, inverse=True, lam=True)):
            count = len(case.component.candidates(now, due))
            if count != 1:
                raise Broken(f"{where}, γ is not due", "one candidate", f"{count}")


@law("damping", "Every candidate has finite λ ≥ 0 and γ ≥ 0.", needs=("current_first",))
def candidates_valid(case: Case) -> None:
    for where, now in _lives(case):
        for n, found in enumerate(case.component.candidates(now, SEARCH)):
            _valid(f"{where}, candidate {n}", found)


@law(
    "damping",
    "Candidates differ in γ alone: M of another λ is another model, and no value of one compares "
    "with a value of the other.",
    needs=("candidates_valid",),
)
def candidates_differ_in_gamma(case: Case) -> None:
    for where, now in _lives(case):
        for n, found in enumerate(case.component.candidates(now, SEARCH)):
            if abs(float(found.lam) - float(now.lam)) > 1e-12 * float(now.lam):
                told, got = f"λ={float(now.lam):.6g}", f"λ={float(found.lam):.6g}"
                raise Broken(f"{where}, candidate {n}", told, got)


@law(
    "damping",
    "The bounds of its fields hold: lam_min and lam_max of λ, gamma_min and gamma_max of the "
    "candidates' γ.",
    needs=("stays_valid", "candidates_valid", "current_first"),
    applies=lambda case: None if _bounded(case.component) else "no field bounds λ or γ",
)
def bounds_kept(case: Case) -> None:
    eta = 1e-5
    first = engine_strength(case.component.init(toy_problem(eta))[0], number(eta))
    lam, gamma = float(first.lam) or 1.0, float(first.gamma) or 1.0
    bounds = {
        "lam_min": lam / 3,
        "lam_max": lam * 3,
        "gamma_min": gamma / 3,
        "gamma_max": gamma * 3,
    }
    mine = {name: bounds[name] for name in _bounded(case.component)}
    component = dataclasses.replace(case.component, **mine)
    for rho in (1.0, -1.0):
        where = f"200 adaptations with ρ={rho:g} and {_listed(mine)}"
        start, part_state = component.init(toy_problem(eta))
        now = engine_strength(start, number(eta))
        for step in range(1, 201):
            draft = drafted(component, rho, float(now.lam), step)
            adapted, part_state = component.adapt(now, part_state or {}, draft)
            now = engine_strength(adapted, now.eta)
            _within(where, "λ", float(now.lam), mine.get("lam_min"), mine.get("lam_max"))
            found = component.candidates(now, SEARCH)
            for each in found[1:]:
                value = float(each.gamma)
                _within(where, "γ", value, mine.get("gamma_min"), mine.get("gamma_max"))
            outer = min if rho > 0 else max
            if len(found) > 1:  # the search went that way
                now = engine_strength(outer(found, key=lambda s: float(s.gamma)), now.eta)


# --- the direction of λ ---------------------------------------------------------------------------


def _follows(case: Case) -> str | None:
    follows = traits(case.component, DampingTraits).follows_rho
    return None if follows else "it does not say follows_rho=True"


@law(
    "damping",
    "Where the model is right (ρ from 0.9 up) λ falls or stays, and falls somewhere.",
    needs=("stays_valid",),
    applies=_follows,
)
def lambda_falls_when_good(case: Case) -> None:
    _direction(case, (0.9, 1.0, 1.5), -1)


@law(
    "damping",
    "Where the model is wrong (ρ up to 0.05) λ grows or stays, and grows somewhere.",
    needs=("stays_valid",),
    applies=_follows,
)
def lambda_grows_when_bad(case: Case) -> None:
    _direction(case, (0.05, 0.0, -1.0, -HUGE), +1)


def _direction(case: Case, rhos: Sequence[float], sign: int) -> None:
    strictly = False
    for start in _starts(case):
        before = float(start.strength.lam)
        for rho in rhos:
            adapted = case.component.adapt(start.strength, start.part_state, start.record(rho))[0]
            after = float(adapted.lam)
            where = f"{start.where}, ρ={rho:g}"
            if sign * (after - before) < -1e-12 * before:
                bound = "most" if sign < 0 else "least"
                raise Broken(where, f"a λ of at {bound} {before:.6g}", f"{after:.6g}")
            strictly = strictly or sign * (after - before) > 1e-12 * before
    if not strictly:
        word = "smaller" if sign < 0 else "larger"
        raise Broken(f"ρ from {rhos[0]:g} to {rhos[-1]:g}", f"a {word} λ somewhere", "none")


@law(
    "damping",
    "needs_rho=False means it: the new strength is the same whatever ρ was.",
    needs=(*CHEAP, "stays_valid"),
    applies=lambda case: "it needs ρ" if needs_rho(case.component) else None,
)
def goes_by_the_step(case: Case) -> None:
    for start in _starts(case):
        draft = drafted(case.component, NAN, float(start.strength.lam))
        wanted = case.component.adapt(start.strength, start.part_state, draft)
        for rho in (-1.0, 1.0):
            got = case.component.adapt(start.strength, start.part_state, start.record(rho))
            where = f"{start.where}, ρ={rho:g}"
            same_to_the_bit(where, "what it gave where ρ was NaN", wanted, got)


# --- swapping and trying again --------------------------------------------------------------------


@law(
    "damping",
    "A swap keeps λ; γ is finite and not negative.",
    needs=CHEAP,
    applies=exempt_unless(
        lambda damping: traits(damping, DampingTraits).on_swap is not None, "it has no on_swap"
    ),
)
def swap_keeps_lambda(case: Case) -> None:
    on_swap = traits(case.component, DampingTraits).on_swap
    assert on_swap is not None
    for kept in (strength(150.0, 3.0), strength(1e-3, 0.5), strength(0.0, 1.0)):
        where = f"the kept λ={float(kept.lam):g}, γ={float(kept.gamma):g}"
        given = on_swap(DampingStrength(*kept))
        _valid(where, given)
        if float(given.lam) != float(kept.lam):
            raise Broken(where, f"λ={float(kept.lam):g}", f"λ={float(given.lam):g}")


def _retries(case: Case) -> str | None:
    return None if traits(case.component, DampingTraits).retry else "it has no retry"


@law("damping", "What retry asks for has finite λ ≥ 0 and γ ≥ 0.", applies=_retries)
def retry_valid(case: Case) -> None:
    for where, tries in _searches(case):
        for n, asked in enumerate(tries):
            _valid(f"{where}, try {n + 1}", asked)


@law(
    "damping",
    "Where a larger λ promises a smaller reduction, retry is content within 60 tries.",
    needs=(*CHEAP, "current_first", "retry_valid"),
    applies=_retries,
)
def retry_ends(case: Case) -> None:
    for where, tries in _searches(case):
        found = list(tries)
        if len(found) >= 60:
            told = ", ".join(f"{float(s.lam):.3g}" for s in found[-3:])
            raise Broken(where, "None within 60 tries", f"ever more, the last λ {told}")


def _searches(case: Case) -> Iterator[tuple[str, Iterator[DampingStrength]]]:
    """Refresh steps on which −M(δ)/h is c/(c+λ), as where ∇h lies along one eigenvector."""
    for step in (1, 2, 20, 1000):
        for c in (1e-4, 1.0, 1e4):
            for loss in (1.0, 300.0):
                where = f"step {step}, a relative reduction of {c:g}/({c:g}+λ), h={loss:g}"
                yield where, _search(case.component, step, c, loss)


def _search(component: Any, step: int, c: float, loss: float) -> Iterator[DampingStrength]:
    start, part_state = component.init(toy_problem(1e-5))
    now = engine_strength(start, number(1e-5))
    retry = traits(component, DampingTraits).retry
    assert retry is not None
    tried: list[tuple[Tensor, Tensor, Tensor]] = []
    for tries in range(60):
        lam = float(now.lam)
        value = -loss * 0.5 * c / (c + lam)
        tried.append((now.lam, now.gamma, number(value)))
        draft = record(NAN, lam or 1.0, step=step, loss=loss, predicted=value)
        draft = replace(draft, candidates=tuple(tried), lam=now.lam, gamma=now.gamma, due=SEARCH)
        again = retry(now, part_state or {}, draft, tries)
        if again is None:
            return
        yield again
        now = engine_strength(again, now.eta)


# --- what the laws stand on -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Start:
    where: str
    strength: DampingStrength
    part_state: Mapping[str, Any]

    def record(self, rho: float) -> StepRecord:
        """A step with this λ that came out with ``rho``."""
        return record(rho, float(self.strength.lam) or 1.0)


def _starts(case: Case) -> list[_Start]:
    """The component's own start, and a λ that was kept at a swap."""
    starts = []
    for eta, kept in ((1e-5, None), (0.0, 1.0)):
        start, part_state = case.component.init(toy_problem(eta))
        now = engine_strength(start, number(eta))
        if kept is not None:
            now = strength(kept, eta=eta)
        starts.append(_Start(f"λ={float(now.lam):.4g}, η={eta:g}", now, part_state or {}))
    return starts


def _lives(case: Case) -> Iterator[tuple[str, DampingStrength]]:
    """Strengths that the component itself came to."""
    for rhos in ((), (1.0,), (1.0, 1.0, -1.0, 0.5), (-1.0,) * 4):
        start, part_state = case.component.init(toy_problem(1e-5))
        now = engine_strength(start, number(1e-5))
        for step, rho in enumerate(rhos, 1):
            draft = drafted(case.component, rho, float(now.lam), step)
            adapted, part_state = case.component.adapt(now, part_state or {}, draft)
            now = engine_strength(adapted, now.eta)
        after = f"after ρ = {', '.join(f'{r:g}' for r in rhos)}" if rhos else "at step 1"
        yield f"λ={float(now.lam):.4g} {after}", now


def _bounded(component: Any) -> list[str]:
    if not dataclasses.is_dataclass(component):
        return []
    names = {field.name for field in dataclasses.fields(component)}
    return [n for n in ("lam_min", "lam_max", "gamma_min", "gamma_max") if n in names]


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in values.items())


def _valid(where: str, given: Any) -> None:
    for symbol, value in (("λ", given.lam), ("γ", given.gamma)):
        value = float(value)
        if not (math.isfinite(value) and value >= 0):
            raise Broken(where, f"a finite {symbol} of at least 0", f"{symbol}={value:g}")


def _alike(where: str, wanted: DampingStrength, got: DampingStrength) -> None:
    for symbol, one, other in (("λ", wanted.lam, got.lam), ("γ", wanted.gamma, got.gamma)):
        one, other = float(one), float(other)
        if abs(one - other) > 1e-12 * abs(one):
            raise Broken(where, f"{symbol}={one:.9g} first", f"{symbol}={other:.9g}")


def _within(where: str, symbol: str, value: float, low: float | None, high: float | None) -> None:
    slack = 1e-9
    if low is not None and value < low * (1 - slack):
        raise Broken(where, f"{symbol} of at least {low:.4g}", f"{value:.4g}")
    if high is not None and value > high * (1 + slack):
        raise Broken(where, f"{symbol} of at most {high:.4g}", f"{value:.4g}")


for _name in ("trains", "resumes", "replays"):
    try_last("damping", _name, "starts_valid", "stays_valid", "current_first", "candidates_valid")
try_last("damping", "replays", "retry_valid", "retry_ends")
