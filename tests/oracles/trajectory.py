"""Algorithm 2 (paper section 9) with dense matrices: full batch, exact G, nothing random."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import approximations, dense, quadratic

StepDict = dict


def blend(old, new, eps: float):
    """eps old + (1 - eps) new for a table of moments; `old` None reads as zeros."""
    if old is None:
        return [[(1 - eps) * b for b in row] for row in new]
    pairs = [zip(r, s, strict=True) for r, s in zip(old, new, strict=True)]
    return [[eps * a + (1 - eps) * b for a, b in pair] for pair in pairs]


def gamma_candidates(gamma: float, due: bool, omega2: float, low: float, high: float):
    """The current gamma first, then the smaller and the larger one, clipped (paper section 6.6)."""
    if not due:
        return [gamma]
    return [gamma, max(omega2 * gamma, low), min(gamma / omega2, high)]


def run(
    weights,
    activations,
    bias,
    likelihood: str,
    inputs: Tensor,
    targets: Tensor,
    steps: int,
    structure: str = "block_diagonal",
    lam: float = 1.0,
    eta: float = 1e-5,
    T1: int | None = 5,
    T2: int | None = 20,
    T3: int = 20,
    burn_in: int = 3,
    gamma: float | None = None,
    gamma_bounds: tuple[float, float] | None = None,
    clip: bool = True,
    momentum: bool = True,
    pi: str = "trace",
    decay_cap: float = 0.95,
    stats_rows: int | None = None,
    model_rows: int | None = None,
    spread: int = 1,
) -> list[StepDict]:
    """`steps` iterations of K-FAC from theta_1 = weights; one record per iteration.

    weights: W_i [d_i, n_i]; activations, bias: as in `dense.network`; likelihood: one of
    `dense.LIKELIHOODS`; inputs [N, d_0]; targets [N, K] or classes [N].
    T1 None keeps lambda, T2 None keeps gamma; `gamma` None starts at sqrt(lam + eta);
    `gamma_bounds` None is [sqrt(eta), 1], `clip` False is no bounds at all.
    stats_rows, model_rows: S1 and S2 as that many leading cases (None: all).
    spread: a refresh due at k > burn_in keeps the moments and the gammas that step leaves, and is
    in use from step k + spread - 1 on; until then the inverse before it serves.

    A record describes iteration k = 1, 2, ...:
      k, loss (h(theta_k), l2 included), error, lam (used in M), gamma (the chosen one),
      gamma_before (on entry), candidates [(gamma', q), ...], refreshed (was the inverse rebuilt),
      alpha, mu, predicted (M(delta) - M(0)), rho (NaN when lambda is not due), loss_after
      (h(theta_k + delta)), lam_after (for k+1), gradient [P], proposal (Delta) [P], delta [P],
      theta (theta_k) [P], theta_after (theta_{k+1}) [P], weights and weights_after (as matrices),
      A, G (the running moments, all pairs), preconditioner [P, P].
    """
    if T2 is not None and T2 % T3 != 0:
        raise ValueError("T2 must be a multiple of T3 (paper section 6.6)")
    net = dense.network(weights, activations, bias)
    x = torch.as_tensor(inputs).to(torch.float64)
    y = dense.as_targets(likelihood, targets, len(net.weights[-1]))
    x1, x2 = x[:stats_rows], x[:model_rows]
    omega1 = (19 / 20) ** (T1 or 0)
    omega2 = math.sqrt(19 / 20) ** (T2 or 0)
    low, high = gamma_bounds if gamma_bounds is not None else (math.sqrt(eta), 1.0)
    if not clip:
        low, high = 0.0, math.inf

    theta = dense.flatten(net.weights)
    previous = torch.zeros_like(theta)
    gamma = math.sqrt(lam + eta) if gamma is None else gamma
    A = G = inverse = None
    records: list[StepDict] = []
    kept: tuple | None = None  # step, moments and gammas of a refresh that comes later

    for k in range(1, steps + 1):
        net = dense.at(net, theta)
        z = dense.outputs(net, x)
        loss = dense.objective(net, likelihood, x, y, eta).item()
        g = dense.gradient(net, likelihood, x, y, eta)
        F = dense.fisher(net, likelihood, x2)

        # statistics first, so that this batch shapes its own inverse
        eps = dense.decay(k, decay_cap)
        A = blend(A, dense.moments_a(net, x1), eps)
        G = blend(G, dense.moments_g(net, likelihood, x1), eps)

        refresh = k % T3 == 0 or k <= burn_in
        search = T2 is not None and k % T2 == 0
        begins = refresh and spread > 1 and k > burn_in
        named = gamma_candidates(gamma, search and not begins, omega2, low, high)
        made_of = [(A, G, candidate) for candidate in named]
        if begins:
            refresh = False
        if kept is not None and k == kept[0] + spread - 1:
            refresh, (_, old_a, old_g, named) = True, kept
            made_of = [(old_a, old_g, candidate) for candidate in named]
            named = [gamma, *named[1:]]
            kept = None
        tried = []
        for candidate, origin in zip(named, made_of, strict=True):
            P = (
                approximations.preconditioner(*origin[:2], structure, origin[2], pi)
                if refresh
                else inverse
            )
            proposal = -(P @ g)
            directions = [proposal, previous] if momentum else [proposal]
            coeffs = quadratic.coefficients(directions, F, g, lam, eta)
            q = quadratic.predicted(directions, coeffs, g)
            tried.append((q, candidate, P, proposal, directions, coeffs))
        q, chosen, inverse, proposal, directions, coeffs = min(tried, key=lambda t: t[0])
        delta = quadratic.combine(directions, coeffs)

        moved = dense.at(net, theta + delta)
        loss_after = dense.objective(moved, likelihood, x, y, eta).item()
        rho, next_lam = math.nan, lam
        if T1 is not None and k % T1 == 0:
            rho = quadratic.reduction_ratio(loss, loss_after, q)
            next_lam = quadratic.adapt_lambda(lam, loss, loss_after, q, omega1)

        records.append(
            {
                "k": k,
                "loss": loss,
                "error": dense.error(likelihood, z, y),
                "lam": lam,
                "lam_after": next_lam,
                "gamma": chosen,
                "gamma_before": gamma,
                "candidates": [(t[1], t[0]) for t in tried],
                "refreshed": refresh,
                "alpha": coeffs[0],
                "mu": coeffs[1] if momentum else 0.0,
                "predicted": q,
                "rho": rho,
                "loss_after": loss_after,
                "gradient": g,
                "proposal": proposal,
                "delta": delta,
                "theta": theta,
                "theta_after": theta + delta,
                "weights": net.weights,
                "weights_after": moved.weights,
                "A": A,
                "G": G,
                "preconditioner": inverse,
            }
        )
        lam, gamma = next_lam, chosen
        if begins:
            kept = k, A, G, gamma_candidates(gamma, search, omega2, low, high)
        theta, previous = theta + delta, delta
    return records
