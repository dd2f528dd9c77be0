"""Outside of step() the model is as it was: passes, hooks and errors leave nothing behind."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch

import kfac_lab as kl
from optim.helpers import Branching, backward, classifier, data, exact

pytestmark = pytest.mark.filterwarnings("ignore:a batch of")


def test_dropout_and_batchnorm_in_the_statistics_pass_leave_no_trace() -> None:
    x, y = data()
    results = []
    for start in (1, 2):
        torch.manual_seed(0)
        model = Branching()
        pre = kl.Preconditioner(model, seed=6)
        torch.manual_seed(9)  # the loop's own masks
        backward(model, x, y)
        buffers = [b.clone() for b in model.buffers()]
        torch.manual_seed(start)
        state = torch.get_rng_state()
        pre.step()
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
        assert int(model.norm.num_batches_tracked) == 1
        results.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_hook_keeps_no_graph_and_goes_with_its_owner() -> None:
    x, y = data()
    model = classifier()
    pre = kl.Preconditioner(model)
    source = (x * 1.0).requires_grad_()
    batch = source * 2  # inputs with a graph of their own
    model(batch)
    (seen,) = pre._tap._seen
    assert not seen.requires_grad and seen.grad_fn is None and seen.data_ptr() == batch.data_ptr()
    for _ in range(100):
        model(x)  # a loop that never steps
    assert len(pre._tap._seen) == 64
    twin = copy.deepcopy(model)
    twin(x)
    (tap,) = twin._forward_pre_hooks.values()
    assert not tap._seen  # the copy has no Preconditioner to keep inputs for
    backward(model, x, y)
    pre.step()
    assert not pre._tap._seen
    pre.remove()
    pre.remove()
    assert not model._forward_pre_hooks and not model._forward_pre_hooks_with_kwargs
    backward(model, x, y)
    with pytest.raises(kl.RecipeError, match="no batch"):
        pre.step()
    kl.Preconditioner(model)
    gc.collect()
    assert not model._forward_pre_hooks


def test_outside_a_step_the_model_is_an_ordinary_module() -> None:
    x, y = data()
    model, plain = classifier(), classifier()
    kept = kl.Preconditioner(model)
    opt_model = classifier()
    opt = kl.KFAC(opt_model)
    assert torch.equal(model(x), plain(x)) and torch.equal(opt_model(x), plain(x))
    for a, b in zip(backward(model, x, y), backward(plain, x, y), strict=True):
        assert torch.equal(a, b)
    opt.step(x, y)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in opt_model.modules())
    assert kept.step_count == 0


def test_a_step_that_raises_gives_the_gradients_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data()
    model = classifier()
    pre = kl.Preconditioner(model, recipe=exact())
    backward(model, x, y)
    pre.step()
    saved = pre.state_dict()
    raw = backward(model, x, y)
    structure = type(pre._engine.parts["structure"])

    def broken(*args: Any) -> None:
        raise kl.NumericalError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(structure, "damped", broken)
        with pytest.raises(kl.NumericalError, match="injected"):
            pre.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), raw, strict=True))
    assert pre.step_count == 1
    pre.model(x)
    pre.step()
    after = [p.grad.clone() for p in model.parameters()]
    pre.load_state_dict(saved)
    backward(model, x, y)
    pre.step()
    for p, u in zip(model.parameters(), after, strict=True):
        assert torch.equal(p.grad, u)
