"""The laws of ``likelihood``: the predictive distribution R(y|z) of the outputs (section 2.1).

Besides the common ones:

* ``shapes``: one loss and one error per case, everything else in the outputs' shape.
* ``cases_apart``: what comes of a case does not depend on the others of its batch.
* ``gradient_of_loss``: gradient is the derivative of loss in z, and error_of (``Residual``) makes
  the error of it.
* ``loss_not_negative``: the loss of one that says ``nonnegative=True`` is never below 0.
* ``loss_by_density``: loss is −log r(y|z) up to a constant, by torch.distributions (the built-in
  kinds).
* ``targets_not_broadcast``: targets of another shape are an error.
* ``mean_is_expected``: where gradient is affine in the target, it is 0 at the mean.
* ``error_least_at_mean``: no target has a smaller error than the mean.
* ``fisher_linear``, ``fisher_symmetric``, ``fisher_positive``: F_R is a symmetric positive
  semidefinite matrix.
* ``columns_square_to_fisher``, ``factor_squares_to_fisher``: B Bᵀ = F_R, by both ways to B.
* ``fisher_is_hessian``: F_R is the Hessian of loss in z, where that does not depend on y.
* ``chunks_of_a_batch``: loss and gradient of a batch come out alike in one piece and in two.
* ``fisher_of_known_targets``: where targets weigh predictions (``Weighted``), F_R at their weights
  is the Hessian of the loss on a batch, its denominator included.
* ``sample_mean_zero``, ``sample_second_moment``: sampled gradients have mean 0 and second moment
  F_R, within five standard errors.

``outputs`` and ``targets`` may be given to ``check`` where the usual ones do not do: positive ones
for rates and variances, targets as a dict for several heads.
"""

# ruff: noqa: D103 - a law says itself what it demands
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.cases import mapped, tensors_of
from kfac_lab.core.likelihood import Bernoulli, Categorical, Criterion, Gaussian, Weighted
from kfac_lab.core.likelihood.protocol import is_residual
from kfac_lab.errors import DataError
from kfac_lab.testing import dense
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.common import (
    CHEAP,
    Trial,
    common_laws,
    exempt_unless,
    near,
    same_to_the_bit,
    scale_of,
)
from kfac_lab.testing.laws.likelihood_subjects import (
    MANY,
    SLOT,
    _is_real,
    _matrices,
    _rows,
    attached,
    never_negative,
    run,
    subjects,
)
from kfac_lab.testing.subjects import Subject, normal, uniform
from kfac_lab.testing.trees import InputWatch

common_laws(Trial(SLOT, subjects, run, recipe=False, engine=attached))

FISHER = (*CHEAP, "shapes", "fisher_linear", "fisher_symmetric", "fisher_positive")


@law(SLOT, "loss and error are one number per case; all else has the outputs' shape.")
def shapes(case: Case) -> None:
    for subject in subjects(case):
        z = subject["outputs"]
        like, per_case = tuple(z.shape), (len(z),)
        wanted = {"loss": per_case, "error": per_case, "factor_transposed": (2, *like)}
        if _is_real(subject["targets"]):
            wanted["mean"] = tuple(subject["targets"].shape)
        for name, value in run(case.component, subject, InputWatch()).items():
            if not isinstance(value, (Tensor, list)):
                continue  # the means of several heads
            for each in value if isinstance(value, list) else [value]:
                shape = wanted.get(name, like)
                if tuple(each.shape) != shape:
                    raise Broken(subject.where, f"{name} {shape}", f"{tuple(each.shape)}")


@law(SLOT, "What comes of a case does not depend on the others.", needs=(*CHEAP, "shapes"))
def cases_apart(case: Case) -> None:
    for subject in subjects(case):
        whole = run(case.component, subject, InputWatch())
        for n in range(len(subject["outputs"])):
            own = {
                name: value[:, n : n + 1] if name == "tangents" else _rows(value, slice(n, n + 1))
                for name, value in subject.values.items()
            }
            alone = run(case.component, Subject("", own), InputWatch())
            for name in ("loss", "gradient", "sampled_gradient", "fisher", "error", "mean"):
                where = f"case {n} of {subject.where}"
                told = f"{name} as for the case alone"
                one = tensors_of(_rows(whole[name], slice(n, n + 1)))
                for wanted, found in zip(tensors_of(alone[name]), one, strict=True):
                    near(where, told, wanted, found, 1e-9)


@law(
    SLOT,
    "A loss that is said never to be below 0 is not.",
    needs=(*CHEAP, "shapes"),
    applies=exempt_unless(never_negative, "it does not say nonnegative=True"),
)
def loss_not_negative(case: Case) -> None:
    for subject in subjects(case):
        loss = case.component.loss(10.0 * subject["outputs"], subject["targets"])
        if not bool((loss >= 0).all()):
            raise Broken(subject.where, "no loss below 0", f"{float(loss.min()):g}")


@law(
    SLOT,
    "gradient is the derivative of loss in the outputs, and error_of makes the error of it.",
    needs=(*CHEAP, "shapes"),
)
def gradient_of_loss(case: Case) -> None:
    for subject in subjects(case):
        z = subject["outputs"].clone().requires_grad_()
        loss = case.component.loss(z, subject["targets"]).sum()
        (wanted,) = torch.autograd.grad(loss, z)
        got = case.component.gradient(z.detach(), subject["targets"])
        near(subject.where, "the gradient of loss", wanted, got)
        if is_residual(case.component):
            error = case.component.error(z.detach(), subject["targets"])
            told = "error, of error_of(gradient)"
            same_to_the_bit(subject.where, told, error, case.component.error_of(got))


@law(
    SLOT,
    "loss is −log r(y|z) up to a constant.",
    needs=(*CHEAP, "shapes"),
    applies=exempt_unless(
        lambda c: isinstance(c, (Gaussian, Bernoulli, Categorical)),
        "its density is not known here",
    ),
)
def loss_by_density(case: Case) -> None:
    first, second = normal(2, 3, seed=60)
    for label in range(3):
        y = (torch.arange(3) == label).double()
        target = torch.tensor([label]) if isinstance(case.component, Categorical) else y[None]
        losses, wanted = [], []
        for z in (first, second):
            known = dense.predictive(case.component, z)
            assert known is not None
            classes = isinstance(known, torch.distributions.Categorical)
            wanted.append(-known.log_prob(torch.tensor(label) if classes else y))
            losses.append(case.component.loss(z[None], target)[0])
        told = "the change of loss between two z as the density has it"
        near(f"y={target.tolist()[0]}", told, wanted[0] - wanted[1], losses[0] - losses[1])


def _real_targets(case: Case) -> str | None:
    real = _is_real(subjects(case)[0]["targets"])
    return None if real else "its targets are not real numbers"


@law(
    SLOT,
    "Targets of another shape are an error: broadcast, they make a loss that is silently wrong.",
    needs=(*CHEAP, "shapes"),
    applies=_real_targets,
)
def targets_not_broadcast(case: Case) -> None:
    whole = subjects(case)[0]
    side = min(whole["targets"].shape[1], len(whole["targets"]))
    z, y = whole["outputs"][:side], whole["targets"][:side, 0]
    for where, given in ((f"{side} outputs per case, targets ({side},)", z), ("outputs", z[:, :1])):
        try:
            case.component.loss(given, y)
        except Exception:  # what it says is its own
            continue
        told = f"{where}: outputs {tuple(given.shape)}, targets {tuple(y.shape)}"
        raise Broken(told, "an error that says so", "a loss")


def _weighs_by_target(component: Any, z: Tensor, *targets: Tensor) -> bool:
    """Whether one of these targets weighs more than another."""
    if not isinstance(component, Weighted):
        return False
    found = [component.weights(z, y) for y in targets]
    first = found[0]
    if not isinstance(first, Tensor):
        return False
    return any(not torch.equal(w, first) for w in found if isinstance(w, Tensor))


@law(
    SLOT,
    "mean is E[y|z]: where gradient is affine in the target, it is 0 at the mean.",
    needs=(*CHEAP, "shapes", "cases_apart", "gradient_of_loss", "loss_by_density"),
    applies=_real_targets,
)
def mean_is_expected(case: Case) -> None:
    for subject in subjects(case):
        z, y = subject["outputs"], subject["targets"]
        gradient, mean = case.component.gradient, case.component.mean(z)
        if _weighs_by_target(case.component, z, y, mean):
            continue
        at = [gradient(z, target) for target in (mean, y, (mean + y) / 2)]
        if float((at[0] + at[1] - 2 * at[2]).abs().max()) > 1e-9 * scale_of(*at):
            continue  # the mean of the gradient is not the gradient of the mean
        size = scale_of(at[1])
        worst = float(at[0].abs().max())
        if worst > 1e-7 * size:
            raise Broken(subject.where, "a gradient of 0 at y = mean", f"{worst:.3g}")


@law(
    SLOT,
    "No target has a smaller error than the mean, and some have a larger one.",
    needs=(*CHEAP, "shapes", "mean_is_expected"),
    applies=_real_targets,
)
def error_least_at_mean(case: Case) -> None:
    larger = False
    for subject in subjects(case):
        z, error = subject["outputs"], case.component.error
        mean = case.component.mean(z)
        for n in range(4):
            other = mean.roll(n, -1) if n else subject["targets"]
            least, found = error(z, mean), error(z, other)
            if bool((found < least - 1e-9 * scale_of(found)).any()):
                at = int((found - least).argmin())
                told = f"an error of at least {float(least[at]):.4g}, that of y = mean"
                raise Broken(f"{subject.where}, case {at}", told, f"{float(found[at]):.4g}")
            larger = larger or bool((found > least).any())
    if not larger:
        raise Broken("several targets", "a larger error than at y = mean", "none")


@law(SLOT, "fisher is linear in the tangent.", needs=(*CHEAP, "shapes"))
def fisher_linear(case: Case) -> None:
    for subject in subjects(case):
        z, (u, v) = subject["outputs"], subject["tangents"]
        fisher = case.component.fisher
        wanted = 2 * fisher(z, u) - 3 * fisher(z, v)
        near(subject.where, "F_R(2u − 3v)", wanted, fisher(z, 2 * u - 3 * v))


@law(SLOT, "F_R is symmetric.", needs=(*CHEAP, "shapes", "fisher_linear"))
def fisher_symmetric(case: Case) -> None:
    for subject in subjects(case):
        found = _matrices(case.component, subject["outputs"])
        near(subject.where, "F_R as its transpose", found.mT, found)


@law(
    SLOT,
    "F_R is positive semidefinite.",
    needs=(*CHEAP, "shapes", "fisher_linear", "fisher_symmetric"),
)
def fisher_positive(case: Case) -> None:
    for subject in subjects(case):
        found = torch.linalg.eigvalsh(_matrices(case.component, subject["outputs"]))
        least, most = float(found.min()), float(found.max())
        if least < -1e-9 * abs(most):
            raise Broken(subject.where, "no negative eigenvalue of F_R", f"{least:.3g}")


@law(SLOT, "The columns of B give F_R = B Bᵀ.", needs=FISHER)
def columns_square_to_fisher(case: Case) -> None:
    for subject in subjects(case):
        z = subject["outputs"]
        count = case.component.factor_columns(z)
        found = [case.component.factor_column(z, j).flatten(1) for j in range(count)]
        b = torch.stack(found, -1)
        near(subject.where, "F_R from B's columns", _matrices(case.component, z), b @ b.mT)


@law(SLOT, "factor_transposed gives uᵀF_R v as (Bᵀu)ᵀ(Bᵀv).", needs=FISHER)
def factor_squares_to_fisher(case: Case) -> None:
    for subject in subjects(case):
        z = subject["outputs"]
        side = z[0].numel()
        units = torch.eye(side, dtype=z.dtype).repeat_interleave(len(z), 0)
        units = units.reshape(side, *z.shape)
        rooted = case.component.factor_transposed(z, units).flatten(2).permute(1, 0, 2)
        wanted = _matrices(case.component, z)
        near(subject.where, "F_R from Bᵀ", wanted, rooted @ rooted.mT)


@law(SLOT, "F_R is the Hessian of loss, where that does not depend on the target.", needs=FISHER)
def fisher_is_hessian(case: Case) -> None:
    for subject in subjects(case):
        z, y = subject["outputs"][:1], _rows(subject["targets"], slice(0, 1))
        wanted = _hessian(case.component.loss, z, y)
        other = _hessian(case.component.loss, z, _another(y, z))
        if float((wanted - other).abs().max()) > 1e-9:
            continue  # then F_R is its mean over y, which the samples show
        if not bool(wanted.any()):
            continue  # linear in z: z is not free, as log-probabilities are not
        near(subject.where, "F_R, the Hessian", wanted, _matrices(case.component, z)[0])


def _hessian(loss: Any, z: Tensor, y: Any) -> Tensor:
    """Second derivatives of Σ loss in all outputs ``[N·out, N·out]``."""

    def total(flat: Tensor) -> Tensor:
        found: Tensor = loss(flat.view_as(z), y).sum()
        return found

    found: Any = torch.autograd.functional.hessian(total, z.flatten())
    return found


def _another(y: Any, z: Tensor) -> Any:
    """Other targets of the same kind."""
    if not isinstance(y, Tensor):
        return mapped(y, lambda t: _another(t, z))
    return y.flip(-1) * 0.9 if y.is_floating_point() else (y + 1) % max(2, int(y.max()) + 1)


def _weighted(case: Case) -> str | None:
    if isinstance(case.component, Weighted):
        return None
    return "no target of it weighs more than another"


@law(
    SLOT,
    "A batch has one loss, in one piece and in two.",
    needs=(*CHEAP, "shapes"),
    applies=_weighted,
)
def chunks_of_a_batch(case: Case) -> None:
    for subject in subjects(case):
        z, y = subject["outputs"], subject["targets"]
        criterion = Criterion(case.component, y, len(z))
        for name in ("loss", "gradient"):
            asked = getattr(criterion, name)
            parts = [asked(z[n : n + 1], _rows(y, slice(n, n + 1))) for n in range(len(z))]
            near(subject.where, f"{name} case by case", torch.cat(parts), asked(z, y), 1e-9)


@law(
    SLOT,
    "F_R at the weights of known targets is the Hessian of loss, where that of a bare prediction "
    "does not depend on the target.",
    needs=(*FISHER, "chunks_of_a_batch"),
    applies=_weighted,
)
def fisher_of_known_targets(case: Case) -> None:
    for subject in subjects(case):
        z, y = subject["outputs"], subject["targets"]
        criterion = Criterion(case.component, y, len(z))
        try:
            bare = [_hessian(criterion.bare.loss, z, t) for t in (y, _another(y, z))]
        except (DataError, RuntimeError):  # bare predictions have no targets of this kind
            bare = []
        if bare and float((bare[0] - bare[1]).abs().max()) > 1e-9:
            continue
        wanted = _hessian(criterion.loss, z, y)
        if bool(wanted.any()):
            found = torch.block_diag(*_matrices(criterion.given(z, y), z))
            near(subject.where, "F_R, the Hessian", wanted, found)


def _samples(component: Any, z: Tensor) -> Tensor:
    """Sampled gradients of many equal cases ``[N, out]``."""
    many = z.expand(MANY, *z.shape[1:]).contiguous()
    found: Tensor = component.sampled_gradient(many, uniform(*many.shape, seed=70))
    return found.flatten(1)


def _within_error(where: str, what: str, wanted: Tensor, each: Tensor) -> None:
    mean, error = each.mean(0), each.std(0) / math.sqrt(len(each))
    excess = (mean - wanted).abs() - 5 * error - 1e-9
    if bool((excess > 0).any()):
        n = int(excess.argmax())
        told = f"{what}, {wanted.flatten()[n]:.4f} ± {5 * error.flatten()[n]:.4f}"
        raise Broken(where, told, f"{mean.flatten()[n]:.4f}")


@law(SLOT, "The mean of the sampled gradient over y from the model is 0.", needs=FISHER)
def sample_mean_zero(case: Case) -> None:
    for subject in subjects(case):
        g = _samples(case.component, subject["outputs"][:1])
        _within_error(f"{MANY} samples, {subject.where}", "a mean of 0", torch.zeros_like(g[0]), g)


@law(SLOT, "The second moment of the sampled gradient is F_R.", needs=FISHER)
def sample_second_moment(case: Case) -> None:
    for subject in subjects(case):
        z = subject["outputs"][:1]
        g = _samples(case.component, z)
        wanted = _matrices(case.component, z)[0]
        each = g.unsqueeze(2) * g.unsqueeze(1)
        _within_error(f"{MANY} samples, {subject.where}", "F_R", wanted, each)
