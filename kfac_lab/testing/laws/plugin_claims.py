"""The laws of what a plugin claims: torch's modules and losses, and its own examples."""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

import copy
import functools
import inspect
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.claims import ByStructure
from kfac_lab.core.layers import Declined, dense
from kfac_lab.core.problem import Problem
from kfac_lab.core.traits import LayerTraits, traits
from kfac_lab.engine import attach
from kfac_lab.hooks.recipe import Recipe
from kfac_lab.testing.catalogue import Called, Example, calls, losses, modules, tensor_of
from kfac_lab.testing.law import LAWS, Broken, Case, law
from kfac_lab.testing.laws.common import hidden, near
from kfac_lab.testing.laws.plugin_loading import EXAMPLES, SLOT, _implementations, loaded
from kfac_lab.testing.subjects import normal


def examples(case: Case) -> list[Example]:
    """Torch's modules, and those that the plugin's own ``kfac_lab_examples()`` yields."""
    return [*modules(), *_own_examples(case)]


def _own_examples(case: Case) -> Iterator[Example]:
    found = getattr(case.component, EXAMPLES, None)
    for n, pair in enumerate(found() if found is not None else (), 1):
        module, inputs = pair
        given = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
        yield Example(f"its example {n}, {type(module).__name__}", module, given)


def claimed(case: Case, example: Example) -> Iterator[tuple[Called, tuple[Any, ...]]]:
    """The parts of an example that this plugin claims, with the Layers that it answered."""
    for called in calls(example):
        answer = _answer(case, called.module, called.path or example.name)
        if answer is not None and not isinstance(answer, Declined):
            yield called, answer if isinstance(answer, tuple) else (answer,)


def _answer(case: Case, module: nn.Module, path: str) -> Any:
    answer = _asked(case, "kfac_claim_layer", module=module, path=path)
    return answer.answer if isinstance(answer, ByStructure) else answer


def _asked(case: Case, hook: str, **arguments: Any) -> Any:
    """This plugin's own answer to a claim, as it gives it."""
    for _, name, function, _ in _implementations(case.component):
        if name == hook:
            wanted = inspect.signature(function).parameters
            return function(**{k: v for k, v in arguments.items() if k in wanted})
    return None


def _claims(*hooks: str) -> Any:
    def applies(case: Case) -> str | None:
        there = {hook for _, hook, _, _ in _implementations(case.component)}
        return None if there & set(hooks) else f"it has no {' and no '.join(hooks)}"

    return applies


@law(
    SLOT,
    "kfac_lab_examples() yields pairs: a module, and what it is called with.",
    needs=("loads",),
    applies=lambda case: (
        None if hasattr(case.component, EXAMPLES) else "it has no kfac_lab_examples"
    ),
)
def examples_run(case: Case) -> None:
    with hidden(f"{EXAMPLES}()"):
        own = list(_own_examples(case))
    for example in own:
        if not isinstance(example.module, nn.Module):
            raise Broken(example.name, "a module", f"a {type(example.module).__name__}")
        with hidden(f"{example.name}, called with its inputs"):
            calls(example)


@law(
    SLOT,
    "Asked for a module or a loss of torch it answers, with what is its own or with None.",
    needs=("loads", "examples_run"),
    applies=_claims("kfac_claim_layer", "kfac_claim_likelihood"),
)
def claims_answer(case: Case) -> None:
    for example in examples(case):
        for called in calls(example):
            where = f"{example.name}, {type(called.module).__name__}"
            with hidden(where):
                answer = _answer(case, called.module, called.path or example.name)
            for layer in answer if isinstance(answer, tuple) else (answer,):
                lacking = [n for n in ("rows_in", "rows_out", "pack") if not hasattr(layer, n)]
                if layer is not None and not isinstance(layer, Declined) and lacking:
                    got = f"a {type(layer).__name__} without {lacking[0]}"
                    raise Broken(where, "a Layer or None", got)
    for name, loss, _, _ in losses():
        with hidden(name):
            _asked(case, "kfac_claim_likelihood", loss=loss)


@law(
    SLOT,
    "It claims by exact type: a subclass with a forward of its own computes something else.",
    needs=("loads", "claims_answer"),
    applies=_claims("kfac_claim_layer", "kfac_claim_likelihood"),
)
def claims_by_exact_type(case: Case) -> None:
    for example in examples(case):
        for called, _ in claimed(case, example):
            other = _of_subclass(called.module, forward=_elsewhere)
            if _answer(case, other, called.path or example.name) is not None:
                kind = type(called.module).__name__
                raise Broken(f"a subclass of {kind} with its own forward", "None", "a claim")
    for name, loss, _, _ in losses():
        if _asked(case, "kfac_claim_likelihood", loss=loss) is not None:
            if _asked(case, "kfac_claim_likelihood", loss=_of_subclass(loss)) is not None:
                raise Broken(f"a subclass of {name}", "None", "a claim")


def _of_subclass(module: nn.Module, **own: Any) -> nn.Module:
    """The same module as an instance of a subclass that has ``own`` attributes."""
    other = copy.copy(module)
    other.__class__ = type(f"My{type(module).__name__}", (type(module),), own)
    return other


def _elsewhere(self: nn.Module, *args: Any, **named: Any) -> Any:
    """A forward that nobody can know."""
    raise NotImplementedError


@law(
    SLOT,
    "It claims what is called: of a module that another one runs by itself there are no rows.",
    needs=("loads", "claims_answer"),
    applies=_claims("kfac_claim_layer"),
)
def claims_are_called(case: Case) -> None:
    for example in examples(case):
        for called, _ in claimed(case, example):
            if called.args is None:
                kind = type(called.module).__name__
                got = f"a claim on {called.path!r} ({kind}), which is not called"
                raise Broken(example.name, "claims on modules that are called", got)


def plain(called: Called, layer: Any) -> Tensor | None:
    """The one tensor that a layer's module was called with, where the laws of a layer can use it.

    None where the layer belongs to another module than the claimed one, or records something else
    than the module's own input and output.
    """
    args = called.args or ()
    if layer.module is not called.module or len(args) != 1 or not isinstance(args[0], Tensor):
        return None
    first: Tensor = args[0]
    if traits(layer, LayerTraits).record is not None:
        recorded = layer.record(called.module, args, {}, called.module(*args))
        if recorded.inputs is not first or recorded.watched is not recorded.output:
            return None
    return first


def _recorded(case: Case) -> Iterator[tuple[str, Any, Called]]:
    """Name, Layer and call of each claimed module that the laws of a layer cannot try."""
    for example in examples(case):
        for called, layers in claimed(case, example):
            for layer in layers:
                if plain(called, layer) is None:
                    yield f"{type(layer).__name__} of {example.name}", layer, called


@law(
    SLOT,
    "Of a Layer that records the call itself, Σ rows_outᵀ rows_in over cases and positions is the "
    "gradient that autograd gives, packed; and the recorded call gives what the module gives.",
    needs=("loads", "claims_answer", "claims_are_called"),
    applies=_claims("kfac_claim_layer"),
)
def gradient_from_calls(case: Case) -> None:
    for where, layer, called in _recorded(case):
        given = called.args or ()
        if layer.module is not called.module:
            continue  # then another module's call records it
        if traits(layer, LayerTraits).record is None:
            told = "record(module, args, named, output), as rows_in takes one tensor"
            raise Broken(f"{where}, called with {len(given)} arguments", told, "none")
        with hidden(where):
            _check_recorded(where, copy.deepcopy(layer), given)


_PACKS = ("pack_shape", "pack_linear", "unpack_undoes_pack", "pack_undoes_unpack")


@law(
    SLOT,
    "Of such a Layer too pack is linear, makes a matrix [d_out, d_in], and unpack is its inverse.",
    needs=("loads", "claims_answer", "claims_are_called"),
    applies=_claims("kfac_claim_layer"),
)
def packs_of_calls(case: Case) -> None:
    for where, layer, _ in _recorded(case):
        own = Case(layer, "layer", functools.partial(copy.copy, layer))
        for name in _PACKS:
            try:
                with hidden(f"{name} of a layer"):
                    LAWS["layer"][name].tries(own)
            except Broken as error:
                raise Broken(f"{where}, {error.where}", error.expected, error.got) from error


def _check_recorded(where: str, layer: Any, given: tuple[Any, ...]) -> None:
    module = layer.module.double().eval()
    by_given = {id(a): a.double() if a.is_floating_point() else a for a in given}
    args = tuple(by_given[id(a)] for a in given)  # equal arguments stay one object
    recorded = layer.record(module, args, {}, module(*args))
    out, plainly = tensor_of(recorded.output), tensor_of(module(*args))
    near(where, "what the module gives", plainly.detach(), out.detach())
    named = dict(module.named_parameters())
    own = [named[name] for name in layer.names]
    g = normal(*out.shape, seed=7)
    watched, *wanted = torch.autograd.grad((g * out).sum(), [recorded.watched, *own])
    a, b = (dense(rows) for rows in (layer.rows_in(recorded.inputs), layer.rows_out(watched)))
    got = torch.einsum("nso,nsi->oi", b.double(), a.detach().double())
    near(where, "the packed gradient", layer.pack(wanted), got)


@law(
    SLOT,
    "A claimed module trains in a network, with finite numbers, its claimed parameters by its own "
    "Layer.",
    # a layer whose rows do not make up its gradient is left to the fallback
    needs=("loads", "claims_answer", "claims_are_called", "gradient_from_calls"),
    applies=_claims("kfac_claim_layer"),
)
def claimed_modules_train(case: Case) -> None:
    """Only of those that the laws of a layer cannot try; they try the others."""
    lab, plugin = loaded(case)
    for example in examples(case):
        found = list(claimed(case, example))
        if all(plain(called, layer) is not None for called, layers in found for layer in layers):
            continue
        problem = _around(example)
        recipe = Recipe(
            lab=lab,
            fallback="diagonal",
            batch="constant(size=5)",
            estimator="sampled(fraction=1.0)",
            quadratic_model="exact_fisher(fraction=1.0)",
        )
        where = f"{example.name}, three steps"
        with hidden(where), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            engine = attach(problem, recipe, 0)
            values = [float(engine.step().loss) for _ in range(3)]
        if not all(map(math.isfinite, values)):
            raise Broken(where, "finite losses", f"{values}")
        if not any(row.claimed_by == plugin.qualified for row in engine.coverage()):
            raise Broken(where, f"parameters claimed by {plugin.qualified}", "none")


class _Around(nn.Module):
    """An example's module, all its inputs in one tensor, and a head of two outputs."""

    def __init__(self, example: Example) -> None:
        super().__init__()
        self.module = copy.deepcopy(example.module)
        self.single = all(each is example.inputs[0] for each in example.inputs)
        self.count = len(example.inputs)
        self.shapes = [tuple(each.shape[1:]) for each in example.inputs]
        with torch.no_grad():
            out = tensor_of(self.module(*example.inputs)).flatten(1)
        self.head = nn.Linear(out.shape[1], 2).to(out.dtype)
        with torch.no_grad():
            self.head.weight.copy_(normal(2, out.shape[1], seed=5) / out.shape[1] ** 0.5)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Two numbers per case."""
        given: Sequence[Tensor] = [x] * self.count
        if not self.single:
            parts = x.split([math.prod(shape) for shape in self.shapes], 1)
            given = [p.reshape(-1, *s) for p, s in zip(parts, self.shapes, strict=True)]
        found: Tensor = self.head(torch.tanh(tensor_of(self.module(*given)).flatten(1)))
        return found


def _around(example: Example) -> Problem:
    model = _Around(example)
    inputs = example.inputs[0]
    if not model.single:
        inputs = torch.cat([each.flatten(1) for each in example.inputs], 1)
    targets = normal(len(inputs), 2, seed=6).to(model.head.weight.dtype)
    return Problem(model=model, likelihood="gaussian", inputs=inputs, targets=targets, l2=1e-3)
