"""The built-in plugin: every part of Martens & Grosse (2015), through the hooks outsiders use."""

from __future__ import annotations

from typing import Any

from torch import nn

from kfac_lab.core.claims import computes_as
from kfac_lab.core.layers import Linear
from kfac_lab.core.likelihood import of_torch
from kfac_lab.hooks import hookimpl
from kfac_lab.paper import (
    averaging,
    block_diagonal,
    block_tridiagonal,
    confirmed,
    damping,
    diagonal,
    estimators,
    kronecker,
    layered,
    momentum,
    quadratic_model,
    relative,
    schedules,
    staggered,
)
from kfac_lab.paper.recipes import RECIPES

S = "section "


@hookimpl
def kfac_register_estimators(register: Any) -> None:
    """Where g comes from."""
    register(
        "sampled", estimators.Sampled, summary="targets sampled from the model", reference=S + "5"
    )
    register("exact", estimators.Exact, summary="every column of B pulled back", reference=S + "5")
    register("empirical", estimators.Empirical, summary="the labels", reference=S + "2.2")


@hookimpl
def kfac_register_blocks(register: Any) -> None:
    """Curvature of one layer."""
    register(
        "kronecker", kronecker.Kronecker, summary="Ā ⊗ G, damped by factor", reference=S + "4.2"
    )
    register(
        "relative",
        relative.Relative,
        summary="Ā ⊗ G, each relative to its mean diagonal",
        reference=S + "6.3",
    )
    register("diagonal", diagonal.Diagonal, summary="E[(DW)²] entry by entry", reference="")
    register("identity", diagonal.Identity, summary="the plain gradient")


@hookimpl
def kfac_register_structures(register: Any) -> None:
    """How blocks make a preconditioner."""
    register(
        "block_diagonal",
        block_diagonal.BlockDiagonal,
        summary="F̆: layers apart",
        reference=S + "4.2",
    )
    register(
        "block_tridiagonal",
        block_tridiagonal.BlockTridiagonal,
        summary="F̂: a Gaussian chain over adjacent layers",
        reference=S + "4.3",
    )


@hookimpl
def kfac_register_models(register: Any) -> None:
    """The quadratic model."""
    register(
        "exact_fisher",
        quadratic_model.ExactFisher,
        summary="vᵀFv from Jv on S2",
        reference="appendix C",
    )
    register(
        "approximate_fisher",
        quadratic_model.ApproximateFisher,
        summary="vᵀF̆v from the blocks",
        reference=S + "6.1",
    )
    register("none", quadratic_model.NoModel, summary="no curvature", reference=S + "6.1")


@hookimpl
def kfac_register_dampings(register: Any) -> None:
    """λ and γ."""
    register(
        "levenberg_marquardt",
        damping.LevenbergMarquardt,
        summary="λ by the reduction ratio, γ by search",
        reference=S + "6.5",
    )
    register("tied", damping.Tied, summary="γ = √(λ+η)", reference=S + "6.3")
    register(
        "steered",
        damping.Steered,
        summary="tied, first steps held to a reduction",
        reference=S + "6.5",
    )
    register(
        "promised",
        damping.Promised,
        summary="tied, λ moved by the first steps' promises",
        reference=S + "6.5",
    )
    register("constant", damping.ConstantDamping, summary="fixed λ and γ", reference="Heskes 2000")
    register("scheduled", damping.Scheduled, summary="λ falls by a schedule", reference=S + "6.3")


@hookimpl
def kfac_register_momentums(register: Any) -> None:
    """From proposal to update."""
    register("optimal", momentum.Optimal, summary="αΔ + μδ0, both from M", reference=S + "7")
    register(
        "confirmed",
        confirmed.Confirmed,
        summary="as optimal, on small batches as long as other cases confirm",
        reference=S + "7",
    )
    register("rescaled", momentum.Rescaled, summary="αΔ, α from M", reference=S + "6.4")
    register(
        "conjugate_gradient",
        momentum.ConjugateGradient,
        summary="a Krylov space of M",
        reference=S + "6.4",
    )
    register("fixed", momentum.Fixed, summary="fixed rate and momentum", reference=S + "7")
    register(
        "norm_clip",
        momentum.NormClip,
        summary="fixed, in a trust region",
        reference="Ba et al. 2017",
    )
    register(
        "layered",
        layered.Layered,
        summary="an α for each group of layers at first",
        reference=S + "6.4",
    )
    register(
        "normalised", momentum.Normalised, summary="each layer of RMS 1", reference="Ba et al. 2017"
    )


@hookimpl
def kfac_register_schedules(register: Any) -> None:
    """When what is due."""
    register("periodic", schedules.Periodic, summary="T1, T2, T3 and burn-in", reference=S + "8")
    register("staggered", staggered.Staggered, summary="periodic, spread out", reference=S + "8")
    register("every_step", schedules.EveryStep, summary="everything, always", reference=S + "8")
    register("growing", schedules.Growing, summary="inverses ever further apart", reference=S + "8")
    register("on_drift", schedules.OnDrift, summary="when factors have moved", reference=S + "8")


@hookimpl
def kfac_register_batches(register: Any) -> None:
    """How many cases."""
    register("constant", schedules.ConstantBatch, summary="the same m always", reference=S + "13")
    register("exponential", schedules.Exponential, summary="m grows to |S|", reference=S + "13")


@hookimpl
def kfac_register_averages(register: Any) -> None:
    """Iterate averaging."""
    register("polyak", averaging.Polyak, summary="exponential average of θ", reference=S + "13")
    register("none", averaging.NoAverage, summary="none", reference=S + "13")


@hookimpl
def kfac_register_collectives(register: Any) -> None:
    """Processes."""
    register("single_process", averaging.SingleProcess, summary="one process")


@hookimpl
def kfac_register_recipes(register: Any) -> None:
    """The named recipes."""
    for name, (text, summary, reference) in RECIPES.items():
        register(name, text, summary=summary, reference=reference)


@hookimpl
def kfac_claim_layer(module: Any, path: str) -> Linear | None:
    """``nn.Linear``, and a subclass that computes as it does."""
    return Linear(module, path) if computes_as(module) is nn.Linear else None


@hookimpl
def kfac_claim_likelihood(loss: Any) -> Any:
    """torch's losses that are log-likelihoods, by exact type, with all their options."""
    return of_torch(loss)
