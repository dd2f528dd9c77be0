"""The laws of a ``layer`` about whose rows are whose: spellings of one function, one curvature.

* ``folded_rows``: called once with ``[N·T, ...]``, cases and positions in one dimension.
* ``swapped_rows``: called once with ``[T, N, ...]``, the cases second.
* ``shared_rows``: called once with ``[1, ...]`` for all cases; its block has the Fisher's trace.
* ``routed_rows``: called with some cases only, as a mixture of experts does.
* ``empty_rows``: called with no case at all.

The moments that the engine keeps are compared with those of the plain spelling: T calls, each with
``[N, ...]``, whose rows are a case's own. These are made here from the layer's rows and autograd
alone. A, G and, where cases are known, those of KFAC-reduce: A and G do not depend on the order of
the rows, the reduced ones see whose they are. Routed rows have no cases, and are taken one by one.

A layer is exempt where its module itself cannot be called so, or is another function then: a
convolution takes no dimension more, batch norm sees its batch.
"""

# ruff: noqa: D103 - a law says itself what it demands
from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core import moments
from kfac_lab.core.layers import Recorded, dense, plain_call
from kfac_lab.core.problem import Problem
from kfac_lab.core.traits import LayerTraits, traits
from kfac_lab.engine import Engine
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.common import CHEAP, engine_for, hidden, near
from kfac_lab.testing.laws.layer import PACKS, SLOT, claiming, matched, subjects
from kfac_lab.testing.subjects import moments_of, normal

CASES, POSITIONS, OUTPUTS = 6, 2, 4
AWAY = 1  # the case that is routed elsewhere

Call = Callable[[nn.Module, Tensor, Tensor], Tensor]


# --- one function, spelled in several ways --------------------------------------------------------


def _plain(module: nn.Module, x: Tensor, where: Tensor) -> Tensor:
    return torch.stack([module(x[:, t]) for t in range(x.shape[1])], 1)


def _folded(module: nn.Module, x: Tensor, where: Tensor) -> Tensor:
    out: Tensor = module(x.flatten(0, 1))
    return out.unflatten(0, x.shape[:2])


def _swapped(module: nn.Module, x: Tensor, where: Tensor) -> Tensor:
    out: Tensor = module(x.transpose(0, 1))
    return out.transpose(0, 1)


def _routed(module: nn.Module, x: Tensor, where: Tensor) -> Tensor:
    rows = (where != AWAY).nonzero()[:, 0]
    out: Tensor = module(x[rows, 0])
    return out.new_zeros(len(x), *out.shape[1:]).index_add(0, rows, out)[:, None]


def _shared(module: nn.Module, x: Tensor, where: Tensor) -> Tensor:
    out: Tensor = module(x[0, :1])
    return out.expand(len(x), *out.shape[1:])[:, None]


class _Network(nn.Module):
    """Case n of the given inputs through the module, then what mixes its outputs.

    Its own input are numbers of cases. ``apart``: each output of the module is one of the network,
    times a factor of the case, so that every row's g has the same second moment.
    """

    def __init__(self, module: nn.Module, given: Tensor, call: Call, apart: bool = False) -> None:
        super().__init__()
        self.tried, self._call, self._apart = module, call, apart
        self.register_buffer("given", given)
        with torch.no_grad():
            width = call(module, given, torch.arange(CASES))[0].numel()
        mix = normal(width, OUTPUTS, seed=131) / width**0.5
        self.register_buffer("mix", mix)
        self.given: Tensor
        self.mix: Tensor

    def forward(self, where: Tensor) -> Tensor:
        return self.behind(self._call(self.tried, self.given[where], where), where)

    def behind(self, out: Tensor, where: Tensor) -> Tensor:
        """The network's outputs from the module's."""
        flat = out.flatten(1) * _factors(where, out)
        return flat if self._apart else torch.tanh(flat) @ self.mix[: flat.shape[1]]


def _factors(where: Tensor, like: Tensor) -> Tensor:
    """One for each case, ``[N, 1]``."""
    return 0.5 + where.to(like.dtype)[:, None] / CASES


def _given(case: Case) -> tuple[Any, Tensor]:
    """A copy of the layer in float64, and inputs ``[N, T, ...]`` made of those that were given."""
    subject = subjects(case)[0]
    x, count = subject["inputs"], CASES * POSITIONS
    rows = x[torch.arange(count) % len(x)]
    if rows.is_floating_point():  # no two alike
        rows = rows + normal(*rows.shape, seed=132).to(rows) / 4
    return matched(case.component, subject), rows.unflatten(0, (CASES, POSITIONS))


# --- the plain spelling's moments, from the layer's rows and autograd -----------------------------


def _recorded(layer: Any, x: Tensor) -> Recorded:
    record = traits(layer, LayerTraits).record or plain_call
    found: Recorded = record(layer.module, (x,), {}, layer.module(x))
    return found


def _plain_rows(layer: Any, x: Tensor, apart: bool = False) -> tuple[Tensor, Tensor]:
    """ā ``[N, S, d_in]`` and g ``[C, N, S, d_out]`` of one call for each position of x."""
    network = _Network(layer.module, x, _plain, apart)
    calls = [_recorded(layer, x[:, t].contiguous()) for t in range(x.shape[1])]
    out = torch.stack([call.output for call in calls], 1)
    z = network.behind(out, torch.arange(CASES))
    watched = [call.watched for call in calls if call.watched is not None]
    columns = []
    for own in torch.eye(z.shape[1], dtype=z.dtype):
        g = torch.autograd.grad(z, watched, own.expand_as(z), retain_graph=True)
        columns.append(torch.cat([layer.rows_out(part) for part in g], 1))
    rows = torch.cat([dense(layer.rows_in(call.inputs.detach())) for call in calls], 1)
    return rows, torch.stack(columns)


def _wanted(layer: Any, x: Tensor, apart: bool = False) -> dict[str, Tensor]:
    """A, G and the reduced ones; those keep a position for each group of the layer."""
    rows, g = _plain_rows(layer, x, apart)
    if traits(layer, LayerTraits).summed:
        rows, g = rows[:, :1], g.sum(2, keepdim=True)
    found = moments_of(rows, g)
    groups = int(traits(layer, LayerTraits).groups)
    summed = rows.unflatten(1, (-1, groups)).sum(1)
    reduced = moments_of(summed, g.unflatten(2, (-1, groups)).mean(2))
    wanted = {"A": found["A"], "G": found["G"]}
    return wanted | {"A.reduced": reduced["A"], "G.reduced": reduced["G"]}


def _plainly(case: Case) -> dict[str, Tensor]:
    """The plain spelling's moments of all that is given: made once for the laws of a report."""
    if "plainly" not in case.memo:
        case.memo["plainly"] = _wanted(*_given(case))
    found: dict[str, Tensor] = case.memo["plainly"]
    return found


# --- the engine's ---------------------------------------------------------------------------------


class _Kept:
    """What an engine keeps of the layer, batch after batch, in a network of one spelling."""

    def __init__(
        self, case: Case, layer: Any, x: Tensor, call: Call, names: Sequence[str], apart: bool
    ) -> None:
        own = copy.deepcopy(layer)
        network = _Network(own.module, x, call, apart)
        where = torch.arange(CASES)
        with torch.no_grad():
            targets = torch.zeros_like(network(where))
        problem = Problem(model=network, likelihood="gaussian", inputs=where, targets=targets)
        lab = claiming(case, own)
        parts = {"estimator": "exact(fraction=1.0)", "fallback": "diagonal"}
        self._engine: Engine = engine_for(case, problem, own, parts, lab=lab)
        uses = self._engine.network.uses
        self._at = next((i for i, use in enumerate(uses) if use.layer.module is own.module), None)
        if self._at is None or not uses[self._at].modules:
            raise Broken("its network", "its rows to make up the gradient", "the fallback's rows")
        wants = [tuple(names) if i == self._at else () for i in range(len(uses))]
        like, layers = targets.new_zeros(()), self._engine.network.layers
        self._store = moments.MomentLayout(layers, wants, (), like).opened()
        self._targets, self._epsilon = targets, 0.0

    def after(self, where: Tensor) -> dict[str, Tensor]:
        """The moments after a batch of these cases: the first counts whole, others half."""
        new = self._store.accumulate(self._epsilon, CASES)
        engine, quiet = self._engine, [False] * len(self._engine.network.uses)
        given = CASES, engine.parts["estimator"], new
        engine.passes.observe(where, self._targets, None, 1, given, quiet)
        new.finish()
        self._store, self._epsilon = self._store.exchanged(), 0.5
        return {name: value.clone() for (name, _, _), value in self._store.current.items()}


def _kept(
    case: Case, layer: Any, x: Tensor, call: Call, names: Sequence[str], apart: bool = False
) -> dict[str, Tensor]:
    with hidden(f"{CASES} cases of {tuple(x.shape[1:])}"):
        return _Kept(case, layer, x, call, names, apart).after(torch.arange(CASES))


def _compare(where: str, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for name, value in found.items():
        near(where, f"{name} of the plain spelling", wanted[name], value)


# --- whether the module can be called so ----------------------------------------------------------


def _same(spelling: Callable[[nn.Module, Tensor], Tensor | None], how: str) -> Any:
    """``applies``: exempt where the module itself is another function, or fails, on such rows."""

    def applies(case: Case) -> str | None:
        layer, x = _given(case)
        why = f"its module does not take {how}"
        try:
            with torch.no_grad():
                wanted = _plain(copy.deepcopy(layer.module), x, torch.arange(CASES))
                found = spelling(copy.deepcopy(layer.module), x)
        except Exception:  # modules refuse a shape in their own ways
            return why
        if found is None:
            return None
        wanted = wanted[:, : found.shape[1]]
        same = found.shape == wanted.shape and torch.allclose(found, wanted, 1e-9, 1e-10)
        return None if same else f"{why}: they are another function's"

    return applies


def _as_routed(module: nn.Module, x: Tensor) -> Tensor:
    """All cases' outputs, the routed ones from their own call."""
    out = _plain(module, x[:, :1], torch.arange(CASES))
    routed = _routed(module, x, torch.arange(CASES))
    routed[AWAY] = out[AWAY]
    return routed


def _as_shared(module: nn.Module, x: Tensor) -> Tensor:
    """As if the first case's had been all cases', compared where they are equal."""
    out = _plain(module, x[:, :1], torch.arange(CASES)).clone()
    out[:1] = _shared(module, x, torch.arange(CASES))[:1]
    return out


def _as_empty(module: nn.Module, x: Tensor) -> None:
    out: Tensor = module(x[:0, 0])
    if len(out):
        raise ValueError("something of nothing")


NEEDS = (
    *CHEAP,
    *PACKS,
    "dtype_follows",
    "row_shapes",
    "gradient_from_rows",
    "cases_apart",
    "trains",
)
EVERYTHING = ("A", "G", "A.reduced", "G.reduced")


@law(
    SLOT,
    "Called with cases and positions folded, [N·T, ...], it keeps the moments of the plain call.",
    needs=NEEDS,
    applies=_same(lambda m, x: _folded(m, x, x), "folded rows [N·T, ...]"),
)
def folded_rows(case: Case) -> None:
    layer, x = _given(case)
    _compare("folded rows", _plainly(case), _kept(case, layer, x, _folded, EVERYTHING))


@law(
    SLOT,
    "Called with the cases second, [T, N, ...], it keeps the moments of the plain call.",
    needs=NEEDS,
    applies=_same(lambda m, x: _swapped(m, x, x), "the cases second, [T, N, ...]"),
)
def swapped_rows(case: Case) -> None:
    layer, x = _given(case)
    _compare("swapped rows", _plainly(case), _kept(case, layer, x, _swapped, EVERYTHING))


@law(
    SLOT,
    "Called once for all cases, [1, ...], it keeps the moments of a call with a copy for each, and "
    "tr A · tr G is the trace of the Fisher.",
    needs=NEEDS,
    applies=_same(_as_shared, "one row for all cases, [1, ...]"),
)
def shared_rows(case: Case) -> None:
    layer, x = _given(case)
    copies = x[:1, :1].expand(CASES, 1, *x.shape[2:]).contiguous()
    found = _kept(case, layer, x, _shared, ("A", "G"), apart=True)
    _compare("shared rows", _wanted(layer, copies, apart=True), found)
    got = found["A"].trace() * found["G"].trace()
    near("shared rows", "the trace of the Fisher", _fisher_trace(layer, x), got)
    found = _kept(case, layer, x, _shared, EVERYTHING)
    _compare("shared rows", _wanted(layer, copies), found)


def _fisher_trace(layer: Any, x: Tensor) -> Tensor:
    """Σ over cases and outputs of the squared length of the parameters' gradient, over N."""
    where = torch.arange(CASES)
    z = _Network(layer.module, x, _shared, apart=True)(where)
    named = dict(layer.module.named_parameters())
    tensors = [named[name] for name in layer.names]
    total = z.new_zeros(())
    for one in z[0]:
        grads = torch.autograd.grad(one, tensors, retain_graph=True)
        total = total + sum(g.square().sum() for g in grads)
    factors = _factors(where, z)  # all cases' outputs are the first's but for these
    return total * factors.square().sum() / factors[0].square().sum() / CASES


@law(
    SLOT,
    "Called with some cases, A is the sum over the rows that came, over N, and G is their mean.",
    needs=NEEDS,
    applies=_same(_as_routed, "some of the cases"),
)
def routed_rows(case: Case) -> None:
    layer, x = _given(case)
    came = torch.arange(CASES) != AWAY
    rows, g = _plain_rows(layer, x[:, :1])
    wanted = moments_of(rows[came], g[:, came])
    share = int(came.sum()) / CASES
    found = _kept(case, layer, x, _routed, ("A", "G"))
    _compare("routed rows", {"A": wanted["A"] * share, "G": wanted["G"]}, found)


@law(
    SLOT,
    "Called with no case at all, it keeps the moments that there are.",
    needs=(*NEEDS, "routed_rows"),
    applies=lambda case: (
        _same(_as_routed, "some of the cases")(case)
        or _same(_as_empty, "no case at all, [0, ...]")(case)
    ),
)
def empty_rows(case: Case) -> None:
    layer, x = _given(case)
    with hidden("a batch of which nothing came"):
        engine = _Kept(case, layer, x, _routed, ("A", "G"), apart=False)
        before = engine.after(torch.arange(CASES))
        after = engine.after(torch.full((CASES,), AWAY))
    for name, value in before.items():
        near("a batch of which nothing came", f"{name} as it was", value, after[name], 0.0)
