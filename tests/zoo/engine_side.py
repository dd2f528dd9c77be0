"""The engine's side of an exhibit: coverage, and each block's trace, from one full-batch step."""

import functools
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_map

import kfac_lab as kl
from kfac_lab.hooks.manager import Lab


@functools.cache
def laboratory():
    """A Lab with the installed plugins; the process's own has none under test."""
    patch = __import__("pytest").MonkeyPatch()
    with patch.context() as m:
        m.delenv("KFAC_LAB_PLUGINS", raising=False)
        lab = Lab()
        lab.load()
    return lab


def recipe(cases, estimator="exact(fraction=1.0)", **slots):
    """Full batches; nothing random but what the estimator draws."""
    return kl.Recipe.named("paper", lab=laboratory()).replace(
        estimator=estimator,
        quadratic_model="approximate_fisher",
        batch=f"constant(size={cases})",
        average="none",
        momentum="rescaled",
        **slots,
    )


def stepped(zoo, cases, steps=1, **slots):
    """The engine after ``steps`` steps on the first ``cases`` cases, statistics at ε = 1 − 1/k.

    Parameters do not move: the rate is 0.
    """
    from kfac_lab.engine import attach

    inputs, targets = zoo.inputs[:cases], tree_map(lambda t: t[:cases], zoo.targets)
    given = {"inputs": inputs, "targets": targets}
    if zoo.whole:  # the nodes of a graph stay in their order
        given = {"data": lambda step, size: (inputs, targets)}
    problem = kl.Problem(model=zoo.model, likelihood=zoo.likelihood, **given)
    before = [p.detach().clone() for p in zoo.model.parameters()]
    engine = attach(problem, recipe(cases, **slots), 0, lr=0.0)
    for _ in range(steps):
        engine.step()
    for p, old in zip(zoo.model.parameters(), before, strict=True):
        assert torch.equal(p, old)
    return engine


@dataclass
class Sides:
    """What the engine has for a layer: the traces of Ā and of G, and its parameters' names."""

    A: float
    G: float
    names: tuple[str, ...]

    @property
    def trace(self):
        return self.A * self.G


def averaged(zoo, cases, passes, estimator):
    """An engine, and a store whose moments are the mean over so many passes of its estimator."""
    engine = stepped(zoo, cases, 0, estimator=estimator, structure="block_diagonal")
    inputs, targets, _ = engine.problem.draw(1, cases, 0, zoo.whole)
    engine.bind(inputs, targets)
    store, none = engine.store, [False] * len(engine.blocks)
    for k in range(1, passes + 1):
        moments = store.accumulate(1 - 1 / k, cases)
        given = cases, engine.parts["estimator"], moments
        engine.passes.observe(inputs, targets, None, k, given, none)
        moments.finish()
        store = store.exchanged()
    return engine, store


def traces(engine, store=None):
    """Layer path → Sides, whichever way the factors are kept; what a fallback has is left out."""
    table, found = (store or engine.store).table(spare=False), {}
    for i, use in enumerate(engine.network.uses):
        if not use.modules:
            continue
        moments = table[i]
        sides = [
            moments[side].diagonal().sum() if side in moments else moments[f"{side}.diagonal"].sum()
            for side in "AG"
        ]
        key = use.layer.path
        while key in found:
            key += "'"
        found[key] = Sides(*map(float, sides), use.parameters)
    return found
