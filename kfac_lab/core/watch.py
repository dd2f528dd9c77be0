"""What became of a module since a moment: frozen, thawed, replaced or added parts, another type."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["ModelWatch"]


class ModelWatch:
    """The modules and trained parameters of a model as they are now, to be compared later.

    Comparing walks over what was there, without a name or a tensor made: microseconds a module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        modules = list(model.modules())
        # Flat, and of dicts that stay: what follows is asked at every step.
        self._held = [d for m in modules for d in (m._modules, m._parameters) if d]
        self._none = [d for m in modules for d in (m._modules, m._parameters) if not d]
        self._counts = [len(d) for d in self._held]
        self._children = [
            (m._modules, n, child) for m in modules for n, child in m._modules.items()
        ]
        self._trained = [
            (m._parameters, name, p.shape, p.dtype, p.requires_grad)
            for m in modules
            for name, p in m._parameters.items()
            if p is not None
        ]
        self._named = _described(model)
        self._modules = {path: id(module) for path, module in model.named_modules()}

    def change(self) -> str | None:
        """What has changed first, as a clause that names it; None where nothing has."""
        return self._told() if self._moved() else None

    def _moved(self) -> bool:
        if any(self._none) or [len(d) for d in self._held] != self._counts:
            return True
        for modules, name, child in self._children:
            if modules.get(name) is not child:
                return True
        for parameters, name, shape, dtype, trained in self._trained:
            p = parameters.get(name)
            if (
                p is None
                or p.requires_grad is not trained
                or p.dtype is not dtype
                or p.shape != shape
            ):
                return True
        return False

    def _told(self) -> str | None:
        now = _described(self._model)
        for name, before in self._named.items():
            found = now.get(name)
            if found is None:
                return f"{name} is no parameter of the model any more"
            for (old, new), text in zip(
                zip(before, found, strict=True),
                ("has another shape, {1} for {0}", "became {1}, from {0}", ""),
                strict=True,
            ):
                if old != new and text:
                    return f"{name} {text.format(_short(old), _short(new))}"
            if before[2] != found[2]:
                return f"{name} was {'thawed' if found[2] else 'frozen'}"
        added = [name for name in now if name not in self._named]
        if added:
            return f"{added[0]} was added to the model"
        for path, module in self._model.named_modules():
            if self._modules.get(path) != id(module):
                held = next((n for n, _ in module.named_parameters()), None)
                what = f"{path}.{held}" if held else path
                return f"{what} belongs to another {type(module).__name__} than before"
        return None


def _described(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
    return {n: (p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()}


def _short(value: object) -> str:
    if isinstance(value, torch.Size):
        return str(tuple(value))
    return str(value).removeprefix("torch.")
