"""What a likelihood is tried on: outputs, targets and tangents; its Fisher written out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.cases import mapped
from kfac_lab.core.likelihood import Categorical
from kfac_lab.core.problem import Problem
from kfac_lab.core.traits import LikelihoodTraits, traits
from kfac_lab.engine import Engine
from kfac_lab.testing.law import Case
from kfac_lab.testing.laws.common import (
    engine_for,
)
from kfac_lab.testing.subjects import Subject, normal, tiny_problem, uniform
from kfac_lab.testing.trees import InputWatch

__all__ = ["MANY", "SLOT", "attached", "never_negative", "run", "subjects"]

SLOT = "likelihood"


MANY = 4000


def never_negative(component: Any) -> bool:
    """Whether it says that its loss is never below 0."""
    return bool(traits(component, LikelihoodTraits).nonnegative)


def subjects(case: Case) -> Sequence[Subject]:
    """Several cases, one case, positions; or the outputs and targets that were given."""
    if "outputs" in case.extra and "targets" in case.extra:
        z, y = case.extra["outputs"], mapped(case.extra["targets"], _doubled)
        return (
            _subject(f"the {len(z)} given cases", z.double(), y),
            _subject("the first given case", z[:1].double(), _rows(y, slice(0, 1))),
        )
    side = 3 if _takes(case.component, 3) else 4  # two halves
    shapes = {
        "5 cases": (5, side),
        "one case": (1, side),
        "3 cases of 2 positions": (3, 2, side),
    }
    found = []
    for n, (where, shape) in enumerate(shapes.items()):
        z = normal(*shape, seed=30 + n)
        found.append(_subject(where, z, _targets(case.component, z)))
    return tuple(found)


def _targets(component: Any, z: Tensor) -> Tensor:
    """Targets that the likelihood takes: real ones in (0, 1), like the outputs or half as many, or
    class numbers, the classes being the last dimension or dimension 1.
    """
    y = uniform(*z.shape, seed=40)
    last = torch.arange(z[..., 0].numel()).reshape(z.shape[:-1]) % z.shape[-1]
    second = torch.arange(z[:, 0].numel()).reshape(z[:, 0].shape) % z.shape[1]
    for found in (y, y.chunk(2, -1)[0], last, second):
        try:
            component.loss(z, found)
        except Exception:  # whatever it says of targets that are not its kind
            continue
        probable = isinstance(component, Categorical) and found is y
        return y / y.sum(-1, keepdim=True) if probable else found
    return last  # the laws say what becomes of it


def _doubled(y: Tensor) -> Tensor:
    """Real targets in float64."""
    return y.double() if y.is_floating_point() else y


def _rows(y: Any, rows: Any) -> Any:
    """Some cases of targets: a tensor, or a tuple or dict of them."""
    return mapped(y, lambda t: t[rows])


def _is_real(y: Any) -> bool:
    return isinstance(y, Tensor) and y.is_floating_point()


def _takes(component: Any, side: int) -> bool:
    z = normal(2, side, seed=30)
    try:
        component.loss(z, _targets(component, z))
    except Exception:  # whatever it says of outputs that are not its kind
        return False
    return True


def _subject(where: str, z: Tensor, y: Tensor) -> Subject:
    return Subject(
        where,
        {
            "outputs": z,
            "targets": y,
            "uniforms": uniform(*z.shape, seed=41),
            "tangents": normal(2, *z.shape, seed=42),
        },
    )


def run(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
    """Every method once."""
    z, y, u = subject["outputs"], subject["targets"], subject["tangents"]
    columns = component.factor_columns(z)
    return {
        "loss": component.loss(z, y),
        "gradient": component.gradient(z, y),
        "sampled_gradient": component.sampled_gradient(z, subject["uniforms"]),
        "factor_transposed": component.factor_transposed(z, u),
        "fisher": component.fisher(z, u[0]),
        "factor_column": [component.factor_column(z, j) for j in range(columns)],
        "error": component.error(z, y),
        "mean": component.mean(z),
    }


def attached(case: Case, component: Any, **parts: Any) -> Engine:
    """The tiny problem with this likelihood, its last layer as wide as the outputs."""
    plain = tiny_problem(cases=24)
    whole = subjects(case)[0]
    z, y = whole["outputs"], whole["targets"]
    layers = list(plain.model.children())[:-1]
    head = nn.Linear(4, z[0].numel())
    with torch.no_grad():
        head.weight.copy_(normal(*head.weight.shape, seed=50) / 2)
        head.bias.zero_()
    shaped = [nn.Unflatten(1, tuple(z.shape[1:]))] if z.dim() > 2 else []
    repeated = _rows(y, torch.arange(24) % len(z))
    targets = mapped(repeated, lambda t: t.float() if t.is_floating_point() else t)
    last: list[nn.Module] = []
    if bool((z > 0).all()):  # rates and variances
        last.append(nn.Softplus())
    elif float(torch.logsumexp(z, 1).abs().max()) < 1e-6:  # log-probabilities
        last.append(nn.LogSoftmax(1))
    model = nn.Sequential(*layers, head, *shaped, *last)
    problem = Problem(
        model=model, likelihood=component, inputs=plain.inputs, targets=targets, l2=1e-3
    )
    return engine_for(case, problem, component, parts)


def _matrices(component: Any, z: Tensor) -> Tensor:
    """F_R of every case ``[N, out, out]``, one unit vector at a time."""
    columns = []
    for j in range(z[0].numel()):
        unit = torch.zeros_like(z).flatten(1)
        unit[:, j] = 1
        columns.append(component.fisher(z, unit.view_as(z)).flatten(1))
    return torch.stack(columns, -1)
