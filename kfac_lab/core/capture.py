"""Which layer holds which parameter: a module as a list of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.cases import call_arguments
from kfac_lab.core.claims import snippet
from kfac_lab.core.layers import Declined, Tensors
from kfac_lab.core.protocols import Layer
from kfac_lab.core.record import Recorder, chains_of
from kfac_lab.core.vector import Vec
from kfac_lab.core.whole import tied
from kfac_lab.errors import CoverageError, RecipeError

__all__ = [
    "Claim",
    "CoverageRow",
    "Network",
    "Recorder",
    "Use",
    "buffered",
    "called",
    "chains_of",
    "left_out",
    "standing",
    "without",
]

Claim = Callable[[nn.Module, str], "tuple[Layer | tuple[Layer, ...] | Declined, str] | None"]


@dataclass(frozen=True)
class CoverageRow:
    """One line of the coverage table: a parameter and what becomes of it."""

    parameter: str
    layer: str
    kind: str
    block: str
    claimed_by: str
    chain: str = ""
    tangents: str = ""
    rows: str = ""  # of one case, or how else they come


@dataclass(frozen=True, eq=False)
class Use:
    """One layer of the network: its geometry, the modules that share it, its parameters."""

    layer: Layer
    modules: tuple[nn.Module, ...]
    parameters: tuple[str, ...]  # canonical qualified names, in the order of layer.names
    claimed_by: str


@dataclass(frozen=True, eq=False)
class Network:
    """A module as a list of layers: between its named tensors and one Vec.

    Raises:
        CoverageError: parameters that no layer claims, where no fallback is named; all of them
            are listed.
    """

    model: nn.Module
    uses: tuple[Use, ...]
    frozen: tuple[str, ...]
    left: tuple[str, ...] = ()  # trained by somebody else
    names: tuple[str, ...] = field(init=False)
    _places: tuple[tuple[dict[str, Any], str], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(n for use in self.uses for n in use.parameters))
        # The dict of its module that holds each parameter: asked anew at every access, since a
        # parameter may be replaced, but without a walk over the whole model.
        places = [
            (self.model.get_submodule(path)._parameters, own)
            for path, _, own in (name.rpartition(".") for name in self.names)
        ]
        object.__setattr__(self, "_places", tuple(places))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The geometry of each layer, in the order of the Vec."""
        return tuple(use.layer for use in self.uses)

    @property
    def tensors(self) -> list[Tensor]:
        """The trained parameters, in the order of ``names``; always the module's own."""
        return [held[own] for held, own in self._places]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of moments, factors and vectors: the parameters', float32 at the least."""
        own = self.tensors[0].dtype
        return own if own in (torch.float32, torch.float64) else torch.float32

    def pack(self, tensors: Sequence[Tensor]) -> Vec:
        """Tensors in the order of ``names`` as a Vec, in the precision ``dtype``."""
        if tensors[0].dtype != self.dtype:
            tensors = [t.to(self.dtype) for t in tensors]
        matrices, at = [], 0
        for use in self.uses:
            count = len(use.parameters)
            matrices.append(use.layer.pack(tensors[at : at + count]))
            at += count
        return Vec(matrices)

    def unpack(self, vector: Vec) -> list[Tensor]:
        """The inverse of ``pack``, in the parameters' own precision."""
        found = [t for use, m in zip(self.uses, vector, strict=True) for t in use.layer.unpack(m)]
        own = self.tensors[0].dtype
        return found if found[0].dtype == own or own == self.dtype else [t.to(own) for t in found]

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Canonical names to tensors, as :func:`called` takes them."""
        return dict(zip(self.names, tensors, strict=True))

    @classmethod
    def of(
        cls,
        model: nn.Module,
        claim: Claim,
        fallback: bool,
        leave: Sequence[str] = (),
        unseen: Sequence[str] = (),
    ) -> Network:
        """Asks ``claim`` for every module; tied parameters have one entry.

        ``leave`` are patterns of what somebody else trains: see :func:`left_out`. A module of which
        only some parameters are left is claimed whole. ``unseen`` are paths of layers whose rows do
        not see every use of them, which go to the fallback.
        """
        claim = without(claim, unseen)
        _check_tensors(model)
        left_alone = _whole_modules(model, left_out(model, leave))
        trained = {
            n: p for n, p in model.named_parameters() if p.requires_grad and n not in left_alone
        }
        frozen = tuple(n for n, p in model.named_parameters() if not p.requires_grad)
        asked = _Asked.of(model, claim, trained)
        uses = asked.uses(unseen)
        covered = {name for use in uses for name in use.parameters}
        left = [name for name in trained if name not in covered]
        asked.check(left, fallback)
        for name in left:
            path, _, own_name = name.rpartition(".")
            module = model.get_submodule(path)
            shape = trained[name].shape
            tensors = Tensors(module, path, own_name, trained[name].numel(), shape)
            uses.append(Use(tensors, (), (name,), "fallback"))
        if not uses:
            raise CoverageError(
                "the model has no trained parameters: every parameter has requires_grad=False, "
                "or there are none"
            )
        return cls(model, tuple(uses), frozen, tuple(sorted(left_alone)))


def _whole_modules(model: nn.Module, names: set[str]) -> set[str]:
    """The names without those of modules of which only some trained parameters are among them."""
    canonical = {id(p): name for name, p in model.named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for module in model.modules():
        own = {canonical[id(p)] for p in module.parameters(recurse=False)}
        if not own & trained <= names:
            names = names - own
    return names


@dataclass(frozen=True, eq=False)
class _Asked:
    """What was claimed of a model's trained parameters, and what was declined."""

    model: nn.Module
    trained: Mapping[str, nn.Parameter]
    groups: Mapping[tuple[str, ...], list[tuple[Layer, str]]]  # parameters → their layers, by whom
    declined: Mapping[str, Declined]  # by the name of each parameter

    @classmethod
    def of(cls, model: nn.Module, claim: Claim, trained: Mapping[str, nn.Parameter]) -> _Asked:
        """Asks ``claim`` for every module with trained parameters."""
        canonical = {id(p): name for name, p in model.named_parameters()}
        groups: dict[tuple[str, ...], list[tuple[Layer, str]]] = {}
        declined: dict[str, Declined] = {}
        for path, module in model.named_modules():
            own = dict(module.named_parameters(recurse=False))
            if not any(p.requires_grad for p in own.values()):
                continue
            claimed = claim(module, path)
            if claimed is None:
                continue
            answer, by = claimed
            if isinstance(answer, Declined):
                declined |= {canonical[id(p)]: answer for p in own.values() if id(p) in canonical}
                continue
            for layer in answer if isinstance(answer, tuple) else (answer,):
                held = [_reach(layer.module, n) for n in layer.names]
                if any(id(t) not in canonical for t in held):
                    continue  # made anew at every call, as by weight_norm: not the model's
                if any(canonical[id(t)] not in trained for t in held):
                    continue  # a partly frozen module goes to the fallback
                names = tuple(canonical[id(t)] for t in held)
                groups.setdefault(names, []).append((layer, by))
        return cls(model, trained, groups, declined)

    @property
    def torn(self) -> set[str]:
        """Parameters that layers of unequal geometry share: they belong to none of them."""
        owners: dict[str, set[tuple[str, ...]]] = {}
        for names in self.groups:
            for name in names:
                owners.setdefault(name, set()).add(names)
        torn = {n for n, which in owners.items() if len(which) > 1 or n in self.declined}
        for names, members in self.groups.items():
            if len({(layer.d_out, layer.d_in, type(layer)) for layer, _ in members}) > 1:
                torn |= set(names)
        return torn

    def uses(self, unseen: Sequence[str]) -> list[Use]:
        """The layers, each once; a table that is tied across geometries is a layer of its own."""
        torn, uses = self.torn, []
        for names, members in self.groups.items():
            if not torn & set(names):
                layer, by = members[0]
                modules = tuple(dict.fromkeys(m.module for m, _ in members))
                uses.append(Use(layer, modules, names, by))
        apart = {n for names in self.groups if torn & set(names) for n in names}
        apart -= set(self.declined) | set(unseen)
        for name, layer, modules in tied(sorted(apart), self.groups):
            uses.append(Use(layer, modules, (name,), "kfac-lab/core"))
        return uses

    def check(self, left: Sequence[str], fallback: bool) -> None:
        """That what nobody claims may go to the fallback.

        Raises:
            CoverageError: it may not, or there is none; all of it is listed.
        """
        model, trained, declined = self.model, self.trained, self.declined
        refused = [n for n in trained if n in declined and not declined[n].fallback]
        if refused:
            raise CoverageError("; ".join(f"{n}: {declined[n].reason}" for n in refused))
        if not left or fallback:
            return
        torn = self.torn
        listed = ", ".join(
            f"{name} {tuple(trained[name].shape)} of {_owner_type(model, name)}"
            + (" (tied to a layer of other geometry)" if name in torn else "")
            + (f" ({declined[name].reason})" if name in declined else "")
            for name in left
        )
        raise CoverageError(
            f"no layer claims {len(left)} parameter{'s' * (len(left) > 1)}: {listed}. Install "
            "a plugin that claims these modules, freeze them with requires_grad_(False), or "
            "name a fallback in the recipe: fallback='diagonal' or fallback='identity'. Or "
            "claim them yourself:\n"
            + snippet(type(model.get_submodule(n.rpartition(".")[0])) for n in left)
        )


def left_out(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """The trained parameters that ``patterns`` name: a type of module (``"Embedding"``), a path, or
    a parameter (``"*.bias"``); as ``fnmatch`` has them.

    Raises:
        RecipeError: a pattern that names nothing.
    """
    canonical = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    found: set[str] = set()
    for pattern in patterns:
        named = {
            canonical[id(p)]
            for path, module in model.named_modules()
            for own, p in module.named_parameters(recurse=False)
            if id(p) in canonical
            and any(
                fnmatchcase(name, pattern)
                for name in (type(module).__name__, path, f"{path}.{own}" if path else own)
            )
        }
        if not named:
            raise RecipeError(
                f"leave={pattern!r} names no trained parameter: give a type of module, a path or "
                "a parameter, such as 'Embedding', 'head' or '*.bias'"
            )
        found |= named
    return found


def without(claim: Claim, paths: Sequence[str]) -> Claim:
    """``claim`` but for the layers at ``paths``, which go to the fallback."""

    def claiming(module: nn.Module, path: str) -> Any:
        claimed = claim(module, path)
        if claimed is None or isinstance(claimed[0], Declined):
            return claimed
        answer, by = claimed
        layers: tuple[Any, ...] = answer if isinstance(answer, tuple) else (answer,)
        kept = tuple(n for n in layers if (n.path or type(n.module).__name__) not in paths)
        return (kept, by) if kept else None

    return claiming


def _check_tensors(model: nn.Module) -> None:
    """Parameters that can be trained here: made, all in float32, float64 or bfloat16."""
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise RecipeError(
                f"{path or type(model).__name__} is a module of torch.jit, which has no hooks and "
                "no parameters of its own to look at: give the model as it was before torch.jit"
            )
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    for name, p in model.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise RecipeError(
                f"{name} of {_owner_type(model, name)} has no shape yet: call the model once on a "
                "batch first"
            )
        if p.requires_grad and p.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            raise RecipeError(
                f"{name} of {_owner_type(model, name)} is {p.dtype}, and K-FAC trains parameters "
                "in float32, float64 or bfloat16: model.float()"
            )
    if len(trained) > 1:
        listed = ", ".join(sorted(str(d).removeprefix("torch.") for d in trained))
        raise RecipeError(
            f"the trained parameters of {type(model).__name__} are of several types, {listed}: "
            "K-FAC trains all in one, as model.float() makes them"
        )


def called(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    inputs: Tensor,
    buffers: dict[str, Tensor] | None = None,
) -> Any:
    """The model's outputs with other tensors in place of its own, by canonical name.

    Of the ``buffers`` among them, those that the call has written into have the new numbers; one
    that it has put another tensor of the same shape and type in place of (``self.n = self.n + 1``)
    becomes that tensor. A buffer that the call has made anew in another shape stays.

    ``functional_call`` ties weights itself, but puts the wrong tensor back into a module that has
    two paths (torch 2.13); so every module's own entry is named here, once.
    """
    first: dict[int, str] = {}
    named = dict(tensors)
    for path, module in model.named_modules():
        for own, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            name = f"{path}.{own}" if path else own
            canonical = first.setdefault(id(tensor), name)
            if canonical != name and canonical in tensors:
                named[name] = tensors[canonical]
    args, kwargs = call_arguments(inputs)
    outputs = torch.func.functional_call(model, named, args, kwargs, tie_weights=False)
    if buffers is not None:
        changed = {n: named[n] for n, old in buffers.items() if named[n] is not old}
        buffers.update({n: new.detach() for n, new in changed.items() if _fits(new, buffers[n])})
    return outputs


def buffered(model: nn.Module) -> bool:
    """Whether it has buffers, those included that ``forward`` is still to make."""
    return any(module._buffers for module in model.modules())


def standing(model: nn.Module, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own of some ``buffers`` after a pass: one that it was rid of is left out, and so
    is one that the pass has made.
    """
    return {name: b for name, b in model.named_buffers() if name in buffers}


def _fits(new: Any, old: Tensor) -> bool:
    """Whether it can take the place of a buffer, as its numbers."""
    return isinstance(new, Tensor) and (new.shape, new.dtype) == (old.shape, old.dtype)


def _reach(module: nn.Module, name: str) -> nn.Parameter:
    """A parameter by dotted name below ``module``."""
    path, _, own = name.rpartition(".")
    found: nn.Parameter = getattr(module.get_submodule(path), own)
    return found


def _owner_type(model: nn.Module, name: str) -> str:
    return type(model.get_submodule(name.rpartition(".")[0])).__name__
