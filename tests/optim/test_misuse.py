"""What KFAC and Preconditioner refuse: one sentence each, and nothing has changed."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from devices import here
from torch import Tensor, nn
from torch.nn import functional

import kfac_lab as kl
from optim.helpers import Branching, backward, classifier, data, exact, parameters, same

pytestmark = pytest.mark.filterwarnings("ignore:a batch of")


# ---- KFAC ----------------------------------------------------------------------------------------


def misuses() -> dict[str, tuple[Any, str]]:
    x, y = data()
    return {
        "step()": (lambda o: o.step(), r"needs the batch, opt.step\(inputs, targets\)"),
        "inputs alone": (lambda o: o.step(x), "needs the batch"),
        "closure": (lambda o: o.step(lambda: 0.0), "takes a batch.*not a closure"),
        "closure=": (lambda o: o.step(closure=lambda: 0.0), "takes a batch.*not a closure"),
        "group": (
            lambda o: o.add_param_group({"params": [nn.Parameter(x)]}),
            "one parameter group",
        ),
        "array": (lambda o: o.step(x.cpu().numpy(), y), "takes tensors, and inputs is a ndarray"),
        "dict": (lambda o: o.step(x, {"y": y}), "targets are a dict, and the likelihood takes one"),
        "number": (lambda o: o.step(x[0, 0], y), "inputs is one number without cases"),
        "lengths": (lambda o: o.step(x, y[:9]), "60 inputs came with 9 targets"),
        "empty": (lambda o: o.step(x[:0], y[:0]), "the batch is empty"),
        "device": (
            lambda o: o.step(x.to("meta"), y),
            f"inputs are on meta and the model is on {here()}",
        ),
        "rate": (lambda o: o.param_groups[0].update(lr=-1.0) or o.step(x, y), "lr=-1 must be at"),
        "copy": (lambda o: copy.deepcopy(o), "neither copied nor pickled"),
        "method": (lambda o: o.swap(method="adam"), "another method is another optimiser"),
        "batch": (lambda o: o.swap(batch="constant"), "batches that you hand it"),
        "nothing": (lambda o: o.swap(), "swap takes slots"),
        "part": (lambda o: o.swap(damping="tide"), "tied"),
    }


@pytest.mark.parametrize("name", misuses())
@pytest.mark.parametrize("stepped", [False, True])
def test_misuse_is_one_sentence_and_changes_nothing(name: str, stepped: bool) -> None:
    x, y = data()
    model = classifier()
    opt = kl.KFAC(model)
    if stepped:
        opt.step(x, y)
    before, count = parameters(model), opt.step_count
    call, words = misuses()[name]
    with pytest.raises((kl.RecipeError, kl.DataError), match=words) as caught:
        call(opt)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(model), strict=True))
    assert opt.step_count == count == len(opt.history) and not opt.history.marks
    opt.param_groups[0]["lr"] = 1.0
    opt.step(x, y)


def test_making_one_wrongly_is_one_sentence() -> None:
    model = classifier()
    for call, words in (
        (lambda: kl.KFAC(model.parameters()), "takes the model itself"),
        (lambda: kl.KFAC(list(model.parameters())), "takes the model itself"),
        (lambda: kl.Preconditioner(model.parameters()), "takes the model itself"),
        (lambda: kl.KFAC(model, recipe="adam"), "the recipe's is 'adam'"),
        (lambda: kl.Preconditioner(model, recipe="nag"), "the recipe's is 'nag'"),
        (lambda: kl.KFAC(nn.DataParallel(model)), "DataParallel"),
        (lambda: kl.Preconditioner(nn.DataParallel(model)), "DataParallel"),
        (lambda: kl.KFAC(model, l2=-1.0), "l2=-1.0 must be at least 0"),
        (lambda: kl.KFAC(model, lr=math.nan), "lr=nan"),
        (lambda: kl.Preconditioner(model, kl_clip=0.0), "kl_clip"),
    ):
        with pytest.raises(kl.RecipeError, match=words):
            call()
    assert not model._forward_pre_hooks


def test_gradscaler_is_told_off_before_it_looks() -> None:
    x, y = data()
    model = classifier()
    opt = kl.KFAC(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(functional.cross_entropy(model(x), y)).backward()
    before = parameters(model)
    with pytest.raises(kl.RecipeError, match="no use for a GradScaler"):
        scaler.step(opt)
    with pytest.raises(kl.RecipeError, match="no use for a GradScaler"):
        scaler.step(opt, x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(model), strict=True))
    torch.amp.GradScaler("cpu", enabled=False).step(opt, x, y)
    assert opt.step_count == 1


@pytest.mark.parametrize("when", [1, 4])
def test_nan_inputs_are_an_error_and_the_step_has_not_happened(when: int) -> None:
    x, y = data()
    bad = x.clone()
    bad[3, 2] = math.nan
    model, calm = Branching(), Branching()
    calm.load_state_dict(model.state_dict())
    opt, other = kl.KFAC(model), kl.KFAC(calm)
    for k in range(1, 7):
        if k == when:
            before = copy.deepcopy(model.state_dict())
            with pytest.raises(kl.NumericalError, match=f"step {k}: .* has not happened"):
                opt.step(bad, y)
            after = model.state_dict()
            assert all(torch.equal(before[n], after[n]) for n in before)
        opt.step(x, y)
        other.step(x, y)
    assert same(model, calm)


# ---- Preconditioner ------------------------------------------------------------------------------


def test_empirical_asks_for_labels() -> None:
    x, y = data(30, dtype=torch.float64)
    model = classifier(torch.float64)
    pre = kl.Preconditioner(model, recipe=exact(estimator="empirical(fraction=0.5)"))
    backward(model, x, y)
    pre._tap.rows = None  # as where the rows of the backward are not to be had
    with pytest.raises(kl.RecipeError, match="Empirical asks for labels"):
        pre.step()
    backward(model, x, y)
    with pytest.raises(kl.RecipeError, match="9 rows, and the model has seen 30 cases"):
        pre.step(targets=y[:9])
    assert pre.step_count == 0
    pre.step(targets=y)
    rows = kl.core.seeds.permutation(0, "rows", 1, 30)[:15]
    p = torch.softmax(model(x[rows]).detach(), 1)
    g = p - functional.one_hot(y[rows], 3)
    store = pre._engine.store
    assert store is not None
    torch.testing.assert_close(store.current["G", 2, 2], g.T @ g / 15)


def test_missing_gradients() -> None:
    x, y = data()
    model = classifier()
    pre = kl.Preconditioner(model)
    model(x)
    with pytest.raises(kl.RecipeError, match=r"call loss.backward\(\) before pre.step"):
        pre.step()
    backward(model, x, y)
    model[2].weight.grad = None
    raw = model[0].weight.grad.clone()
    pre.step()
    assert model[2].weight.grad is None and not torch.equal(model[0].weight.grad, raw)


def test_models_of_several_inputs_are_told_what_to_do() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.inner(x) * scale

    x, y = data()
    model = Pair()
    pre = kl.Preconditioner(model)
    functional.cross_entropy(model(x), y).backward()
    model(x, scale=x[:1, :1])  # a tensor that is not of the cases
    with pytest.raises(kl.RecipeError, match=r"tensors of cases.*Pair\(Tensor, scale=…\)"):
        pre.step()


def test_unclaimed_parameters_need_a_fallback() -> None:
    x, y = data()

    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))

    with pytest.raises(kl.CoverageError, match="LayerNorm"):
        kl.Preconditioner(made())
    model = made()
    pre = kl.Preconditioner(model, recipe=exact().replace(fallback="diagonal"))
    raw = backward(model, x, y)
    pre.step()
    changed = [not torch.equal(p.grad, g) for p, g in zip(model.parameters(), raw, strict=True)]
    assert all(changed) and len(pre.coverage()) == 6


@pytest.mark.parametrize("face", ["kfac", "preconditioner", "run"])
def test_a_step_in_inference_mode_is_told_and_has_not_happened(face: str) -> None:
    x, y = data()
    model = classifier()
    opt = kl.KFAC(model) if face == "kfac" else kl.Preconditioner(model)
    problem = kl.Problem(model=model, likelihood="categorical", inputs=x, targets=y)
    run = kl.Run(problem, kl.Recipe.named("robust").replace(batch="constant(size=60)"))
    functional.cross_entropy(model(x), y).backward()
    step = {"kfac": lambda: opt.step(x, y), "preconditioner": opt.step, "run": run.advance}[face]
    before = [*parameters(model), *(p.grad.clone() for p in model.parameters())]
    with torch.inference_mode(), pytest.raises(kl.RecipeError, match=r"inference_mode\(\) rules"):
        step()
    after = [*parameters(model), *(p.grad for p in model.parameters())]
    assert all(map(torch.equal, before, after))
    assert run.step == opt.step_count == 0
    step()


def test_an_empty_batch_is_told_and_the_loop_may_go_on() -> None:
    x, y = data()
    model = classifier()
    pre = kl.Preconditioner(model, recipe=exact())
    backward(model, x, y)
    pre.step()
    backward(model, x[:0], y[:0])
    before = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(kl.RecipeError, match="called with no cases: leave out the step"):
        pre.step()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))
    backward(model, x, y)
    assert pre.step().step == pre.step_count == 2
    backward(model, x[:0], y[:0])  # a micro-batch without cases beside others
    (functional.cross_entropy(model(x), y)).backward()
    assert pre.step().step == 3
