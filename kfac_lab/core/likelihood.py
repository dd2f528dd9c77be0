"""Predictive distributions: loss, model samples, and the Fisher of the outputs (section 1.2)."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from kfac_lab.errors import DataError, RecipeError

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "resolve"]


@runtime_checkable
class Likelihood(Protocol):
    """The distribution R(y|z) whose parameter z the network's last layer hands over.

    Outputs ``z`` are ``[N, ..., out]``. Every method keeps device and dtype, and reads nothing on
    the host. ``F_R`` is the Fisher of R in z for the loss *as scaled by* ``loss``; ``B`` is a
    factor of it, F_R = B Bᵀ.
    """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """−log r(y|z) up to a constant, per case: ``[N]``.

        Raises:
            DataError: targets that are none for these outputs.
        """
        ...

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """∇_z of each case's loss: the shape of ``outputs``."""
        ...

    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        """Draws y from the model and returns a cotangent whose second moment is F_R.

        ``uniforms`` lie in (0, 1) and have the shape of ``outputs``.
        """
        ...

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        """Bᵀu for each tangent: ``tangents`` and the result are ``[k, *outputs.shape]``."""
        ...

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        """F_R u for one tangent per case: the shape of ``outputs``."""
        ...

    def factor_columns(self, outputs: Tensor) -> int:
        """How many columns B has for one case."""
        ...

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        """The given column of B for every case: the shape of ``outputs``."""
        ...

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is reported, per case ``[N]``: squared error over the outputs, or 100 if wrong."""
        ...

    def mean(self, outputs: Tensor) -> Tensor:
        """E[y|z], the reconstruction or the class probabilities: the shape of ``outputs``."""
        ...


def _cases(values: Tensor) -> Tensor:
    """Sum over everything but the cases."""
    return values.flatten(1).sum(1) if values.dim() > 1 else values


def _check_targets(outputs: Tensor, targets: Tensor) -> None:
    """Real targets, one for each output: a target of another shape would be broadcast silently."""
    if targets.shape != outputs.shape:
        raise DataError(
            f"targets of shape {tuple(targets.shape)} came with outputs of shape "
            f"{tuple(outputs.shape)}: give one target for each output"
        )
    if not targets.is_floating_point():
        raise DataError(f"targets are {targets.dtype}: give real numbers, targets.float()")


def _check_classes(outputs: Tensor, targets: Tensor) -> None:
    """Probabilities of the outputs' shape, or class numbers with one dimension less."""
    if targets.is_floating_point():
        if targets.shape != outputs.shape:
            raise DataError(
                f"real targets are probabilities and need the outputs' shape "
                f"{tuple(outputs.shape)}, not {tuple(targets.shape)}: give those, or class "
                "numbers, targets.long()"
            )
    elif targets.dtype != torch.int64:
        raise DataError(f"class numbers are torch.int64, not {targets.dtype}: targets.long()")
    elif targets.shape != outputs.shape[:-1]:
        raise DataError(
            f"class numbers of shape {tuple(targets.shape)} came with outputs of shape "
            f"{tuple(outputs.shape)}: they need shape {tuple(outputs.shape[:-1])}"
        )


def _one_column(outputs: Tensor, column: int) -> tuple[Tensor, tuple[slice | int, ...]]:
    """A zero tensor of the shape of ``outputs`` and the flat index of one output of each case."""
    flat = torch.zeros_like(outputs).reshape(outputs.shape[0], -1)
    return flat, (slice(None), column)


@dataclass(frozen=True)
class Gaussian:
    """Squared error: ``half`` is ½‖y−z‖² with N(z, I), ``full`` is ‖y−z‖² with N(z, ½I)."""

    scale: Literal["half", "full"] = "half"

    @property
    def _factor(self) -> float:
        return 1.0 if self.scale == "half" else 2.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        _check_targets(outputs, targets)
        return _cases((outputs - targets) ** 2) * (self._factor / 2)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets) * self._factor

    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        normals = torch.erfinv(2 * uniforms - 1) * math.sqrt(2)
        return normals * (-math.sqrt(self._factor))

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        return tangents * math.sqrt(self._factor)

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        return tangents * self._factor

    def factor_columns(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        flat, where = _one_column(outputs, column)
        flat[where] = math.sqrt(self._factor)
        return flat.view_as(outputs)

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _cases((outputs - targets) ** 2)

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs


@dataclass(frozen=True)
class Bernoulli:
    """Cross-entropy on logits; targets may be grey in [0, 1], model samples are binary."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        _check_targets(outputs, targets)
        return _cases(
            functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        )

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.sigmoid(outputs) - targets

    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        p = torch.sigmoid(outputs)
        return p - (p >= uniforms).to(p.dtype)

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        p = torch.sigmoid(outputs)
        return tangents * torch.sqrt(p * (1 - p))

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        p = torch.sigmoid(outputs)
        return tangents * p * (1 - p)

    def factor_columns(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        flat, where = _one_column(outputs, column)
        p = torch.sigmoid(outputs.reshape(outputs.shape[0], -1)[where])
        flat[where] = torch.sqrt(p * (1 - p))
        return flat.view_as(outputs)

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _cases((torch.sigmoid(outputs) - targets) ** 2)

    def mean(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs)


@dataclass(frozen=True)
class Categorical:
    """Cross-entropy on logits; the classes are the last dimension of the outputs.

    Targets are class numbers ``[N, ...]`` (integers) or probabilities of the outputs' shape.
    Where outputs have positions between case and class (``[N, T, C]``), a case's loss is the
    mean over its positions, and F_R carries the same factor 1/T.
    """

    def predictions(self, outputs: Tensor) -> int:
        """How many classes are predicted for each case: one for each position."""
        return outputs[0].numel() // outputs.shape[-1]

    def _probabilities(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            return targets
        # one_hot would look at the targets on the host.
        return torch.zeros_like(outputs).scatter_(-1, targets.unsqueeze(-1), 1.0)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        _check_classes(outputs, targets)
        logs = functional.log_softmax(outputs, dim=-1)
        if targets.is_floating_point():
            terms = -(targets * logs).sum(-1)
        else:
            try:
                terms = -logs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
            except RuntimeError as error:  # on the CPU, where a class is none
                raise DataError(
                    f"class numbers go from 0 to {outputs.shape[-1] - 1}, the model having "
                    f"{outputs.shape[-1]} outputs, and one of the targets does not: {error}"
                ) from error
        return terms.flatten(1).mean(1) if terms.dim() > 1 else terms

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        difference = torch.softmax(outputs, -1) - self._probabilities(outputs, targets)
        return difference / self.predictions(outputs)

    def sampled_gradient(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        # Gumbel-max: torch.multinomial would check its input on the host.
        p = torch.softmax(outputs, -1)
        winner = (outputs - torch.log(-torch.log(uniforms))).argmax(-1, keepdim=True)
        sample = torch.zeros_like(p).scatter_(-1, winner, 1.0)
        return (p - sample) / math.sqrt(self.predictions(outputs))

    def factor_transposed(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        p = torch.softmax(outputs, -1)
        root = torch.sqrt(p) / math.sqrt(self.predictions(outputs))
        return root * (tangents - (p * tangents).sum(-1, keepdim=True))

    def fisher(self, outputs: Tensor, tangents: Tensor) -> Tensor:
        p = torch.softmax(outputs, -1)
        return p * (tangents - (p * tangents).sum(-1, keepdim=True)) / self.predictions(outputs)

    def factor_columns(self, outputs: Tensor) -> int:
        return outputs[0].numel()

    def factor_column(self, outputs: Tensor, column: int) -> Tensor:
        # Column j of diag(√p) − p√pᵀ is √p_j (e_j − p), within the position that holds j.
        classes = outputs.shape[-1]
        positions = self.predictions(outputs)
        p = torch.softmax(outputs, -1).reshape(outputs.shape[0], positions, classes)
        position, label = divmod(column, classes)
        result = torch.zeros_like(p)
        result[:, position] = -p[:, position]
        result[:, position, label] += 1
        result[:, position] *= torch.sqrt(p[:, position, label : label + 1] / positions)
        return result.view_as(outputs)

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        truth = targets.argmax(-1) if targets.is_floating_point() else targets
        wrong = (outputs.argmax(-1) != truth).to(outputs.dtype)
        return 100 * (wrong.flatten(1).mean(1) if wrong.dim() > 1 else wrong)

    def mean(self, outputs: Tensor) -> Tensor:
        return torch.softmax(outputs, -1)


# Asked for objects that are no Likelihood themselves; the hooks put the Lab's claims here.
claimants: list[Callable[[object], Likelihood | None]] = []

_NAMED = {"gaussian": Gaussian, "bernoulli": Bernoulli, "categorical": Categorical}


def resolve(likelihood: object) -> Likelihood:
    """A likelihood from its text, such as ``"bernoulli"`` or ``"gaussian(scale='full')"``.

    An object that already is a Likelihood is returned as it is; a torch loss such as
    ``nn.CrossEntropyLoss()`` is what the plugins claim it to be.

    Raises:
        RecipeError: the text names no likelihood, or an argument it does not have.
    """
    if isinstance(likelihood, str):
        try:
            node = ast.parse(likelihood.strip(), mode="eval").body
            call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
            name = call.func.id  # type: ignore[attr-defined]
            arguments = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        except (SyntaxError, ValueError, AttributeError):
            name, arguments = likelihood, {}
        kind = _NAMED.get(name)
        if kind is None or not set(arguments) <= {f.name for f in fields(kind)}:
            raise RecipeError(
                f"likelihood {likelihood!r} is not known: use 'gaussian', "
                "\"gaussian(scale='full')\", 'bernoulli' or 'categorical', "
                "or an object with the methods of Likelihood"
            )
        if arguments.get("scale", "half") not in ("half", "full"):
            raise RecipeError(
                f"likelihood {likelihood!r}: scale must be 'half' (½‖y−z‖²) or 'full' (‖y−z‖²)"
            )
        return kind(**arguments)
    if isinstance(likelihood, Likelihood):
        return likelihood
    for claimant in claimants:
        claimed = claimant(likelihood)
        if claimed is not None:
            return claimed
    raise RecipeError(
        f"likelihood {likelihood!r} is neither a name ('gaussian', 'bernoulli', 'categorical') "
        "nor an object with the methods of Likelihood, and no plugin claims it"
    )
