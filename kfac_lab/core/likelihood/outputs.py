"""What a model gives, as the one tensor that a likelihood takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from kfac_lab.core.likelihood.protocol import Likelihood, is_joining
from kfac_lab.errors import DataError, RecipeError

__all__ = ["Outputs", "Selector", "listed"]

Selector = str | int | Callable[[Any], Any] | None


def listed(outputs: Any) -> dict[str, Any]:
    """The parts of a dict, a dataclass, a tuple or a list, by name or by number."""
    if isinstance(outputs, Mapping):
        return {str(name): value for name, value in outputs.items()}
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        return {f.name: getattr(outputs, f.name) for f in dataclasses.fields(outputs)}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return dict(zip(outputs._fields, outputs, strict=True))
    if isinstance(outputs, (tuple, list)):
        return {str(n): value for n, value in enumerate(outputs)}
    return {"0": outputs}


class Outputs:
    """Takes what a model gives and answers the tensor z that the likelihood is of.

    Args:
        likelihood: of one tensor, or one that joins several.
        selector: a name or number of the model's outputs, or a function of them; None takes them
            as they are.

    Raises:
        RecipeError: a selector of another kind.
    """

    def __init__(self, likelihood: Likelihood, selector: Selector = None) -> None:
        if not (selector is None or isinstance(selector, (str, int)) or callable(selector)):
            raise RecipeError(
                f"outputs={selector!r} must be the name or the number of one of the model's "
                "outputs, or a function of them"
            )
        self.selector = selector
        self.likelihood = likelihood
        self.plain = selector is None and not is_joining(likelihood)

    def __call__(self, given: Any) -> Tensor:
        """z ``[N, ...]``.

        Raises:
            DataError: there is no such output, or it is no tensor.
        """
        if self.plain and isinstance(given, Tensor):
            return given
        chosen = self._chosen(given)
        if is_joining(self.likelihood):
            chosen, self.likelihood = self.likelihood.joined(chosen)
        if not isinstance(chosen, Tensor):
            parts = listed(chosen)
            named = ", ".join(map(repr, parts))
            first = next((k for k in ("logits", "prediction") if k in parts), next(iter(parts), ""))
            remedy = first if isinstance(chosen, Mapping) or not first.isdigit() else int(first)
            raise DataError(
                f"the model gives a {type(chosen).__name__}"
                + (f" of {named}" if parts and chosen is not None else "")
                + f", and the likelihood is of one tensor: say which with outputs={remedy!r}, or "
                "with a function, outputs=lambda out: …"
            )
        return chosen

    def _chosen(self, given: Any) -> Any:
        if self.selector is None:
            return given
        if callable(self.selector):
            return self.selector(given)
        parts = listed(given) if not isinstance(given, Tensor) else {}
        if isinstance(self.selector, int) and not isinstance(given, Mapping):
            values = list(parts.values())
            if -len(values) <= self.selector < len(values):
                return values[self.selector]
        elif str(self.selector) in parts:
            return parts[str(self.selector)]
        elif isinstance(self.selector, str) and not isinstance(given, (Tensor, tuple, list)):
            try:
                return getattr(given, self.selector)
            except AttributeError:
                pass
        named = ", ".join(map(repr, parts)) or "none that has a name"
        raise DataError(
            f"outputs={self.selector!r} is none of the outputs of the model, a "
            f"{type(given).__name__}: there are {named}"
        )
