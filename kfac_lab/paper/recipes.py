"""The named recipes, as text: what each slot is played by."""

from __future__ import annotations

__all__ = ["RECIPES"]

_PAPER = {
    "estimator": "sampled(fraction=0.125)",
    "block": "kronecker",
    "structure": "block_diagonal",
    "quadratic_model": "exact_fisher(fraction=0.25)",
    "damping": "levenberg_marquardt(lam=150.0)",
    "momentum": "optimal",
    "schedule": "periodic(T1=5, T2=20, T3=20, burn_in=3)",
    "batch": "exponential(start=1000, full_at=500)",
    "average": "polyak(xi=0.99)",
    "collective": "single_process",
}


def _text(**changes: str) -> str:
    return "\n".join(f"{slot} = {value}" for slot, value in {**_PAPER, **changes}.items())


def _baseline(method: str, size: int) -> str:
    """As tuned on CURVES; ``baselines.tuned`` knows the choice for other problems."""
    return f"method = {method}\nbatch = constant(size={size})\naverage = polyak(xi=0.99)"


# name → (text, summary, reference)
RECIPES: dict[str, tuple[str, str, str]] = {
    "paper": (_text(), "the paper's settings, block-diagonal", "section 9"),
    "paper_tridiagonal": (
        _text(structure="block_tridiagonal"),
        "the paper's settings, block-tridiagonal",
        "section 4.3",
    ),
    "no_momentum": (
        _text(momentum="rescaled"),
        "re-scaling alone, δ = αΔ",
        "section 6.4",
    ),
    "heskes": (
        _text(
            estimator="exact(fraction=1.0, limit=0.0)",
            block='kronecker(pi="one")',
            damping="constant(lam=0.0, gamma=0.1)",
            momentum="fixed(lr=0.1, mu=0.0)",
            quadratic_model="none",
            schedule="every_step",
            average="none",
        ),
        "fixed γ on both factors, exact G, no averaging, no re-scaling, no momentum",
        "Heskes 2000",
    ),
    "centering": (
        _text(block='kronecker(factor_a="rank1_plus_diagonal", factor_g="diagonal")'),
        "Ā as mean and variances, G as variances: centred activities and scaled gradients",
        "section 10",
    ),
    "robust": (
        _text(
            estimator="sampled(fraction=0.125, minimum=1000)",
            quadratic_model="exact_fisher(fraction=0.25, minimum=1000)",
            damping="steered(lam=150.0, guard=5.0)",
            momentum="confirmed",
            schedule="periodic(T1=5, T2=5, T3=5, burn_in=20)",
        ),
        "steers its first steps, γ tied to λ; needs no λ0 and no batch size by hand",
        "section 6.5",
    ),
    "quick": (
        _text(
            estimator='sampled(fraction=0.125, minimum=125, output="exact", noise=0.03)',
            structure="block_diagonal(low_rank=True)",
            quadratic_model="exact_fisher(fraction=0.25, minimum=125, noise=0.15)",
            damping="promised(lam=150.0, guard=5.0, low=0.12)",
            momentum="layered",
            schedule="growing(T3=10, growth=1.5, early=5, first=1, eager=20)",
            batch="exponential(start=250, full_at=500, whole=2000)",
        ),
        "an α for each group of layers at first, λ by what each step promised, few cases at first; "
        "needs no λ0 and no batch size by hand",
        "section 6.4",
    ),
    "small_batch": (
        _text(
            estimator="sampled(fraction=1.0)",
            quadratic_model="none",
            damping="constant(lam=0.01)",
            momentum="norm_clip(lr=0.1, kappa=0.001, mu=0.9, decay=0.997)",
            schedule="periodic(T1=5, T2=10, T3=10, burn_in=10)",
            batch="constant(size=128)",
        ),
        "fixed rate with decay, norm clip, constant damping: for batches below 500",
        "Ba et al. 2017",
    ),
    "amortised": (
        _text(
            estimator="empirical(fraction=0.25, limit=0.9)",
            quadratic_model="none",
            damping="constant(lam=0.001)",
            momentum="normalised(lr=0.01, mu=0.7)",
            schedule="growing(T3=50, growth=1.5, T_cov=10, first=10, T1=50)",
            batch="constant(size=128)",
            average="none",
        ),
        "statistics on every tenth step, inverses on every fiftieth, each layer's step of RMS lr: "
        "for real nets and a rate schedule of your own",
        "section 8",
    ),
    "nag": (
        _baseline("nag(lr=0.02, mu_max=0.95)", 50),
        "SGD with Nesterov momentum",
        "section 13",
    ),
    "adam": (_baseline("adam(lr=0.001, beta2=0.99)", 50), "Adam", "section 13"),
    "muon": (
        _baseline(
            "muon(lr=0.02, adjust='match_rms_adamw', hidden_only=True, adam_lr=0.003, "
            "momentum=0.9)",
            100,
        ),
        "Muon for matrices, Adam for biases",
        "section 13",
    ),
}
