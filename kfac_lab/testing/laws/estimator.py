"""The laws of ``estimator``: where the derivatives g come from (sections 2.2 and 5).

Besides the common ones:

* ``fraction_in_range``: τ1 lies in (0, 1].
* ``decay_in_range``: ε lies in [0, 1) for every k.
* ``starts_afresh``: ε is 0 at step 1.
* ``one_shape``: there is at least one cotangent, each of the outputs' shape.
* ``second_moment``: Σ of the cotangents' outer products has the mean F_R of their case, also with
  positions (exempt: ``unbiased=False``, as for the labels' own gradients).
* ``draws_through_draw``: what asks for no uniforms is no sample: it gives F_R itself.
"""

# ruff: noqa: D103 - a law says itself what it demands
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.likelihood import Bernoulli, Categorical, Gaussian, Likelihood
from kfac_lab.core.traits import EstimatorTraits, traits
from kfac_lab.testing import dense
from kfac_lab.testing.law import Broken, Case, law, try_last
from kfac_lab.testing.laws.common import CHEAP, Trial, common_laws, exempt_unless, near
from kfac_lab.testing.subjects import Subject, draws, normal, uniform
from kfac_lab.testing.trees import InputWatch

SLOT = "estimator"
STEPS = (1, 2, 3, 5, 10, 100, 10_000)
FEW: tuple[tuple[Likelihood, Tensor], ...] = (
    (Bernoulli(), normal(2, 2, seed=5)),
    (Gaussian("full"), normal(2, 2, seed=6)),
    (Categorical(), normal(2, 3, seed=7)),
    (Categorical(), normal(2, 2, 2, seed=9)),
)
_biased = exempt_unless(
    lambda component: traits(component, EstimatorTraits).unbiased,
    "unbiased=False says that it does not estimate F_R",
)


def subjects(case: Case) -> Sequence[Subject]:
    """Outputs of one case and of several, with positions, for each kind of likelihood."""
    z = normal(6, 3, seed=1)
    sequence = normal(4, 2, 3, seed=2)
    return (
        Subject("6 cases of 3 binary outputs", _given(Bernoulli(), z, uniform(6, 3, seed=3))),
        Subject("one case of 3 real outputs", _given(Gaussian(), z[:1], normal(1, 3, seed=4))),
        Subject("6 cases of 3 classes", _given(Categorical(), z, torch.arange(6) % 3)),
        Subject(
            "4 cases of 2 positions of 3 classes",
            _given(Categorical(), sequence, torch.arange(8).reshape(4, 2) % 3),
        ),
    )


def _given(likelihood: Likelihood, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
    return {"likelihood": likelihood, "outputs": outputs, "targets": targets}


def cotangents_of(component: Any, subject: Subject, seed: int = 0) -> list[Tensor]:
    """Every cotangent that an estimator gives."""
    outputs = subject["outputs"]
    given = subject["likelihood"], outputs, subject["targets"], draws(outputs, seed)
    return list(component.cotangents(*given))


def run(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
    """The decays of a few steps, and the cotangents."""
    return {
        "decay": [component.decay(k) for k in STEPS],
        "cotangents": cotangents_of(component, subject),
    }


common_laws(Trial(SLOT, subjects, run))


@law(SLOT, "fraction, τ1, lies in (0, 1].", needs=("runs",))
def fraction_in_range(case: Case) -> None:
    fraction = case.component.fraction
    if not 0 < fraction <= 1:
        raise Broken("its fields", "fraction in (0, 1]", repr(fraction))


@law(SLOT, "decay(k), ε, lies in [0, 1) for every k.")
def decay_in_range(case: Case) -> None:
    for k in STEPS:
        epsilon = case.component.decay(k)
        if not 0 <= epsilon < 1:
            raise Broken(f"k={k}", "ε in [0, 1)", repr(epsilon))


@law(
    SLOT,
    "decay(1) is 0: the moments open at zero, which is no estimate to keep a share of.",
    needs=("runs", "decay_in_range"),
)
def starts_afresh(case: Case) -> None:
    epsilon = case.component.decay(1)
    if epsilon != 0:
        raise Broken("k=1", "ε=0", f"ε={epsilon:g}")


@law(SLOT, "It gives at least one cotangent, each of the outputs' shape.")
def one_shape(case: Case) -> None:
    for subject in subjects(case):
        outputs = subject["outputs"]
        found = cotangents_of(case.component, subject)
        if not found:
            raise Broken(subject.where, "at least one cotangent", "none")
        for cotangent in found:
            if cotangent.shape != outputs.shape:
                shape = tuple(outputs.shape)
                raise Broken(subject.where, f"cotangents {shape}", f"{tuple(cotangent.shape)}")


@law(
    SLOT,
    "The cotangents' summed outer products have the mean F_R, the Fisher of the outputs.",
    needs=(*CHEAP, "one_shape", "dtype_follows"),
    applies=_biased,
)
def second_moment(case: Case) -> None:
    many = 4000  # of each case, the two in turn: what comes of one must not go to the other
    for likelihood, few in FEW:
        outputs = few.repeat(many, *[1] * (few.dim() - 1))
        where = f"{many} times two cases {tuple(few[0].shape)} under {type(likelihood).__name__}"
        subject = Subject(where, _given(likelihood, outputs, likelihood.mean(outputs)))
        found = torch.stack(cotangents_of(case.component, subject), 1).flatten(2)  # [N, C, out]
        for n, z in enumerate(few):
            own = found[n :: len(few)]
            each = own.mT @ own
            mean = each.mean(0)
            error = each.std(0) / math.sqrt(many)
            wanted = dense.output_fisher(likelihood, z).reshape(mean.shape)
            excess = (mean - wanted).abs() - 5 * error - 1e-9
            if bool((excess > 0).any()):
                i, j = divmod(int(excess.argmax()), len(wanted))
                told = f"{wanted[i, j]:.4f} ± {5 * error[i, j]:.4f} at [{i}, {j}] of F_R"
                raise Broken(f"{where}, case {n}", told, f"{mean[i, j]:.4f}")


@law(
    SLOT,
    "What is random comes from draw(purpose): without a draw the cotangents give F_R itself.",
    needs=(*CHEAP, "global_state_kept", "second_moment"),
    applies=_biased,
)
def draws_through_draw(case: Case) -> None:
    """A generator of its own gives good samples too, but the same ones at every step."""
    for likelihood, z in FEW:
        asked: list[str] = []

        def draw(purpose: str, z: Tensor = z, asked: list[str] = asked) -> Tensor:
            asked.append(purpose)
            return uniform(*z.shape, seed=8)

        found = list(case.component.cotangents(likelihood, z, likelihood.mean(z), draw))
        if asked:
            continue
        g = torch.stack(found, 1).flatten(2)
        for n in range(len(z)):
            where = f"case {n} under {type(likelihood).__name__}, no draw asked for"
            wanted = dense.output_fisher(likelihood, z[n])
            got = g[n].t() @ g[n]
            near(where, "F_R", wanted.reshape(got.shape), got)


try_last(SLOT, "replays", "draws_through_draw")
