"""Plain numbers: batch sizes, averaging and the baseline's momentum (paper section 13)."""

from __future__ import annotations

import math
from fractions import Fraction

from torch import Tensor


def batch_size(k: int, available: int, first: int = 1000, full_at: int = 500) -> int:
    """m_k for k = 1, 2, ...: floor(first (available/first)^((k-1)/(full_at-1))) (section 13).

    The floor is exact: m is the largest integer with m^(full_at-1) <= the power, in integers.
    """
    if available <= first or k >= full_at:
        return available
    guess = int(first * (available / first) ** ((k - 1) / (full_at - 1)))

    def fits(m: int) -> bool:
        return Fraction(m, first) ** (full_at - 1) <= Fraction(available, first) ** (k - 1)

    return max(m for m in (guess - 1, guess, guess + 1) if fits(m))


def polyak_weight(k: int, start: int = 200, xi: float = 0.99) -> float:
    """xi_k = min(1 - 1/(k - start + 1), xi) from k = start on, 0 before (paper section 13)."""
    return 0.0 if k < start else min(1 - 1 / (k - start + 1), xi)


def polyak_path(thetas: list[Tensor], start: int = 200, xi: float = 0.99) -> list[Tensor]:
    """Running averages of the iterates theta_1, theta_2, ... (paper section 13)."""
    average, result = thetas[0], []
    for k, theta in enumerate(thetas, start=1):
        weight = polyak_weight(k, start, xi)
        average = weight * average + (1 - weight) * theta
        result.append(average)
    return result


def nesterov_mu(t: int, mu_max: float) -> float:
    """mu_t = min(1 - 2^(-1 - log2(floor(t/250) + 1)), mu_max) (paper section 13)."""
    return min(1 - 2.0 ** (-1 - math.log2(t // 250 + 1)), mu_max)


def nesterov_path(theta: Tensor, gradient, rate: float, mu_max: float, steps: int) -> list[Tensor]:
    """theta_0, ..., theta_steps of v <- mu v - rate grad(theta + mu v), theta <- theta + v."""
    velocity, path = theta * 0, [theta]
    for t in range(steps):
        mu = nesterov_mu(t, mu_max)
        velocity = mu * velocity - rate * gradient(theta + mu * velocity)
        theta = theta + velocity
        path.append(theta)
    return path
