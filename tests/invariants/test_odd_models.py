"""Models that call, shape or make their parameters in unusual ways."""

from __future__ import annotations

import pytest
import torch
from devices import here
from torch import Tensor, nn

import kfac_lab as kl
from kfac_lab.core.state import DampingStrength


class Named(nn.Module):
    """Calls its layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        """By name."""
        return self.fc(input=x)  # type: ignore[no-any-return]


def problem(model: nn.Module, targets: Tensor, likelihood: str = "gaussian") -> kl.Problem:
    """Forty cases of five numbers."""
    torch.manual_seed(1)
    return kl.Problem(
        model=model, likelihood=likelihood, inputs=torch.randn(40, 5), targets=targets
    )


WHOLE = {
    "estimator": "sampled(fraction=1.0)",
    "quadratic_model": "exact_fisher(fraction=1.0)",
    "damping": "levenberg_marquardt(lam=1.0)",
    "batch": "constant(size=40)",
}


def test_a_layer_called_by_keyword_is_recorded() -> None:
    """Its inputs are found among the named arguments, and it trains as one called by position."""
    torch.manual_seed(0)
    named = Named()
    plain = nn.Sequential(nn.Linear(5, 3))
    plain[0].load_state_dict(named.fc.state_dict())
    targets = torch.randn(40, 3)
    recipe = kl.Recipe.named("paper").replace(**WHOLE)
    a = kl.Run(problem(named, targets), recipe).advance(6)
    b = kl.Run(problem(plain, targets), recipe).advance(6)
    assert a.history["loss"][-1] == pytest.approx(b.history["loss"][-1], rel=1e-5)
    assert a.history["loss"][-1] < a.history["loss"][0]


@pytest.mark.parametrize("estimator", ["sampled(fraction=1.0)", "exact(fraction=1.0)"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_one_number_per_case(estimator: str, likelihood: str) -> None:
    """Outputs ``[N]`` are outputs ``[N, 1]``: the same losses, step by step."""
    losses = []
    for flat in (True, False):
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)]
        targets = (torch.arange(40) % 2).float()
        if flat:
            layers.append(nn.Flatten(0))
        else:
            targets = targets[:, None]
        recipe = kl.Recipe.named("paper").replace(**{**WHOLE, "estimator": estimator})
        run = kl.Run(problem(nn.Sequential(*layers), targets, likelihood), recipe).advance(5)
        losses.append(list(run.history["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_parameter_made_anew_at_every_call_is_nobodys_layer() -> None:
    """Weight norm's weight is no parameter; what it is made of is listed as unclaimed."""
    with pytest.warns(FutureWarning):
        normed = nn.utils.weight_norm(nn.Linear(5, 3))
    with pytest.raises(kl.CoverageError, match="weight_g"):
        kl.Run(problem(nn.Sequential(normed), torch.randn(40, 3)))
    run = kl.Run(
        problem(nn.Sequential(normed), torch.randn(40, 3)),
        kl.Recipe.named("paper").replace(fallback="diagonal", **WHOLE),
    ).advance(5)
    assert run.history["loss"][-1] < run.history["loss"][0]


def test_a_diagonal_block_swapped_in_late_starts_as_a_running_mean() -> None:
    """Its curvature has the size it would have had from the start, not a twentieth."""
    early = kl.Run("digits", kl.Recipe.named("paper").replace(block="diagonal"), device=here())
    late = kl.Run("digits", device=here()).advance(40).swap(block="diagonal").advance(1)
    early.advance(1)
    for part_state, fresh in zip(
        late.stepper.state_.block_states, early.stepper.state_.block_states, strict=True
    ):
        ratio = float(part_state["curvature"].mean() / fresh["curvature"].mean())
        assert 0.2 < ratio < 5


class Silent:
    """A damping by an outsider that does not say whether it follows ρ."""

    def init(self, problem: kl.Problem) -> tuple[DampingStrength, dict[str, float]]:
        """Fixed."""
        return DampingStrength(1.0, 1.0), {}

    def candidates(self, strength: DampingStrength, due: object) -> tuple[DampingStrength, ...]:
        """The one."""
        return (strength,)

    def adapt(
        self, strength: DampingStrength, part_state: object, record: object
    ) -> tuple[DampingStrength, object]:
        """Nothing."""
        return strength, part_state


def test_adaptation_without_ground_is_said_for_outsiders_too() -> None:
    """λ's rule may follow ρ unless it says that it does not."""
    recipe = kl.Recipe.named("small_batch").replace(damping=Silent())
    with pytest.warns(UserWarning, match="λ and γ stay where they are"):
        kl.Run("digits", recipe, device=here()).advance(5)
