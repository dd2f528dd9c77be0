"""Float32 products are full inside a step whatever the process says; tf32 is a switch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.paper.kronecker import Kronecker


@pytest.mark.parametrize(("tf32", "inside"), [(False, "highest"), (True, "high")])
def test_a_step_sets_the_precision_and_puts_it_back(
    tf32: bool, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from inside the step's own pass; the process's setting survives."""
    run = kl.Run("digits", seed=0, device="cpu", tf32=tf32)
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
    run = kl.Run("digits", device="cpu", tf32=True).advance(1)
    assert run.fork().stepper.tf32
    with pytest.raises(kl.RecipeError, match="tf32"):
        kl.Run("digits", recipe="adam", device="cpu", tf32=True)


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
