"""The γ of a step's record is the one that the inverse in use was built with."""

import pytest

from kfac_lab import Recipe, Run


def built(inverse):
    """γ of a Kronecker inverse: √(πγ · γ/π)."""
    return float((inverse.A_shift * inverse.G_shift).sqrt())


@pytest.mark.parametrize("graphs", [False, True], ids=["calls", "programs"])
@pytest.mark.parametrize(
    ("schedule", "damping"),
    [
        ("periodic(T1=2, T2=8, T3=8, burn_in=2)", "tied(lam=10.0)"),
        ("periodic(T1=2, T2=8, T3=8, burn_in=2)", "levenberg_marquardt(lam=10.0)"),
        ("staggered(T1=2, T2=8, T3=8, burn_in=2, spread=4)", "tied(lam=10.0)"),
    ],
)
def test_the_gamma_recorded_is_that_of_the_inverse_in_use(schedule, damping, graphs):
    """λ moves between two refreshes, and a tied γ with it; the inverse stays as it was built."""
    recipe = Recipe.named("paper").replace(
        schedule=schedule, damping=damping, batch="constant(size=60)"
    )
    run = Run("digits", recipe, seed=0, graphs=graphs)
    other = 0
    for _ in range(24):
        record = run.step_once()
        state = run.stepper.state_
        used = built(state.inverse.inverses[0])
        assert float(record.gamma) == pytest.approx(used, rel=1e-9)
        assert any(float(gamma) == float(record.gamma) for _, gamma, _ in record.candidates)
        other += abs(float(state.strength.gamma) / used - 1) > 1e-3
    assert (other > 5) == ("tied" in damping)
    assert not graphs or run.stepper.programs.replayed > 5
