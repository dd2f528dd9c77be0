"""What the baselines were tuned to, problem by problem; ``results/tuning.md`` says how."""

from __future__ import annotations

from kfac_lab.errors import RecipeError

__all__ = ["TUNED", "tuned"]

_MUON = "adjust='match_rms_adamw', hidden_only=True, adam_lr=0.003, momentum=0.9"

# (method, problem) → the method's text and the batch size; "*" is for every other problem.
# results/tuning.md says how they were found.
TUNED: dict[tuple[str, str], tuple[str, int]] = {
    ("nag", "curves"): ("nag(lr=0.02, mu_max=0.95)", 50),
    ("adam", "curves"): ("adam(lr=0.001, beta2=0.99)", 50),
    ("muon", "curves"): (f"muon(lr=0.02, {_MUON})", 100),
    ("soap", "curves"): ("soap(lr=0.007, max_side=300, every=5, beta1=0.9)", 200),
    ("nag", "mnist"): ("nag(lr=0.01, mu_max=0.95)", 50),
    ("adam", "mnist"): ("adam(lr=0.002, beta2=0.99, decay=0.3)", 50),
    ("muon", "mnist"): (f"muon(lr=0.01, {_MUON})", 200),
    ("soap", "mnist"): ("soap(lr=0.002, max_side=300, every=5, beta1=0.9)", 100),
    ("nag", "faces"): ("nag(lr=0.001, mu_max=0.95)", 25),
    ("adam", "faces"): ("adam(lr=0.001, beta2=0.99, decay=0.3)", 50),
    ("muon", "faces"): (f"muon(lr=0.02, {_MUON})", 100),
    ("soap", "faces"): ("soap(lr=0.001, max_side=300, every=5, beta1=0.9)", 100),
    ("nag", "*"): ("nag(lr=0.005, mu_max=0.95)", 100),
    ("adam", "*"): ("adam(lr=0.001)", 100),
    ("muon", "*"): ("muon(lr=0.02, adjust='match_rms_adamw', adam_lr=0.003)", 100),
    ("soap", "*"): ("soap(lr=0.003)", 100),
}


def tuned(
    method: str, problem: str, *, seconds: float | None = None, steps: int | None = None
) -> str:
    """The text of the tuned recipe of a baseline, such as ``"muon"``, for a named problem.

    ``seconds`` or ``steps`` say how long the run will be, which those need whose rate or momentum
    changes towards the end. A problem that nobody tuned for gets cautious values.

    Raises:
        RecipeError: there is no such baseline.
    """
    if (method, "*") not in TUNED:
        known = ", ".join(name for name, where in TUNED if where == "*")
        raise RecipeError(f"no baseline is called {method!r}: there are {known}")
    text, size = TUNED.get((method, problem), TUNED[method, "*"])
    end = "" if seconds is None else f", total_seconds={float(seconds)!r}"
    end += "" if steps is None else f", total_steps={steps}"
    return f"method = {text[:-1]}{end})\nbatch = constant(size={size})\naverage = polyak(xi=0.99)"
