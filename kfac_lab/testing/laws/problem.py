"""The laws of a problem: a function of (seed, device) that makes one (section 13).

``runs``, ``reproducible``, ``own_randomness``, ``seed_matters``, ``device_follows``,
``fits_together``, ``test_apart``, ``builds_apart``, ``trains``.

Where its data are not on this machine (a DataError from outside of Problem) it is exempt from all
of them, and the report says why; where its network is large, from ``trains``.
"""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

import functools
import math
import traceback
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kfac_lab.core.problem import Problem, Split
from kfac_lab.engine import attach
from kfac_lab.errors import DataError
from kfac_lab.hooks.recipe import Recipe
from kfac_lab.testing.attaching import built_ins
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.common import hidden, same_to_the_bit
from kfac_lab.testing.trees import leaves

SLOT = "problem"
LARGE = 1_000_000  # parameters

_built: weakref.WeakKeyDictionary[Case, Problem | BaseException] = weakref.WeakKeyDictionary()


def _build(case: Case, seed: int = 0, device: Any = "cpu") -> Problem:
    """The problem as a run builds it."""
    made: Problem = case.component(seed=seed, device=device)
    return made


def _first(case: Case) -> Problem:
    """Seed 0, built once per case."""
    if case not in _built:
        try:
            _built[case] = _build(case)
        except Exception as error:
            _built[case] = error
    found = _built[case]
    if isinstance(found, BaseException):
        raise found
    return found


def _absent(case: Case) -> str | None:
    """Why there is nothing to try: its data are not here."""
    try:
        _first(case)
    except DataError as error:
        frames = [
            frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)
        ]
        own = any(name.startswith("kfac_lab.core.") for name in frames)
        return None if own else f"its data are not here: {error}"
    except Exception:
        return None
    return None


def _large(case: Case) -> str | None:
    absent = _absent(case)
    if absent is not None:
        return absent
    count = sum(p.numel() for p in _first(case).model.parameters())
    return (
        f"its network has {count:,} parameters, too many for a quick law" if count > LARGE else None
    )


_law = functools.partial(law, SLOT, applies=_absent)


@_law("problem(seed=…, device=…) makes a kfac_lab.Problem.")
def runs(case: Case) -> None:
    with hidden("seed=0, device='cpu'"):
        made = _first(case)
    if not isinstance(made, Problem):
        raise Broken("seed=0, device='cpu'", "a Problem", f"a {type(made).__name__}")


def _contents(problem: Problem) -> dict[str, Any]:
    """All of a problem that a run depends on."""
    drawn = problem.draw(1, 32, 0)
    test = problem.test
    return {
        "model": problem.model,
        "inputs": problem.inputs,
        "targets": problem.targets,
        "batch": tuple(drawn[:2]),
        "test": None if test is None else [test.inputs, test.targets],
        "l2": problem.l2,
    }


@_law("The same seed gives the same problem, bit for bit.")
def reproducible(case: Case) -> None:
    where = "seed=1 twice"
    contents = []
    for _ in range(2):
        torch.manual_seed(0)
        contents.append(_contents(_build(case, 1)))
    same_to_the_bit(where, "the same parameters and cases", *contents)


@_law("All that is random comes from its seed, not from torch's global generator.",
      needs=("reproducible",))  # fmt: skip
def own_randomness(case: Case) -> None:
    contents = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        contents.append(_contents(_build(case, 1)))
    where = "seed=1, after torch.manual_seed(1) and (2)"
    same_to_the_bit(where, "the same parameters and cases", *contents)


@_law("Another seed gives other parameters.", needs=("own_randomness",))
def seed_matters(case: Case) -> None:
    one, other = (dict(leaves(_build(case, seed).model)) for seed in (1, 2))
    if all(torch.equal(one[path], other[path]) for path in one):
        raise Broken("seeds 1 and 2", "other parameters", "the same parameters")


@_law("Model and cases are on the device that is asked for.")
def device_follows(case: Case) -> None:
    for device in (torch.device("cpu"), "meta"):
        where = f"device={str(device)!r}"
        with hidden(where):
            made = _build(case, 0, device)
        wanted = torch.device(device).type
        for name, tensor in _tensors(made):
            if tensor.device.type != wanted:
                raise Broken(where, f"{name} there", f"it on {tensor.device.type}")


def _tensors(problem: Problem) -> Iterator[tuple[str, Tensor]]:
    yield from problem.model.named_parameters()
    yield from problem.model.named_buffers()
    for name in ("inputs", "targets"):
        tensor = getattr(problem, name)
        if tensor is not None:
            yield name, tensor
    if problem.test is not None:
        yield "test.inputs", problem.test.inputs
        yield "test.targets", problem.test.targets


@_law("The likelihood takes the model's outputs and the targets, case by case.")
def fits_together(case: Case) -> None:
    problem = _first(case)
    drawn = problem.draw(1, 8, 0)
    sets = [("a training batch of 8", drawn.inputs, drawn.targets)]
    if problem.test is not None:
        sets.append(("8 test cases", problem.test.inputs[:8], problem.test.targets[:8]))
    for where, inputs, targets in sets:
        with hidden(where), torch.no_grad():
            outputs = problem.model(inputs)
            loss = problem.likelihood.loss(outputs, targets)
            gradient = problem.likelihood.gradient(outputs, targets)
        if tuple(loss.shape) != (len(inputs),):
            raise Broken(where, f"{len(inputs)} losses", f"the shape {tuple(loss.shape)}")
        if gradient.shape != outputs.shape:
            told = f"a gradient of the outputs' shape {tuple(outputs.shape)}"
            raise Broken(where, told, f"{tuple(gradient.shape)}")
        if not bool(torch.isfinite(loss).all()):
            raise Broken(where, "finite losses", f"{loss.tolist()}")


@_law("No test case is a training case: they share no memory.", needs=("runs",))
def test_apart(case: Case) -> None:
    problem = _first(case)
    if problem.test is None or problem.inputs is None or problem.targets is None:
        return
    train = Split(problem.inputs, problem.targets)
    for name in ("inputs", "targets"):
        a, b = (_span(getattr(each, name)) for each in (train, problem.test))
        if a[0] == b[0] and a[1] < b[2] and b[1] < a[2]:
            raise Broken(f"the {name}", "a test set apart", "one that overlaps the training set")


def _span(tensor: Tensor) -> tuple[int, int, int]:
    """Storage, first byte and the byte after the last."""
    start = tensor.data_ptr()
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.untyped_storage().data_ptr(), start, start + (last + 1) * tensor.element_size()


@_law("Two builds share no parameter: two runs side by side train their own.", needs=("runs",))
def builds_apart(case: Case) -> None:
    one, other = _build(case), _build(case)
    storages = {p.untyped_storage().data_ptr() for p in one.model.parameters()}
    for name, parameter in other.model.named_parameters():
        if parameter.untyped_storage().data_ptr() in storages:
            raise Broken("two builds", f"a {name} of its own each", "one in the same memory")


@law(
    SLOT,
    "K-FAC attaches to it and makes two steps, with finite losses.",
    needs=("runs", "fits_together"),
    applies=_large,
)
def trains(case: Case) -> None:
    recipe = Recipe(
        lab=built_ins(),
        fallback="diagonal",
        batch="constant(size=24)",
        estimator="sampled(fraction=1.0)",
        quadratic_model="exact_fisher(fraction=1.0)",
    )
    where = "two steps with 24 cases"
    with hidden(where):
        engine = attach(_build(case), recipe, 0)
        losses = [float(engine.step().loss) for _ in range(2)]
    if not all(map(math.isfinite, losses)):
        raise Broken(where, "finite losses", f"{losses}")
