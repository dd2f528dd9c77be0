"""The laws of a method: what its Stepper does (section 13).

Beside the common ones: ``counts_steps``, ``loss_finite``, ``asks_for_its_batch``,
``trains_in_place``, ``seed_matters``, ``uses_batch_and_average``, ``resumes``,
``all_six_or_none``. ``deterministic`` says that two steppers of one seed are equal.
"""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kfac_lab.core.plain import MORE
from kfac_lab.core.problem import Problem
from kfac_lab.core.state import StepRecord
from kfac_lab.core.traits import StepperTraits, traits
from kfac_lab.hooks.recipe import Recipe
from kfac_lab.paper.averaging import Polyak
from kfac_lab.run import Kfac
from kfac_lab.testing.attaching import built_ins
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.common import CHEAP, Trial, common_laws, hidden, same_to_the_bit
from kfac_lab.testing.subjects import Subject, tiny_problem
from kfac_lab.testing.trees import InputWatch

SLOT = "method"
STEPS = 4
CASES, SIZE = 24, 10


@dataclass(frozen=True)
class _Batch:
    """Remembers what it was asked; gives one case less at every step."""

    asked: list[tuple[int, int | None]] = field(default_factory=list, compare=False)

    def size(self, step: int, available: int | None) -> int:
        """SIZE, SIZE − 1, …"""
        self.asked.append((step, available))
        return SIZE - (step - 1) % SIZE


class _Two(Mapping[str, Any]):
    """A recipe of batch and average, in which nothing else can be looked up."""

    def __init__(self) -> None:
        self.batch = _Batch()
        self._parts = {"batch": self.batch, "average": Polyak()}

    def __getitem__(self, slot: str) -> Any:
        if slot not in self._parts:
            raise Broken(
                f"its use of recipe[{slot!r}]", "batch and average alone", f"a look at {slot}"
            )
        return self._parts[slot]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _recipe(batch: Any = "constant(size=10)") -> Recipe:
    """Every slot filled, for whoever looks."""
    return Recipe(
        lab=built_ins(),
        batch=batch,
        estimator="sampled(fraction=1.0)",
        quadratic_model="exact_fisher(fraction=1.0)",
        damping="levenberg_marquardt(lam=1.0)",
        schedule="periodic(T1=2, T2=2, T3=2, burn_in=1)",
    )


def subjects(case: Case) -> Sequence[Subject]:
    """A tiny problem with and without ℓ2."""
    return [
        Subject(f"24 cases, η={l2:g}", {"l2": l2, "like": torch.zeros((), dtype=torch.float64)})
        for l2 in (1e-3, 0.0)
    ]


def run(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
    """Attached and stepped: θ and the losses."""
    with torch.random.fork_rng(devices=[]):  # nn.Linear draws as it is made
        problem = tiny_problem(l2=subject["l2"], dtype=subject["like"].dtype)
    watch([problem.inputs, problem.targets], "the cases")
    stepper = component.attach(problem, _recipe(), 0)
    losses = [stepper.step().loss for _ in range(STEPS)]
    return {"θ": _theta(problem), "loss": losses}


def _theta(problem: Problem) -> list[torch.Tensor]:
    return [p.detach().clone() for p in problem.model.parameters()]


common_laws(Trial(SLOT, subjects, run, loose=("loss",), device=False, problem=None))


def _attached(component: Any, recipe: Any = None, seed: int = 0) -> tuple[Problem, Any]:
    problem = tiny_problem()
    return problem, component.attach(problem, recipe or _recipe(), seed)


@law(SLOT, "step() gives a StepRecord with the number of the step, from 1 on.")
def counts_steps(case: Case) -> None:
    _, stepper = _attached(case.component)
    for k in range(1, STEPS + 1):
        made = stepper.step()
        if not isinstance(made, StepRecord):
            raise Broken(f"step {k}", "a StepRecord", f"a {type(made).__name__}")
        if made.step != k:
            raise Broken(f"step {k}", f"step={k} in the record", f"step={made.step}")


@law(SLOT, "The record has the loss of the step, one finite number.", needs=("counts_steps",))
def loss_finite(case: Case) -> None:
    _, stepper = _attached(case.component)
    for k in range(1, STEPS + 1):
        loss = stepper.step().loss
        if isinstance(loss, torch.Tensor) and loss.dim():
            raise Broken(f"step {k}", "a loss of one number", f"the shape {tuple(loss.shape)}")
        if not math.isfinite(float(loss)):
            raise Broken(f"step {k}", "a finite loss", f"{float(loss)}")


@law(
    SLOT,
    "It draws what the recipe's batch says: size(step, available) is asked at every step, and the "
    "record has it.",
    needs=(*CHEAP, "counts_steps"),
)
def asks_for_its_batch(case: Case) -> None:
    batch = _Batch()
    _, stepper = _attached(case.component, _recipe(batch))
    for k in range(1, STEPS + 1):
        before = len(batch.asked)
        made = stepper.step()
        if (k, CASES) not in batch.asked[before:]:
            told = ", ".join(f"size{ask}" for ask in batch.asked[before:]) or "nothing"
            raise Broken(f"step {k}", f"size({k}, {CASES}) asked", told)
        if made.batch != SIZE + 1 - k:
            raise Broken(f"step {k}", f"batch={SIZE + 1 - k} in the record", f"{made.batch}")


@law(SLOT, "It trains problem.model in place: its own parameters move.", needs=CHEAP)
def trains_in_place(case: Case) -> None:
    problem, stepper = _attached(case.component)
    own, before = dict(problem.model.named_parameters()), _theta(problem)
    for _ in range(STEPS):
        stepper.step()
    after = dict(problem.model.named_parameters())
    where = f"{STEPS} steps"
    for (name, parameter), old in zip(own.items(), before, strict=True):
        if after.get(name) is not parameter:
            raise Broken(where, f"the parameter {name} of before", "another object")
        if torch.equal(parameter.detach(), old):
            raise Broken(where, f"another value of {name}", "the value of before")


@law(SLOT, "Another seed draws other batches.", needs=(*CHEAP, "trains_in_place"))
def seed_matters(case: Case) -> None:
    thetas = []
    for seed in (0, 1):
        problem, stepper = _attached(case.component, seed=seed)
        for _ in range(STEPS):
            stepper.step()
        thetas.append(_theta(problem))
    if all(torch.equal(a, b) for a, b in zip(*thetas, strict=True)):
        raise Broken(f"{STEPS} steps with seeds 0 and 1", "another θ", "the same θ")


@law(
    SLOT,
    "It uses batch and average, and no other slot of the recipe.",
    needs=CHEAP,
    applies=lambda case: (
        "it is kfac, which uses every slot" if isinstance(case.component, Kfac) else None
    ),
)
def uses_batch_and_average(case: Case) -> None:
    _, stepper = _attached(case.component, _Two())
    for _ in range(STEPS):
        stepper.step()


@law(
    SLOT,
    "Saved without pickle and loaded half way, the run goes on bit for bit.",
    needs=(*CHEAP, "instances_share_nothing", "dtype_follows"),
)
def resumes(case: Case) -> None:
    problem, stepper = _attached(case.component)
    for _ in range(STEPS):
        stepper.step()
    file = io.BytesIO()
    with hidden(f"the state after {STEPS} steps, which has to be saved"):
        torch.save(stepper.state(), file)
    ahead = [stepper.step().step for _ in range(STEPS)]
    file.seek(0)
    other_problem, other = _attached(case.make())
    with hidden(f"the state after {STEPS} steps, loaded without pickle"):
        other.load(torch.load(file, weights_only=True))
        again = [other.step().step for _ in range(STEPS)]
    where = f"{STEPS} steps after loading"
    if ahead != again:
        raise Broken(where, f"the steps {ahead}", f"{again}")
    same_to_the_bit(where, "the θ of a run that went on", _theta(problem), _theta(other_problem))


@law(
    SLOT,
    "Of step_count, seconds, names, average, coverage and swap it has all six or none.",
    needs=("runs",),
)
def all_six_or_none(case: Case) -> None:
    _, stepper = _attached(case.component)
    lacks = traits(stepper, StepperTraits).lacks
    there = [name for name in MORE if name not in lacks]
    if there and lacks:
        lacking = ", ".join(lacks)
        raise Broken("its stepper", f"{lacking} beside {', '.join(there)}", "none")
