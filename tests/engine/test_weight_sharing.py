"""Layers that play several positions (Eschenhagen et al. 2023), against definitions."""

import functools

import pytest
import torch
from oracles import dense, sharing
from torch import nn

from engine.helpers import (
    GAUSSIAN,
    PLAIN,
    TEXT,
    Wrapped,
    close,
    draw,
    fisher_of,
    linear,
    statistics_of,
)
from kfac_lab import Problem, Recipe
from kfac_lab.core.layers import Linear
from kfac_lab.engine import Engine


class Reduced(nn.Module):
    """Positions summed (or averaged) to one, behind a given layer."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return x.sum(1, keepdim=True) if self.how == "sum" else x.mean(1, keepdim=True)


class Reduce(Linear):
    """The geometry of KFAC-reduce: inputs summed over positions, derivatives averaged."""

    def rows_in(self, inputs):
        return super().rows_in(inputs).sum(1, keepdim=True)

    def rows_out(self, gradients):
        return super().rows_out(gradients).mean(1, keepdim=True)


class Claiming:
    """A recipe whose layers are claimed with a given geometry."""

    def __init__(self, recipe, geometry):
        self._recipe, self._geometry = recipe, geometry

    def __getattr__(self, name):
        return getattr(self._recipe, name)

    def __getitem__(self, slot):
        return self._recipe[slot]

    def claim(self, module, path):
        return (self._geometry(module, path), "here") if type(module) is nn.Linear else None


@pytest.mark.parametrize("how", ["sum", "mean"])
@pytest.mark.parametrize("likelihood", GAUSSIAN)
def test_weight_sharing(likelihood, how, monkeypatch):
    """expand and reduce factors; exact where the theory says so.

    Independent positions: expand is exact. Reduced at the output: reduce is exact. Reduced in the
    middle: both are behind it, reduce alone is before it.
    """
    # Rows that are summed in the geometry itself do not make up the gradient, and it would say so.
    monkeypatch.setattr("kfac_lab.core.passes.probe.certify", lambda *given: None)
    net = dense.random_network((3, 4, 3, 2), "identity", seed=3)
    x = draw(5, 4, 3)

    @functools.cache
    def expected(after):
        return sharing.fisher(net, likelihood, x, after, how)

    @functools.cache
    def factors(approach, after):
        return sharing.factors(net, likelihood, x, approach, after, how)

    def blocks(geometry, after, path):
        modules = [linear(w, b) for w, b in zip(net.weights, net.bias, strict=True)]
        if after is not None:
            modules.insert(after + 1, Reduced(how))
        body = nn.Sequential(*modules)
        model = body if path == "explicit" else Wrapped(body)
        y = draw(5, 4 if after is None else 1, 2, seed=1)
        given = Problem(model=model, likelihood=TEXT[likelihood], inputs=x, targets=y)
        recipe = Recipe(**PLAIN, batch="constant(size=5)", structure="block_diagonal")
        engine = Engine(given, Claiming(recipe, geometry), 0)
        A, G = statistics_of(engine)
        F = expected(after)
        if geometry is Linear:  # of which F knows nothing
            close(fisher_of(engine), F)
        want = factors("reduce" if geometry is Reduce else "expand", after)
        for i in range(3):
            close(A[i][i], want[0][i])
            close(G[i][i], want[1][i])
        return [
            torch.allclose(torch.kron(A[i][i], G[i][i]), F[part, part], rtol=1e-10, atol=1e-10)
            for i, part in enumerate(dense.layer_slices(net.weights))
        ]

    for path in ("explicit", "generic"):
        assert blocks(Linear, None, path) == [True, True, True]
        assert blocks(Reduce, None, path) == [False, False, False]
        assert blocks(Reduce, 2, path) == [True, True, True]
        assert blocks(Linear, 2, path) == [False, False, False]
        assert blocks(Reduce, 1, path) == [True, True, True]
        assert blocks(Linear, 1, path) == [False, False, True]
