"""The recipe ``ekfac``: the paper's, with this block.

``T_scale=1`` builds the inverse from the latest scales at every step, and the eigenbases every T3.
The damping is the plain Tikhonov kind, S + λ + η (section 6.3), which needs no γ of its own: so γ
is tied to λ + η and not searched.
"""

from __future__ import annotations

__all__ = ["EKFAC"]

EKFAC = """
estimator = sampled(fraction=0.125)
block = ekfac
structure = block_diagonal
quadratic_model = exact_fisher(fraction=0.25)
damping = tied(lam=150.0)
momentum = optimal
schedule = periodic(T1=5, T2=20, T3=20, burn_in=3, T_scale=1)
batch = exponential(start=1000, full_at=500)
average = polyak(xi=0.99)
collective = single_process
"""
