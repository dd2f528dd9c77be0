"""Every built-in part in a recipe of its own, and every named recipe: what the sweeps go over."""

from __future__ import annotations

from typing import Any

import kfac_lab as kl

KFAC = ("paper", "paper_tridiagonal", "no_momentum", "heskes", "centering", "robust", "small_batch")

# slot → texts; a mapping stands for several slots at once.
PARTS: dict[str, list[Any]] = {
    # the first beside that of BASE: a swap between the two is one of the last layer's block
    "estimator": [
        "sampled(fraction=0.5, output='exact')",
        "exact(fraction=0.5)",
        "empirical(fraction=0.5)",
    ],
    "structure": [
        "block_diagonal",
        "block_tridiagonal",
        "block_tridiagonal(sigma='smith')",
    ],
    "block": [
        *(f"kronecker(pi={pi!r})" for pi in ("trace", "frobenius", "spectral", "median", "one")),
        *(f"kronecker(inverse={how!r})" for how in ("eigh", "newton_schulz")),
        *(
            f"kronecker(factor_a={a!r}, rank=2)"
            for a in ("diagonal", "rank1_plus_diagonal", "lowrank_plus_diagonal")
        ),
        *(f"kronecker(factor_g={g!r}, rank=2)" for g in ("diagonal", "lowrank_plus_diagonal")),
        "kronecker(tikhonov='unfactored')",
        "relative",
        "relative(outputs=False)",
        "diagonal",
        "identity",
        {"0": "diagonal", "2": "identity", "*": "kronecker"},
    ],
    "quadratic_model": ["exact_fisher(fraction=0.5)", "approximate_fisher", "none"],
    "damping": [
        "levenberg_marquardt",
        "levenberg_marquardt(denominator='without_lambda', gamma_max=inf)",
        "tied",
        "steered",
        "steered(steps=0)",
        "constant",
        "scheduled",
    ],
    "momentum": [
        "optimal",
        "rescaled",
        "conjugate_gradient(steps=1)",
        "conjugate_gradient(steps=3)",
        "fixed",
        "norm_clip",
    ],
    "schedule": ["periodic(T1=2, T2=4, T3=4, T_scale=2)", "every_step", "on_drift(check=2)"],
    "average": ["polyak", "polyak(ramp=False, start=3)", "none"],
    "batch": ["constant(size=16)", "exponential(start=8, full_at=6)"],
}
BASE = {
    "estimator": "sampled(fraction=0.5)",
    "quadratic_model": "exact_fisher(fraction=0.5)",
    "damping": "levenberg_marquardt(lam=1.0)",
    "schedule": "periodic(T1=2, T2=4, T3=4, burn_in=1)",
    "batch": "constant(size=16)",
}


def _variants() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for slot, texts in PARTS.items():
        for text in texts:
            found[f"{slot}={text}"] = {**BASE, slot: text}
    for text in PARTS["block"]:  # every block under the structure that looks at neighbours too
        found[f"tridiagonal, block={text}"] = {
            **BASE,
            "block": text,
            "structure": "block_tridiagonal",
        }
    return found


VARIANTS = _variants()


def recipe_named(name: str) -> kl.Recipe:
    """A named recipe, its batch made to fit 24 cases; or a variant."""
    if name in VARIANTS:
        return kl.Recipe(**VARIANTS[name])
    return kl.Recipe.named(name).replace(batch="constant(size=16)")


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    """The first name of each recipe: of several slots the first part is that of BASE."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(recipe_named(name).text(), name)
    return tuple(found.values())


ALL = _once((*KFAC, *VARIANTS))
#: blocks under the other structure too: these under ``make soak``, every sixth in ``make test``;
#: and of what G is kept as, which A is too, and of fields that only leave something out
SOAK = [name for n, name in enumerate(n for n in ALL if n.startswith("tridiagonal,")) if n % 6 != 3]
SOAK += [
    "block=kronecker(factor_g='diagonal', rank=2)",
    "block=kronecker(factor_g='lowrank_plus_diagonal', rank=2)",
    "block=kronecker(pi='one')",
    "block=relative(outputs=False)",
]
assert set(SOAK) < set(ALL)
