"""Swapping parts of a Preconditioner in mid-run."""

from __future__ import annotations

import pytest
import torch

import kfac_lab as kl

pytestmark = pytest.mark.filterwarnings("ignore:a batch of")


def _loop_of(recipe="small_batch", swaps=None, steps=4, seed=0):
    """An ordinary loop; ``swaps``: step → parts. The gradients that SGD was given, step by step."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    ).double()
    x, y = torch.randn(40, 6).double(), torch.randint(0, 3, (40,))
    pre = kl.Preconditioner(model, likelihood="categorical", recipe=recipe)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    made = []
    for k in range(steps):
        if k in (swaps or {}):
            assert pre.swap(**swaps[k]) is pre
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        pre.step()
        made.append([p.grad.clone() for p in model.parameters()])
        sgd.step()
    return pre, made


def _same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "parts",
    [
        {"structure": "block_tridiagonal"},
        {"damping": "constant(lam=0.5, gamma=0.7)"},
        {"estimator": "empirical"},
        {"block": "diagonal"},
    ],
)
def test_swapped_before_the_first_step_it_is_one_that_was_made_so(parts) -> None:
    _, before = _loop_of()
    _, expected = _loop_of(kl.Recipe.named("small_batch").replace(**parts))
    swapped, found = _loop_of(swaps={0: parts})
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert not _same(before[-1], found[-1]), "the part makes a difference"
    assert [(m.step, set(m.parts)) for m in swapped.history.marks] == [(0, set(parts))]


def test_a_swap_later_keeps_moments_and_count_and_takes_effect_at_once() -> None:
    plain, before = _loop_of(steps=6)
    pre, found = _loop_of(swaps={3: {"structure": "block_tridiagonal"}}, steps=6)
    assert all(_same(a, b) for a, b in zip(found[:3], before[:3], strict=True))
    assert not _same(found[3], before[3]) and pre.step_count == 6
    assert pre.recipe.text_of("structure") == "block_tridiagonal"
    lam = float(plain.history["lam"][-1])
    kept, _ = _loop_of(swaps={3: {"damping": "constant"}}, steps=6)
    assert float(kept.history["lam"][-1]) == lam, "λ is kept unless it is named"


def test_a_swap_that_cannot_be_changes_nothing() -> None:
    pre, _ = _loop_of()
    before = (pre.recipe, len(pre.history.marks), pre._engine.held)
    for parts, why in (
        ({"momentum": "none"}, "a Preconditioner uses"),
        ({"structure": "nothing"}, "there is no structure"),
        ({"layers": ("a",)}, "layers are claimed"),
        ({}, "swap takes slots"),
    ):
        with pytest.raises(kl.RecipeError, match=why):
            pre.swap(**parts)
    pre.model(torch.randn(40, 6).double())
    with pytest.raises(kl.RecipeError, match=r"swap right after pre\.step"):
        pre.swap(estimator="empirical")
    assert (pre.recipe, len(pre.history.marks), pre._engine.held) == before


def test_an_interrupt_in_a_swap_leaves_all_of_it_or_nothing(monkeypatch) -> None:
    pre, _ = _loop_of()
    before = pre.recipe

    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(pre._engine), "swap", fails)
    with pytest.raises(KeyboardInterrupt):
        pre.swap(structure="block_tridiagonal")
    assert pre.recipe is before and not pre.history.marks
