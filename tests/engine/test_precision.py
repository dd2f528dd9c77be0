"""Float32 products are full inside a step whatever the process says; tf32 is a switch."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from devices import here
from torch import Tensor, nn

import kfac_lab as kl
from kfac_lab.paper.kronecker import Kronecker


@pytest.mark.parametrize(("tf32", "inside"), [(False, "highest"), (True, "high")])
def test_a_step_sets_the_precision_and_puts_it_back(
    tf32: bool, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from inside the step's own pass; the process's setting survives."""
    run = kl.Run("digits", seed=0, device=here(), tf32=tf32)
    seen = []
    likelihood = type(run.problem.likelihood)
    plain = likelihood.loss

    def looking(self, outputs, targets):  # type: ignore[no-untyped-def]
        seen.append(torch.get_float32_matmul_precision())
        return plain(self, outputs, targets)

    monkeypatch.setattr(likelihood, "loss", looking)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        run.step_once()
        assert set(seen) == {inside}
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_forks_and_other_methods() -> None:
    """A fork keeps the switch; a method without it says so."""
    run = kl.Run("digits", device=here(), tf32=True).advance(1)
    assert run.fork().stepper.tf32
    with pytest.raises(kl.RecipeError, match="tf32"):
        kl.Run("digits", recipe="adam", device=here(), tf32=True)


def test_a_preconditioner_has_full_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics and inverses, whatever the loop around them has set."""
    seen, work = [], Kronecker.factorise

    def factorise(self, moments, part_state):  # type: ignore[no-untyped-def]
        seen.append(torch.get_float32_matmul_precision())
        return work(self, moments, part_state)

    monkeypatch.setattr(Kronecker, "factorise", factorise)
    model = nn.Linear(4, 2)
    pre = kl.Preconditioner(model)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.arange(8) % 2).backward()
        pre.step()
        assert seen == ["highest"]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_run_inside_autocast_is_the_run_outside() -> None:
    def end(context: Any) -> list[Tensor]:
        run = kl.Run("digits", recipe="small_batch", seed=0)
        with context:
            run.advance(3)
        return [p.detach().clone() for p in run.problem.model.parameters()]

    inside = end(torch.autocast("cpu", dtype=torch.bfloat16))
    assert all(map(torch.equal, inside, end(contextlib.nullcontext())))


def test_lambda_that_goes_by_the_step_moves_in_a_preconditioner_too() -> None:
    recipe = kl.Recipe.named("small_batch").replace(
        damping="scheduled(lam=1.0, lam_end=0.01, steps=10)",
        schedule="every_step",
    )
    found = []
    for face in (kl.KFAC, kl.Preconditioner):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4))
        x, y = torch.randn(32, 6), torch.randint(4, (32,))
        opt = face(model, "categorical", recipe=recipe, seed=0)
        lams = []
        for _ in range(6):
            if face is kl.KFAC:
                record = opt.step(x, y)
            else:
                model.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                record = opt.step()
            lams.append(float(record.lam))
        found.append(lams)
    assert found[0] == pytest.approx(found[1])
    assert found[0][-1] < 0.3 * found[0][0]
