"""The laws of ``layer``: how a module's parameters and rows become matrices (section 2.1).

Besides the common ones:

* ``names_cover``: ``names`` are trained parameters of the module, each once, and none of its own
  is left out.
* ``row_shapes``: rows are ``[N, S, d_in]`` and ``[N, S, d_out]`` with the same N and S.
* ``pack_shape``, ``pack_linear``: pack makes a ``[d_out, d_in]`` matrix, linearly.
* ``unpack_undoes_pack``, ``pack_undoes_unpack``: the two are inverse to each other.
* ``gradient_from_rows``: Σ rows_outᵀ rows_in over cases and positions is the packed gradient.
* ``cases_apart``: a case's rows do not depend on the others of its batch.
* ``tangent_of_parameters``, ``tangent_of_inputs``: tangent is the module's forward derivative.
* ``pullback_to_inputs``: pullback is the module's backward derivative in its inputs.

Those about whose rows are whose are in ``rows.py``.

``check(layer, inputs=x)`` with a batch x of the module's inputs; a layer without tangent and
pullback is exempt from their laws.
"""

# ruff: noqa: D103 - a law says itself what it demands
from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.layers import dense
from kfac_lab.core.problem import Problem
from kfac_lab.core.traits import LayerTraits, traits
from kfac_lab.engine import Engine
from kfac_lab.hooks import Lab, hookimpl
from kfac_lab.testing.law import Broken, Case, law
from kfac_lab.testing.laws.common import (
    CHEAP,
    Trial,
    common_laws,
    engine_for,
    exempt_unless,
    near,
    own_lab,
)
from kfac_lab.testing.subjects import Subject, normal
from kfac_lab.testing.trees import InputWatch

SLOT = "layer"


def subjects(case: Case) -> Sequence[Subject]:
    """The given batch, and its first case alone; real inputs and the module in float64."""
    x = case.extra["inputs"].detach().clone()
    x = x.double() if x.is_floating_point() else x
    own = _tensors(case.component)
    base = {"parameters": [t.detach().double() for t in own]}
    return (
        Subject(f"the {len(x)} given inputs", {"inputs": x, **base}),
        Subject("the first given input", {"inputs": x[:1], **base}),
    )


def matched(layer: Any, subject: Subject) -> Any:
    """A copy of the layer, its module's tensors of the subject's dtype and on its device."""
    like = subject["parameters"][0]
    found = copy.deepcopy(layer)
    found.module.to(device=like.device, dtype=like.dtype)
    return found


def _tensors(layer: Any) -> list[nn.Parameter]:
    """The module's parameters by ``names``."""
    by_name = dict(layer.module.named_parameters())
    return [by_name[name] for name in layer.names]


def _called(layer: Any, tensors: Sequence[Tensor], inputs: Tensor) -> Tensor:
    given = dict(zip(layer.names, tensors, strict=True))
    out: Tensor = torch.func.functional_call(layer.module, given, (inputs,))
    return out


def _outputs(layer: Any, subject: Subject) -> Tensor:
    with torch.no_grad():
        out: Tensor = layer.module(subject["inputs"])
    return out


def _like(tensor: Tensor, seed: int, *first: int) -> Tensor:
    if tensor.is_meta:
        return tensor.new_empty((*first, *tensor.shape))
    return normal(*first, *tensor.shape, seed=seed).to(tensor.dtype)


def run(component: Any, subject: Subject, watch: InputWatch) -> Mapping[str, Any]:
    """Rows, matrices, and tangent and pullback where they are there."""
    layer = matched(component, subject)
    x = watch(subject["inputs"], "the inputs")
    watch(list(layer.module.parameters()), "the module's parameters")
    with torch.no_grad():
        out = layer.module(x)
        g = watch(_like(out, 80), "the gradients")
        matrix = layer.pack(subject["parameters"])
        found = {
            "rows_in": dense(layer.rows_in(x)),
            "rows_out": dense(layer.rows_out(g)),
            "pack": matrix,
            "unpack": layer.unpack(_like(matrix, 81)),
        }
        if _has(layer, "tangent"):
            matrices = watch([_like(matrix, 82), _like(matrix, 83)], "the matrices")
            moving = _like(x, 84, 2) if x.is_floating_point() else None
            found["tangent"] = layer.tangent(matrices, x, moving)
        if _has(layer, "pullback") and x.is_floating_point():
            found["pullback"] = layer.pullback(g, x)
    return found


def _has(layer: Any, name: str) -> bool:
    found = traits(layer, LayerTraits)
    return {"tangent": found.tangent, "pullback": found.pullback}[name] is not None


class Claims:
    """A plugin that claims the modules of some layers."""

    def __init__(self) -> None:
        self.layers: list[Any] = []

    @hookimpl
    def kfac_claim_layer(self, module: Any, path: str) -> Any:
        """The layer, for its own module."""
        return next((layer for layer in self.layers if layer.module is module), None)


def claiming(case: Case, layer: Any) -> Lab:
    """A Lab in which the layer is claimed: one for all the networks of a report."""
    if "claims" not in case.memo:
        lab, claims = own_lab(), Claims()
        lab.load_module(claims, "tried")
        case.memo["claims"] = lab, claims
    lab, claims = case.memo["claims"]
    claims.layers.append(layer)
    return lab


def attached(case: Case, component: Any, **parts: Any) -> Engine:
    """A network of a copy of the module and a linear layer behind it, on the given inputs."""
    layer = copy.deepcopy(component)
    x = case.extra["inputs"].detach().clone()
    with torch.no_grad():
        out = layer.module(x)
    head = nn.Linear(out[0].numel(), 2).to(out.dtype)
    with torch.no_grad():
        head.weight.copy_(normal(*head.weight.shape, seed=85) / head.weight.shape[1] ** 0.5)
        head.bias.zero_()
    problem = Problem(
        model=nn.Sequential(layer.module, nn.Flatten(), nn.Tanh(), head),
        likelihood="gaussian",
        inputs=x,
        targets=normal(len(x), 2, seed=86).to(out.dtype),
        l2=1e-3,
    )
    lab = claiming(case, layer)
    # What the layer leaves out is the matter of ``names_cover``.
    return engine_for(case, problem, layer, {"fallback": "diagonal", **parts}, lab=lab)


common_laws(Trial(SLOT, subjects, run, recipe=False, engine=attached))

_tangent = exempt_unless(lambda layer: _has(layer, "tangent"), "it has no tangent")
_pullback = exempt_unless(lambda layer: _has(layer, "pullback"), "it has no pullback")


def _real_inputs(case: Case) -> str | None:
    real = case.extra["inputs"].is_floating_point()
    return None if real else "its inputs are whole numbers"


@law(SLOT, "names are trained parameters, each once, and none of the module's own is left out.")
def names_cover(case: Case) -> None:
    layer = case.component
    names, where = list(layer.names), f"{type(layer.module).__name__}"
    if len(set(names)) != len(names):
        raise Broken(where, "every name once", ", ".join(names))
    everything = dict(layer.module.named_parameters())
    strange = [name for name in names if name not in everything]
    if strange:
        raise Broken(where, "names of its parameters", ", ".join(strange))
    own = dict(layer.module.named_parameters(recurse=False))
    left = [name for name, p in own.items() if p.requires_grad and name not in names]
    if left:
        raise Broken(where, f"{', '.join(left)} among names", ", ".join(names))


@law(SLOT, "Rows are [N, S, d_in] and [N, S, d_out], N and S the same.")
def row_shapes(case: Case) -> None:
    for subject in subjects(case):
        layer = matched(case.component, subject)
        cases = len(subject["inputs"])
        rows_in = layer.rows_in(subject["inputs"])
        rows_out = layer.rows_out(_outputs(layer, subject))
        for name, rows, side in (("in", rows_in, layer.d_in), ("out", rows_out, layer.d_out)):
            if rows.dim() != 3 or (rows.shape[0], rows.shape[2]) != (cases, side):
                told = f"rows_{name} [{cases}, S, {side}]"
                raise Broken(subject.where, told, f"{list(rows.shape)}")
        if rows_in.shape[1] != rows_out.shape[1]:
            told = f"S={rows_in.shape[1]} in rows_out as in rows_in"
            raise Broken(subject.where, told, f"{rows_out.shape[1]}")


@law(SLOT, "pack makes a matrix [d_out, d_in].")
def pack_shape(case: Case) -> None:
    layer = case.component
    matrix = layer.pack([t.detach().double() for t in _tensors(layer)])
    wanted = (layer.d_out, layer.d_in)
    if tuple(matrix.shape) != wanted:
        raise Broken("its parameters", f"a matrix {wanted}", f"{tuple(matrix.shape)}")


PACKS = ("runs", "finite", "pack_shape", "names_cover")


@law(SLOT, "pack is linear.", needs=PACKS)
def pack_linear(case: Case) -> None:
    layer = case.component
    own = _tensors(layer)
    u = [_like(t.double(), 87 + n) for n, t in enumerate(own)]
    v = [_like(t.double(), 97 + n) for n, t in enumerate(own)]
    both = layer.pack([2 * a - 3 * b for a, b in zip(u, v, strict=True)])
    near("two random vectors", "pack(2u − 3v)", 2 * layer.pack(u) - 3 * layer.pack(v), both)


@law(SLOT, "unpack gives back what pack was given.", needs=PACKS)
def unpack_undoes_pack(case: Case) -> None:
    layer = case.component
    given = [_like(t.double(), 107 + n) for n, t in enumerate(_tensors(layer))]
    found = layer.unpack(layer.pack(given))
    if len(found) != len(given):
        raise Broken("random tensors", f"{len(given)} tensors", f"{len(found)}")
    for name, wanted, got in zip(layer.names, given, found, strict=True):
        near(f"random tensors, {name}", "what was packed", wanted, got)


@law(SLOT, "pack gives back what unpack was given.", needs=(*PACKS, "unpack_undoes_pack"))
def pack_undoes_unpack(case: Case) -> None:
    layer = case.component
    matrix = normal(layer.d_out, layer.d_in, seed=117)
    near("a random matrix", "what was unpacked", matrix, layer.pack(layer.unpack(matrix)))


@law(
    SLOT,
    "Σ rows_outᵀ rows_in over cases and positions is the gradient that autograd gives, packed.",
    needs=(*CHEAP, *PACKS, "dtype_follows", "row_shapes", "pack_linear"),
)
def gradient_from_rows(case: Case) -> None:
    for subject in subjects(case):
        layer = matched(case.component, subject)
        own = _tensors(layer)
        out = layer.module(subject["inputs"])
        g = _like(out.detach(), 118)
        wanted = layer.pack([t.detach() for t in torch.autograd.grad((g * out).sum(), own)])
        a, b = dense(layer.rows_in(subject["inputs"])), dense(layer.rows_out(g))
        got = torch.einsum("nso,nsi->oi", b, a.to(b.dtype))
        near(subject.where, "the packed gradient", wanted, got)


@law(SLOT, "A case's rows do not depend on the others.", needs=(*CHEAP, "row_shapes"))
def cases_apart(case: Case) -> None:
    subject = subjects(case)[0]
    layer = matched(case.component, subject)
    x = subject["inputs"]
    g = _like(_outputs(layer, subject), 119)
    for name, rows, given in (("rows_in", layer.rows_in, x), ("rows_out", layer.rows_out, g)):
        whole = dense(rows(given))
        for n in range(len(x)):
            alone = dense(rows(given[n : n + 1]))
            near(f"case {n}", f"{name} as for the case alone", alone[0], whole[n], 1e-12)


def _check_tangent(case: Case, moves: bool) -> None:
    for subject in subjects(case):
        layer = matched(case.component, subject)
        x, own = subject["inputs"], [t.detach() for t in _tensors(layer)]
        matrices = [normal(layer.d_out, layer.d_in, seed=120 + j) for j in range(2)]
        moving = _like(x, 122, 2) if moves else None
        got = layer.tangent(matrices, x, moving)
        for j, matrix in enumerate(matrices):
            along = tuple(t.contiguous() for t in layer.unpack(matrix))
            at: tuple[Tensor, ...] = tuple(own)
            if moving is not None:
                at, along = (*at, x), (*along, moving[j])

            def outputs(*given: Tensor, layer: Any = layer, x: Tensor = x) -> Tensor:
                inputs = given[-1] if moves else x
                return _called(layer, given[: len(layer.names)], inputs)

            found: Any = torch.func.jvp(outputs, at, along)
            near(f"{subject.where}, direction {j}", "the derivative", found[1], got[j])


TANGENT = (*CHEAP, *PACKS, "unpack_undoes_pack")


@law(
    SLOT,
    "tangent is the derivative of the outputs along parameters.",
    needs=TANGENT,
    applies=_tangent,
)
def tangent_of_parameters(case: Case) -> None:
    _check_tangent(case, moves=False)


@law(
    SLOT,
    "tangent adds the derivative along the inputs' own tangents.",
    needs=(*TANGENT, "tangent_of_parameters"),
    applies=lambda case: _tangent(case) or _real_inputs(case),
)
def tangent_of_inputs(case: Case) -> None:
    _check_tangent(case, moves=True)


@law(
    SLOT,
    "pullback(gradients, inputs) is the gradient at the inputs.",
    needs=CHEAP,
    applies=lambda case: _pullback(case) or _real_inputs(case),
)
def pullback_to_inputs(case: Case) -> None:
    for subject in subjects(case):
        layer = matched(case.component, subject)
        x = subject["inputs"].clone().requires_grad_()
        out = layer.module(x)
        g = _like(out.detach(), 123)
        (wanted,) = torch.autograd.grad((g * out).sum(), x)
        got = layer.pullback(g, x.detach())
        near(subject.where, "the gradient at the inputs", wanted, got)
