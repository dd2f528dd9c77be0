"""Which of torch's modules a module is, for claims: its own type, or a parent it computes as."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["ByStructure", "computes_as", "snippet"]


@dataclass(frozen=True)
class ByStructure:
    """A claim's answer that goes by what a module was seen to compute, whatever it is called.

    It yields to a claim by type, whoever makes that.

    Args:
        answer: a Layer, or a tuple of Layers.
    """

    answer: Any


# What a subclass may have of its own without computing anything else.
_HARMLESS = frozenset(
    {
        "__init__",
        "__repr__",
        "__doc__",
        "__module__",
        "__qualname__",
        "__annotations__",
        "__annotate__",
        "__annotate_func__",
        "__annotations_cache__",
        "__constants__",
        "__firstlineno__",
        "__static_attributes__",
        "__slotnames__",
        "__parameters__",
        "__orig_bases__",
        "extra_repr",
        "reset_parameters",
        "_get_name",
        "_load_from_state_dict",
        "_save_to_state_dict",
        "_version",
    }
)
# Its owner, MultiheadAttention, reads its weight and never calls it.
_NEVER_CALLED = (nn.modules.linear.NonDynamicallyQuantizableLinear,)


def computes_as(module: Any) -> type:
    """The type whose claim fits ``module``: the nearest of torch's that computes what it does.

    A subclass that overrides nothing of its parent's computation (no ``forward``, no method that
    ``forward`` calls, no parameter made a property) is its parent. Anything else is its own type,
    which nobody claims unless by that type.
    """
    own = type(module)
    if isinstance(module, _NEVER_CALLED) or own.__module__.startswith("torch."):
        return own
    if "forward" in vars(module):  # replaced on the instance
        return object
    added: set[str] = set()
    for kind in own.__mro__:
        if kind is nn.Module:
            break
        if kind.__module__.startswith("torch.nn.modules."):
            parameters = {*module._parameters, *module._buffers}
            changed = added - _HARMLESS
            return own if changed & (set(dir(kind)) | parameters) else kind
        added |= set(vars(kind))
    return own


def snippet(kinds: Iterable[type]) -> str:
    """A plugin, for a notebook cell or a script, that claims the modules of these types.

    Each of their parameters becomes a layer of its own, which any module allows; a ``Layer`` that
    knows what the module computes is better, and goes to the same place.
    """
    listed = ", ".join(repr(name) for name in sorted({kind.__name__ for kind in kinds}))
    return f"""
    import kfac_lab as kl
    from kfac_lab.core.whole import Whole

    class Claims:
        @kl.hookimpl
        def kfac_claim_layer(self, module, path):
            if type(module).__name__ in [{listed}]:
                # or a Layer of your own, that knows what it computes
                own = [name for name, _ in module.named_parameters(recurse=False)]
                return tuple(Whole(module, f"{{path}}.{{name}}".strip("."), name) for name in own)

    kl.lab.load_module(Claims(), "mine")
"""
