"""The laws of a plugin: the module (or object) that an entry point names.

``runs`` (it can be imported), ``imports_quickly``, ``interface_fits``, ``hooks_marked``,
``hooks_known``, ``hooks_plain``, ``hook_arguments``, ``loads``, ``brings_something``,
``names_of_its_own``, ``examples_run``, ``claims_answer``, ``claims_by_exact_type``,
``claims_are_called``, ``gradient_from_calls``, ``packs_of_calls``, ``claimed_modules_train``.

Where the loader would refuse the plugin, the law quotes its sentence. The components that the
plugin registers, the layers and the likelihoods that it claims have laws of their own:
``kfac_lab.testing.check_plugin`` tries them all.
"""

# ruff: noqa: D103 - a law says itself what it demands

from __future__ import annotations

import copy
import functools
import inspect
import math
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pluggy
import torch
from torch import Tensor, nn

from kfac_lab.core.claims import ByStructure
from kfac_lab.core.layers import Declined, dense
from kfac_lab.core.problem import Problem
from kfac_lab.core.traits import LayerTraits, traits
from kfac_lab.engine import attach
from kfac_lab.errors import PluginError
from kfac_lab.hooks import specs
from kfac_lab.hooks.manager import SLOW_IMPORT, Lab, Plugin
from kfac_lab.hooks.recipe import Recipe
from kfac_lab.testing.catalogue import Called, Example, calls, losses, modules, tensor_of
from kfac_lab.testing.law import LAWS, Broken, Case, law
from kfac_lab.testing.laws.common import hidden, near
from kfac_lab.testing.subjects import normal

SLOT = "plugin"
EXAMPLES = "kfac_lab_examples"

_HOOKS = {
    name: tuple(inspect.signature(function).parameters)
    for name, function in vars(specs).items()
    if name.startswith("kfac_") and inspect.isfunction(function)
}


# --- the plugin in a Lab of its own ---------------------------------------------------------------


class Loaded(NamedTuple):
    """A Lab with the built-ins and this plugin alone."""

    lab: Lab
    plugin: Plugin


_loaded: weakref.WeakKeyDictionary[Case, Loaded | PluginError] = weakref.WeakKeyDictionary()


def loaded(case: Case) -> Loaded:
    """The plugin loaded, once per case.

    Raises:
        PluginError: the loader refuses it.
    """
    if case not in _loaded:
        try:
            _loaded[case] = _load(case)
        except PluginError as error:
            _loaded[case] = error
    found = _loaded[case]
    if isinstance(found, PluginError):
        raise found
    return found


def _load(case: Case) -> Loaded:
    lab = Lab(entry_points=False)
    for plugin in lab.plugins():
        if plugin.module is case.component:  # it is in the box
            return Loaded(lab, plugin)
    known = {key: case.extra[key] for key in ("distribution", "version") if key in case.extra}
    return Loaded(lab, lab.load_module(case.component, case.extra.get("name"), **known))


def _sentence(case: Case) -> str:
    """What the loader says to it."""
    try:
        loaded(case)
    except PluginError as error:
        return f"the loader's error: {error}"
    return "a plugin that loads all the same"


def _implementations(plugin: Any) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    """Attribute, hook, function and options of what is marked with @kl.hookimpl."""
    manager = pluggy.PluginManager(specs.PROJECT)
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is not None:
            hook = options.get("specname") or attribute
            yield attribute, hook, getattr(plugin, attribute), dict(options)


# --- loading --------------------------------------------------------------------------------------


@law(SLOT, "It can be imported.")
def runs(case: Case) -> None:
    error = case.extra.get("failed")
    if error is not None:
        raise Broken("its import", "a module", f"{type(error).__name__}: {error}")


@law(
    SLOT,
    "Its import takes at most a second beyond torch's: every user of the lab waits for it.",
    applies=lambda case: None if "seconds" in case.extra else "it was imported before",
)
def imports_quickly(case: Case) -> None:
    seconds = case.extra["seconds"]
    if seconds > SLOW_IMPORT:
        raise Broken("its import", f"at most {SLOW_IMPORT:g} s", f"{seconds:.1f} s")


@law(SLOT, "kfac_lab_api, where it says that, is the interface of this kfac_lab.")
def interface_fits(case: Case) -> None:
    api = getattr(case.component, "kfac_lab_api", specs.API_VERSION)
    if api != specs.API_VERSION or isinstance(api, bool):
        raise Broken("kfac_lab_api", f"{specs.API_VERSION}", f"{api!r}, and {_sentence(case)}")


@law(SLOT, "Every function named like a hook is marked with @kl.hookimpl.")
def hooks_marked(case: Case) -> None:
    marked = {attribute for attribute, *_ in _implementations(case.component)}
    for name in _HOOKS:
        function = getattr(case.component, name, None)
        if callable(function) and name not in marked and not hasattr(function, "kfac_lab_spec"):
            raise Broken(name, "@kl.hookimpl above it", _sentence(case))


@law(SLOT, "Every function that is marked is named like a hook.")
def hooks_known(case: Case) -> None:
    for attribute, hook, _, options in _implementations(case.component):
        if hook not in _HOOKS and not options.get("optionalhook"):
            raise Broken(attribute, "the name of a hook", _sentence(case))


@law(SLOT, "Hooks are plain functions: no wrappers, generators or coroutines.")
def hooks_plain(case: Case) -> None:
    for attribute, _, function, options in _implementations(case.component):
        wraps = options.get("wrapper") or options.get("hookwrapper")
        odd = inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function)
        if wraps or odd:
            raise Broken(attribute, "a plain function", _sentence(case))


@law(
    SLOT,
    "A hook takes those of the hook's arguments that it names, without defaults.",
    needs=("runs", "hooks_known", "hooks_plain"),
)
def hook_arguments(case: Case) -> None:
    for attribute, hook, function, _ in _implementations(case.component):
        for one in inspect.signature(function).parameters.values():
            fine = one.kind is one.POSITIONAL_OR_KEYWORD and one.default is one.empty
            if not fine or one.name not in _HOOKS.get(hook, (one.name,)):
                told = f"arguments out of ({', '.join(_HOOKS[hook])}), without defaults"
                raise Broken(f"{attribute}, {one}", told, _sentence(case))


@law(
    SLOT,
    "It loads, in a lab with the built-ins alone: all that it registers is taken.",
    needs=(
        "runs",
        "interface_fits",
        "hooks_marked",
        "hooks_known",
        "hooks_plain",
        "hook_arguments",
    ),
)
def loads(case: Case) -> None:
    try:
        loaded(case)
    except PluginError as error:
        raise Broken("its loading", "a plugin that loads", str(error)) from None


@law(SLOT, "It registers something or implements a claim or an event.", needs=("loads",))
def brings_something(case: Case) -> None:
    plugin = loaded(case).plugin
    if not plugin.slots and not plugin.hooks:
        raise Broken("its hooks", "one at least", "a plugin without any")


@law(SLOT, "None of its names is a built-in's: a bare name means one component.", needs=("loads",))
def names_of_its_own(case: Case) -> None:
    plugin = loaded(case).plugin
    if plugin.collisions:
        raise Broken("its names", "names that nobody has", plugin.collisions[0])


# --- claims ---------------------------------------------------------------------------------------


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
