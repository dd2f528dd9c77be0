"""Which layer holds which parameter, in what order they fire, and recording of their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.cases import call_arguments
from kfac_lab.core.claims import snippet
from kfac_lab.core.layers import Declined, Tensors, plain_call
from kfac_lab.core.protocols import Layer
from kfac_lab.core.rows import Grouped, Layout, Layouts, grouped, joined
from kfac_lab.core.traits import LayerTraits, traits
from kfac_lab.core.vector import Vec
from kfac_lab.core.whole import Whole, tied
from kfac_lab.errors import CoverageError, RecipeError

__all__ = [
    "Claim",
    "CoverageRow",
    "Network",
    "Recorder",
    "Use",
    "called",
    "left_out",
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
        cls, model: nn.Module, claim: Claim, fallback: bool, leave: Sequence[str] = ()
    ) -> Network:
        """Asks ``claim`` for every module; tied parameters have one entry.

        ``leave`` are patterns of what somebody else trains: see :func:`left_out`. A module of which
        only some parameters are left is claimed whole.
        """
        _check_tensors(model)
        canonical = {id(p): name for name, p in model.named_parameters()}
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        left_alone = left_out(model, leave)
        for module in model.modules():
            own_names = {canonical[id(p)] for p in module.parameters(recurse=False)}
            if not own_names & set(trained) <= left_alone:
                left_alone -= own_names
        trained = {n: p for n, p in trained.items() if n not in left_alone}
        frozen = tuple(n for n, p in model.named_parameters() if not p.requires_grad)
        groups: dict[tuple[str, ...], list[tuple[Layer, str]]] = {}
        owners: dict[str, set[tuple[str, ...]]] = {}
        declined: dict[str, Declined] = {}  # by the name of each parameter
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
                for name in names:
                    owners.setdefault(name, set()).add(names)
        # A parameter shared by layers of unequal geometry belongs to none of them.
        torn = {n for n, which in owners.items() if len(which) > 1 or n in declined}
        uses: list[Use] = []
        for names, members in groups.items():
            shapes = {(layer.d_out, layer.d_in, type(layer)) for layer, _ in members}
            if len(shapes) > 1:
                torn |= set(names)
            if torn & set(names):
                continue
            layer, by = members[0]
            modules = tuple(dict.fromkeys(m.module for m, _ in members))
            uses.append(Use(layer, modules, names, by))
        apart = {n for names in groups if torn & set(names) for n in names} - set(declined)
        for name, layer, modules in tied(sorted(apart), groups):
            uses.append(Use(layer, modules, (name,), "kfac-lab/core"))
        covered = {name for use in uses for name in use.parameters}
        left = [name for name in trained if name not in covered]
        refused = [n for n in trained if n in declined and not declined[n].fallback]
        if refused:
            raise CoverageError("; ".join(f"{n}: {declined[n].reason}" for n in refused))
        if left and not fallback:
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


def called(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor) -> Any:
    """The model's outputs with other tensors in place of its own, by canonical name.

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
    return torch.func.functional_call(model, named, args, kwargs, tie_weights=False)


def _reach(module: nn.Module, name: str) -> nn.Parameter:
    """A parameter by dotted name below ``module``."""
    path, _, own = name.rpartition(".")
    found: nn.Parameter = getattr(module.get_submodule(path), own)
    return found


def _owner_type(model: nn.Module, name: str) -> str:
    return type(model.get_submodule(name.rpartition(".")[0])).__name__


class Recorder:
    """Inputs and output gradients of the layers' modules during one forward and its backwards.

    Tensor hooks, not full backward hooks: in-place activations work. Hooks exist only inside
    ``recording``; the module is an ordinary one at all other times.

    Args:
        layouts: how the rows of each call belong to cases; without them a call's rows stay as the
            layer lays them out.
        cases: how many go through.
    """

    def __init__(
        self, network: Network, layouts: Layouts | None = None, cases: int | None = None
    ) -> None:
        self._network, self._layouts, self._cases = network, layouts, cases
        self.fired: list[int] = []  # layer of each call, in firing order
        self._inputs: list[list[Tensor]] = [[] for _ in network.uses]
        self._gradients: list[dict[int, Tensor]] = [{} for _ in network.uses]

    @property
    def tensors(self) -> list[Tensor]:
        """The trained parameters of the network."""
        return self._network.tensors

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Hooks on the layers' modules, for as long as the block lasts."""
        handles = []
        for index, use in enumerate(self._network.uses):
            layouts = self._layouts[index] if self._layouts is not None else ()
            repeats = any(layout.repeat is not None for layout in layouts)
            for module in use.modules:
                if isinstance(use.layer, Whole):
                    before = self._enter(index)
                    handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                elif repeats:
                    before = self._repeat(index)
                    handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(self._hook(index), with_kwargs=True))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
            for use in self._network.uses:
                if isinstance(use.layer, Whole):  # of a call that was broken off
                    for module in use.modules:
                        use.layer.leave(module)

    def _layout(self, index: int, call: int) -> Layout | None:
        layouts = self._layouts[index] if self._layouts is not None else ()
        return layouts[min(call, len(layouts) - 1)] if layouts else None

    def _enter(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        layer = self._network.uses[index].layer
        assert isinstance(layer, Whole)

        def hook(module: nn.Module, args: Any, named: Any) -> None:
            layout = self._layout(index, len(self._inputs[index]))
            copies = None if layout is None or self._cases is None else layout.repeat
            layer.enter(module, copies, self._cases or 1)

        return hook

    def _repeat(self, index: int) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, named: Any) -> Any:
            layout = self._layout(index, len(self._inputs[index]))
            if layout is None or layout.repeat is None or self._cases is None:
                return None
            if args:
                return (repeated(args[0], layout.repeat, self._cases), *args[1:]), named
            first = next(iter(named))
            return args, {**named, first: repeated(named[first], layout.repeat, self._cases)}

        return hook

    def _hook(self, index: int) -> Callable[[nn.Module, Any, Any, Any], Any]:
        record = traits(self._network.uses[index].layer, LayerTraits).record or plain_call

        def hook(module: nn.Module, args: Any, named: Any, output: Any) -> Any:
            self.fired.append(index)
            inputs, watched, replaced = record(module, args, named, output)
            call = len(self._inputs[index])
            self._inputs[index].append(inputs.detach())
            if watched is not None and watched.requires_grad:
                watched.register_hook(lambda g: self._gradients[index].__setitem__(call, g))
            return replaced

        return hook

    def calls_in(self) -> list[list[Tensor]]:
        """ā of each call of each layer, as the layer lays them out: ``[B, S, d_in]``."""
        return [
            [self._rows(use.layer.rows_in, x, use.layer.d_in) for x in calls]
            for use, calls in zip(self._network.uses, self._inputs, strict=True)
        ]

    def _rows(self, lay_out: Callable[[Tensor], Tensor], given: Tensor, width: int) -> Tensor:
        """Rows in the moments' precision, which may be higher than the pass's; none of nothing."""
        if not given.numel():
            return given.new_zeros((0, 1, width), dtype=self._network.dtype)
        rows = lay_out(given)
        return rows if rows.dtype == self._network.dtype else rows.to(self._network.dtype)

    def calls_out(self) -> list[list[Tensor | None]]:
        """g of each call of the latest backward, ``[B, S, d_out]``, None where none came."""
        found: list[list[Tensor | None]] = []
        for use, calls, seen in zip(self._network.uses, self._inputs, self._gradients, strict=True):
            layer = use.layer
            own = [
                self._rows(layer.rows_out, seen[c], layer.d_out) if c in seen else None
                for c in range(len(calls))
            ]
            found.append(own)
            seen.clear()
        return found

    def rows_in(self) -> list[Grouped | None]:
        """ā per layer, ``[n, S, d_in]``; several calls of one layer are further positions."""
        return [self._joined(i, calls, "first") for i, calls in enumerate(self.calls_in())]

    def rows_out(self) -> list[Grouped | None]:
        """g per layer of the latest backward, ``[n, S, d_out]``; forgets it.

        A call that the outputs do not depend on has zeros, unless none of its layer's do.
        """
        rows: list[Grouped | None] = []
        for i, calls in enumerate(self.calls_out()):
            if not any(g is not None for g in calls):
                rows.append(None)
                continue
            layer = self._network.uses[i].layer
            full = []
            for c, g in enumerate(calls):
                if g is None:
                    shape = self._rows(layer.rows_in, self._inputs[i][c], layer.d_in).shape
                    like = next(other for other in calls if other is not None)
                    g = like.new_zeros((*shape[:2], like.shape[-1]))
                full.append(g)
            found = self._joined(i, full, "sum")
            rows.append(found.contiguous() if isinstance(found, Tensor) else found)
        return rows

    def _joined(self, index: int, calls: list[Tensor], summing: str) -> Grouped | None:
        """The calls of a layer together; of one that is ``summed`` with one row for each case."""
        summed = traits(self._network.uses[index].layer, LayerTraits).summed

        def one(rows: Tensor) -> Tensor:
            if not summed or rows.shape[1] == 1:
                return rows
            return rows[:, :1] if summing == "first" else rows.sum(1, keepdim=True)

        if self._layouts is None or self._cases is None:
            apart = len({len(rows) for rows in calls}) > 1
            return joined([r.flatten(0, 1).unsqueeze(0) if apart else one(r) for r in calls])
        found = joined(
            [grouped(r, self._layout(index, c), self._cases) for c, r in enumerate(calls)]
        )
        return one(found) if isinstance(found, Tensor) else found

    def chosen(
        self, rows: Tensor | slice, cases: int
    ) -> tuple[list[Tensor | None], list[Tensor | None]] | None:
        """ā and g of some of the ``cases``; None where a call has not them in front, or no g."""
        inputs: list[Tensor | None] = []
        gradients: list[Tensor | None] = []
        for use, calls, seen in zip(self._network.uses, self._inputs, self._gradients, strict=True):
            if not use.modules:
                inputs.append(None)
                gradients.append(None)
                continue
            given = [seen.get(c) for c in range(len(calls))]
            known = [x for x in given if x is not None]
            if not calls or len(known) < len(calls):
                return None
            if any(x.shape[:1] != (cases,) for x in (*calls, *known)):
                return None
            here = rows.to(calls[0].device) if isinstance(rows, Tensor) else rows
            a = [use.layer.rows_in(x[here]) for x in calls]
            g = [use.layer.rows_out(x[here]) for x in known]
            joint_a, joint_g = torch.cat(a, 1) if len(a) > 1 else a[0], torch.cat(g, 1)
            if traits(use.layer, LayerTraits).summed and joint_g.shape[1] > 1:
                joint_a, joint_g = joint_a[:, :1], joint_g.sum(1, keepdim=True)
            inputs.append(joint_a)
            gradients.append(joint_g)
        return inputs, gradients

    def shapes(self) -> Mapping[int, tuple[int, int, int]]:
        """Layer → (calls, cases, positions), for the chains; cases are 0 where rows have none."""
        found = {}
        for i, rows in enumerate(self.rows_in()):
            if isinstance(rows, Tensor):
                found[i] = (len(self._inputs[i]), rows.shape[0], rows.shape[1])
            elif rows is not None:
                found[i] = (len(self._inputs[i]), 0, 2)
        return found


def repeated(given: Tensor, along: int, cases: int) -> Tensor:
    """One input for all cases as one for each: see ``Layout.repeat``."""
    if along < 0:  # a new dimension
        place = -1 - along
        shape = (*given.shape[:place], cases, *given.shape[place:])
        return given.unsqueeze(place).expand(shape)
    if along >= given.dim() or given.shape[along] != 1:
        return given
    return given.expand(*given.shape[:along], cases, *given.shape[along + 1 :])


def chains_of(fired: Sequence[int], shapes: Mapping[int, tuple[int, int, int]]) -> list[list[int]]:
    """Runs of layers in firing order that may be linked: one call, one position, same cases."""
    chains: list[list[int]] = [[]]
    for index in fired:
        calls, cases, positions = shapes[index]
        if calls > 1 or positions > 1:
            chains.append([])
            continue
        if chains[-1] and shapes[chains[-1][-1]][1] != cases:
            chains.append([])
        chains[-1].append(index)
    return [chain for chain in chains if chain]
