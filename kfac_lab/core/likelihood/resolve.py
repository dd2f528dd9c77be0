"""From what people write to a Likelihood, or one sentence why not."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from torch import nn
from torch.nn import functional

from kfac_lab.core.likelihood.bernoulli import Bernoulli
from kfac_lab.core.likelihood.categorical import Categorical
from kfac_lab.core.likelihood.gaussian import Gaussian
from kfac_lab.core.likelihood.heteroscedastic import HeteroscedasticGaussian
from kfac_lab.core.likelihood.poisson import Poisson
from kfac_lab.core.likelihood.protocol import Likelihood
from kfac_lab.core.likelihood.torch_binary import BinaryCrossEntropy
from kfac_lab.core.likelihood.torch_classes import CrossEntropy, NegativeLogLikelihood
from kfac_lab.core.likelihood.torch_loss import TorchLoss
from kfac_lab.core.likelihood.torch_regression import GaussianNLL, MeanSquaredError, PoissonNLL
from kfac_lab.errors import RecipeError

__all__ = ["METHODS", "claimants", "of_torch", "resolve"]

#: asked for objects that are no Likelihood themselves; the hooks put the Lab's claims here
claimants: list[Callable[[object], Likelihood | None]] = []

#: what a Likelihood has
METHODS = tuple(n for n in vars(Likelihood) if not n.startswith("_") and n.islower())

_NAMED = {
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "poisson": Poisson,
    "heteroscedastic_gaussian": HeteroscedasticGaussian,
}

_OF_TORCH: dict[type, type[TorchLoss]] = {
    nn.MSELoss: MeanSquaredError,
    nn.BCEWithLogitsLoss: BinaryCrossEntropy,
    nn.CrossEntropyLoss: CrossEntropy,
    nn.NLLLoss: NegativeLogLikelihood,
    nn.PoissonNLLLoss: PoissonNLL,
    nn.GaussianNLLLoss: GaussianNLL,
}

#: functions of the same, at their defaults
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    functional.mse_loss: nn.MSELoss,
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.nll_loss: nn.NLLLoss,
    functional.poisson_nll_loss: nn.PoissonNLLLoss,
    functional.gaussian_nll_loss: nn.GaussianNLLLoss,
}

_MARGIN = (
    "scores and margins, which no distribution of targets has: use 'categorical' or 'bernoulli'"
)
#: why the others of torch's losses are none, and what to do
_REFUSED: dict[type, str] = {
    nn.L1Loss: "that of a Laplace distribution, whose loss has no curvature: use 'gaussian' or "
    "nn.GaussianNLLLoss()",
    nn.SmoothL1Loss: "of no distribution with a Fisher in closed form: use 'gaussian', or a "
    "Likelihood of your own for a robust one",
    nn.HuberLoss: "of no distribution with a Fisher in closed form: use 'gaussian', or a "
    "Likelihood of your own for a robust one",
    nn.BCELoss: "of probabilities: leave the sigmoid out of the model and use "
    "nn.BCEWithLogitsLoss()",
    nn.KLDivLoss: "of log-probabilities that are given and need not be the model's own: leave the "
    "log_softmax out of the model and use nn.CrossEntropyLoss() on the same probabilities, whose "
    "gradient is the same",
    nn.CTCLoss: "a sum over alignments, whose samples and Fisher are not known here: give a "
    "Likelihood of your own, or precondition its gradient with "
    "Preconditioner(model, nn.CrossEntropyLoss())",
    nn.NLLLoss2d: "deprecated: use nn.NLLLoss()",
    nn.SoftMarginLoss: "that of yes and no as ±1: use nn.BCEWithLogitsLoss() with targets 0 and 1, "
    "which is the same loss",
    nn.MultiLabelSoftMarginLoss: "a mean of yes and no over classes: use nn.BCEWithLogitsLoss(), "
    "which is the same loss",
    nn.HingeEmbeddingLoss: _MARGIN,
    nn.MultiMarginLoss: _MARGIN,
    nn.MultiLabelMarginLoss: _MARGIN,
    nn.MarginRankingLoss: _MARGIN,
    nn.CosineEmbeddingLoss: _MARGIN,
    nn.TripletMarginLoss: _MARGIN,
    nn.TripletMarginWithDistanceLoss: _MARGIN,
    nn.AdaptiveLogSoftmaxWithLoss: "a module with parameters of its own: make its head and tails "
    "part of the model, with nn.CrossEntropyLoss() on their logits",
}


def of_torch(loss: Any) -> TorchLoss | None:
    """The Likelihood of one of torch's losses, by exact type; None of everything else, and of one
    that gives no number to minimise.
    """
    if isinstance(loss, type) or not isinstance(loss, nn.Module):
        return None
    kind = _OF_TORCH.get(type(loss))
    return None if kind is None or loss.reduction == "none" else kind(loss)


def resolve(likelihood: object) -> Likelihood:
    """A likelihood from its text, such as ``"bernoulli"`` or ``"gaussian(scale='full')"``.

    An object that already is a Likelihood is returned as it is; a torch loss such as
    ``nn.CrossEntropyLoss()`` is what the plugins claim it to be, and so are
    the functions of ``torch.nn.functional``.

    Raises:
        RecipeError: the text names no likelihood, or an argument it does not have; or the object
            is none, with what it lacks or what to use.
    """
    if isinstance(likelihood, str):
        return _from_text(likelihood)
    if isinstance(likelihood, Likelihood) and not isinstance(likelihood, type):
        return likelihood
    asked = likelihood
    if callable(likelihood) and not isinstance(likelihood, (type, nn.Module)):
        made = _FUNCTIONS.get(likelihood)
        asked = likelihood if made is None else made()
    if not isinstance(likelihood, type):
        for claimant in claimants:
            claimed = claimant(asked)
            if claimed is not None:
                return _complete(claimed, f"the claim of {asked!r}")
    raise RecipeError(_why(likelihood))


def _from_text(text: str) -> Likelihood:
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        name = call.func.id  # type: ignore[attr-defined]
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        if call.args:
            name = text
    except (SyntaxError, ValueError, AttributeError):
        name, arguments = text, {}
    kind = _NAMED.get(name)
    if kind is None or not set(arguments) <= {f.name for f in fields(kind)}:
        raise RecipeError(
            f"likelihood {text!r} is not known: use 'gaussian', "
            "\"gaussian(scale='full')\", 'bernoulli', 'categorical', 'poisson' or "
            "'heteroscedastic_gaussian', a loss of torch, or an object with the methods of "
            "Likelihood"
        )
    try:
        return kind(**arguments)
    except RecipeError as error:
        raise RecipeError(f"likelihood {text!r}: {error}") from error


def _complete(found: Any, what: str) -> Likelihood:
    lacking = [name for name in METHODS if not callable(getattr(found, name, None))]
    if lacking:
        raise RecipeError(
            f"{what} is a {type(found).__name__}, a Likelihood without {', '.join(lacking)}"
        )
    return found


def _why(likelihood: Any) -> str:
    """Why this is no likelihood, and what to do."""
    if isinstance(likelihood, type):
        name = likelihood.__name__
        return f"likelihood={name} is a class: give one that was made, {name}()"
    kind = type(likelihood)
    if kind in _REFUSED:
        return f"{kind.__name__} is no likelihood here: it is {_REFUSED[kind]}"
    if kind in _OF_TORCH:
        try:
            _OF_TORCH[kind](likelihood)
        except RecipeError as error:
            return str(error)
    for known in (*_OF_TORCH, *_REFUSED):
        if isinstance(likelihood, known) and kind is not known:
            return (
                f"{kind.__name__} is a subclass of torch's {known.__name__} and may compute "
                "something else: give torch's own, or an object with the methods of Likelihood"
            )
    has = [name for name in METHODS if callable(getattr(likelihood, name, None))]
    if has:
        lacking = [name for name in METHODS if name not in has]
        return (
            f"{kind.__name__} is a Likelihood without {', '.join(lacking)}: give it "
            f"{'these methods' if len(lacking) > 1 else 'that method'}, as kl.Gaussian has them"
        )
    if isinstance(likelihood, nn.Module) or callable(likelihood):
        shown = getattr(likelihood, "__name__", None) or repr(likelihood)
        return (
            f"nobody claims the loss {shown} as a likelihood: use 'gaussian', 'bernoulli', "
            "'categorical', a loss of torch that is a log-likelihood (nn.CrossEntropyLoss(), "
            "nn.MSELoss(), …), or an object with the methods of Likelihood"
        )
    return (
        f"likelihood {likelihood!r} is neither a name ('gaussian', 'bernoulli', 'categorical', …) "
        "nor an object with the methods of Likelihood, and no plugin claims it: give one of these, "
        "or a loss of torch"
    )
