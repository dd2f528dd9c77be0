"""The explicit plan of a sequential network: forward, pullback and tangent, leaf by leaf.

Where the model is an ``nn.Sequential`` (nested ones too) of claimed layers and elementwise or
reshaping modules, one forward pass serves the gradient, the statistics and the tangents: each is a
walk over the stored activations, on leading rows of them. ``sequential.py`` uses it; others take
its generic path. A layer takes part by two methods beside those of ``Layer``, as ``layers.Linear``
has them: ``tangent(matrices, inputs, tangents)`` and ``pullback(gradients, inputs)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kfac_lab.core.capture import Network
from kfac_lab.core.traits import LayerTraits, traits
from kfac_lab.core.vector import PartialVec, Vec

__all__ = ["Plan"]

# φ' from the activation's own output, at the cost of one elementwise product.
_DERIVATIVES: dict[type, Any] = {
    nn.Sigmoid: lambda a: a * (1 - a),
    nn.Tanh: lambda a: 1 - a * a,
    nn.ReLU: lambda a: (a > 0).to(a.dtype),
}
# Free of parameters, of randomness and of coupling between cases: torch.func does the rest.
_PLAIN: tuple[type, ...] = (
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Softsign,
    nn.Hardtanh,
    nn.LogSigmoid,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
)


@dataclass(frozen=True, eq=False)
class _Leaf:
    module: nn.Module
    layer: int | None  # index of the claimed layer


@dataclass(frozen=True, eq=False)
class Plan:
    """Leaves in order, and all modules; ``first`` is the leaf of the first layer, where pullbacks
    end.
    """

    network: Network
    leaves: tuple[_Leaf, ...]
    first: int
    modules: tuple[nn.Module, ...]

    @classmethod
    def of(cls, network: Network) -> Plan | None:
        """The plan of a network, or None where it is not of that kind."""
        if network.tensors[0].dtype != network.dtype:
            return None  # vectors are kept in another precision than the activations
        index = {id(m): i for i, use in enumerate(network.uses) for m in use.modules}
        leaves: list[_Leaf] = []
        if not _collect(network.model, index, network, leaves):
            return None
        layered = [leaf.layer for leaf in leaves if leaf.layer is not None]
        if sorted(layered) != list(range(len(network.uses))):
            return None  # a layer twice, or one outside the sequence
        first = next(n for n, leaf in enumerate(leaves) if leaf.layer is not None)
        return cls(network, tuple(leaves), first, tuple(network.model.modules()))

    def usable(self) -> bool:
        """False while somebody has put forward hooks on a module: only a plain call runs them.

        A pre-hook with a true attribute ``passive`` changes nothing and may be left out.
        """
        for module in self.modules:
            if module._forward_hooks:
                return False
            if module._forward_pre_hooks:
                hooks = module._forward_pre_hooks.values()
                if not all(getattr(hook, "passive", False) for hook in hooks):
                    return False
        return True

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """[x, the output of leaf 0, …, z]; under the caller's grad mode."""
        values = [inputs]
        for leaf in self.leaves:
            values.append(leaf.module(values[-1]))
        return values

    def derivatives(self, values: Sequence[Tensor]) -> list[Tensor | None]:
        """φ' of each elementwise leaf on the rows of ``values``; None for the others."""
        return [
            _DERIVATIVES[type(leaf.module)](values[n + 1])
            if type(leaf.module) in _DERIVATIVES
            else None
            for n, leaf in enumerate(self.leaves)
        ]

    def rows_in(self, values: Sequence[Tensor]) -> list[Tensor | None]:
        """ā of each layer ``[n, S, d_in]``."""
        rows: list[Tensor | None] = [None] * len(self.network.uses)
        for n, leaf in enumerate(self.leaves):
            if leaf.layer is not None:
                rows[leaf.layer] = self.network.uses[leaf.layer].layer.rows_in(values[n])
        return rows

    def rows_out(
        self, values: Sequence[Tensor], derivatives: Sequence[Tensor | None], cotangent: Tensor
    ) -> list[Tensor | None]:
        """g of each layer ``[n, S, d_out]`` for a cotangent on the outputs."""
        rows: list[Tensor | None] = [None] * len(self.network.uses)
        gradient = cotangent
        for n in range(len(self.leaves) - 1, self.first - 1, -1):
            leaf = self.leaves[n]
            derivative = derivatives[n]
            if leaf.layer is not None:
                layer: Any = self.network.uses[leaf.layer].layer
                rows[leaf.layer] = layer.rows_out(gradient)
                if n > self.first:
                    gradient = layer.pullback(gradient, values[n])
            elif derivative is not None:
                gradient = gradient * derivative
            else:
                pull: Any = torch.func.vjp(leaf.module, values[n])[1]
                (gradient,) = pull(gradient)
        return rows

    def by_case(
        self, values: Sequence[Tensor], cotangent: Tensor
    ) -> list[tuple[Tensor, Tensor]] | None:
        """Every case's ā ``[n, d_in]`` and g ``[n, d_out]`` of each layer.

        None where a layer has several positions: then a case's gradient is no outer product.
        """
        with torch.no_grad():
            inputs = self.rows_in(values)
            gradients = self.rows_out(values, self.derivatives(values), cotangent)
        pairs = []
        for a, g in zip(inputs, gradients, strict=True):
            assert a is not None and g is not None
            if a.shape[1] > 1:
                return None
            pairs.append((a.flatten(0, 1), g.flatten(0, 1)))
        return pairs

    def tangent(
        self,
        values: Sequence[Tensor],
        derivatives: Sequence[Tensor | None],
        basis: Sequence[Vec],
    ) -> Tensor:
        """J v for each v of ``basis``: ``[k, n, ...]`` (appendix C).

        A vector enters at the first of its ``layers`` and costs nothing before.
        """
        partial = any(isinstance(vector, PartialVec) for vector in basis)
        moving: Tensor | None = None
        order: list[int] = []  # which vector each row of ``moving`` belongs to
        for n, leaf in enumerate(self.leaves):
            derivative = derivatives[n]
            if leaf.layer is not None and not partial:
                layer: Any = self.network.uses[leaf.layer].layer
                moving = layer.tangent([v.matrices[leaf.layer] for v in basis], values[n], moving)
            elif leaf.layer is not None:
                here = {j for j, vector in enumerate(basis) if leaf.layer in vector.layers}
                order += [j for j in sorted(here) if j not in order]
                if order:
                    matrices = [basis[j][leaf.layer] if j in here else None for j in order]
                    layer = self.network.uses[leaf.layer].layer
                    moving = _through(layer, matrices, values[n], moving)
            elif moving is None:
                continue
            elif derivative is not None:
                moving = moving * derivative
            else:
                moving = _push(leaf.module, values[n], moving)
        assert moving is not None
        if not partial or order == list(range(len(basis))):
            return moving
        result = moving.new_zeros((len(basis), *moving.shape[1:]))
        for row, j in enumerate(order):
            result[j] = moving[row]
        return result


def _through(
    layer: Any, matrices: Sequence[Tensor | None], inputs: Tensor, tangents: Tensor | None
) -> Tensor:
    """A layer's tangent where some vectors have no matrix here, and the last ones only begin."""
    whole = [m for m in matrices if m is not None]
    if len(whole) == len(matrices) and (tangents is None or len(tangents) == len(matrices)):
        found: Tensor = layer.tangent(whole, inputs, tangents)
        return found
    partial = traits(layer, LayerTraits).partial_tangent
    if partial is not None:
        found = partial(matrices, inputs, tangents)
        return found
    nothing = inputs.new_zeros((layer.d_out, layer.d_in))
    if tangents is not None:
        begun = tangents.new_zeros((len(matrices) - len(tangents), *tangents.shape[1:]))
        tangents = torch.cat([tangents, begun])
    found = layer.tangent([nothing if m is None else m for m in matrices], inputs, tangents)
    return found


def _push(module: nn.Module, at: Tensor, tangents: Tensor) -> Tensor:
    def one(tangent: Tensor) -> Tensor:
        pushed: Tensor = torch.func.jvp(module, (at,), (tangent,))[1]
        return pushed

    return torch.stack([one(tangent) for tangent in tangents])


def _collect(
    module: nn.Module, index: dict[int, int], network: Network, leaves: list[_Leaf]
) -> bool:
    if type(module) is nn.Sequential:
        return all(_collect(child, index, network, leaves) for child in module)
    if id(module) in index:
        layer = network.uses[index[id(module)]].layer
        products = traits(layer, LayerTraits)
        if products.tangent is None or products.pullback is None:
            return False
        leaves.append(_Leaf(module, index[id(module)]))
        return True
    if type(module) in _DERIVATIVES:
        leaves.append(_Leaf(module, None))
        return True
    if type(module) in _PLAIN and not getattr(module, "inplace", False):
        leaves.append(_Leaf(module, None))
        return True
    return False
