"""Run.evaluate at θ, at the average and at the best point, in chunks and not."""

import pytest
import torch
from invariants.helpers import cases, problem_of, recipe_of, run_of, same, same_run
from torch.utils.data import TensorDataset

import kfac_lab as kl
from kfac_lab.run import evaluation

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


def by_hand(run, split, theta=None):
    """Loss and error in float64, all cases at once."""
    problem = run.problem
    part = problem.test if split == "test" else problem
    model = problem.model.eval()
    names = run.stepper.names
    values = dict(zip(names, theta, strict=True)) if theta is not None else {}
    with torch.no_grad():
        z = torch.func.functional_call(model, values, (part.inputs,))
    model.train()
    squares = [(values.get(n, p).detach().double() ** 2).sum() for n, p in model.named_parameters()]
    likelihood = problem.likelihood
    loss = likelihood.loss(z, part.targets).double().mean()
    loss = loss + 0.5 * problem.l2 * sum(squares)
    return float(loss), float(likelihood.error(z, part.targets).double().mean())


@pytest.fixture
def scored():
    x, y = cases(40)
    problem = problem_of(inputs=x[:24], targets=y[:24], test=(x[24:], y[24:]))
    return kl.Run(problem, recipe_of(), device="cpu").advance(6)


@pytest.mark.parametrize("split", ["train", "test"])
def test_evaluate_at_theta_average_and_best(scored, split):
    theta, average = scored.evaluate(split), scored.evaluate(split, at="average")
    loss, error = by_hand(scored, split)
    assert (theta.loss, theta.error) == pytest.approx((loss, error), rel=1e-6)
    loss, error = by_hand(scored, split, scored.stepper.average())
    assert (average.loss, average.error) == pytest.approx((loss, error), rel=1e-6)
    assert theta.error != average.error
    best = scored.evaluate(split, at="best")
    smaller = min((theta, average), key=lambda s: s.error)
    assert (best.loss, best.error) == (smaller.loss, smaller.error)
    assert float(best) == best.error and best < 1e9  # a number
    assert (best.split, best.at, best.step) == (split, "best", 6)
    kept = scored.history.evaluations
    assert [e["at"] for e in kept] == ["theta", "average", "best"]
    assert all(e["split"] == split and e["step"] == 6 for e in kept)


@pytest.mark.parametrize("at", ["theta", "average", "best"])
def test_chunked_is_unchunked(scored, at, monkeypatch):
    whole = scored.evaluate("train", at=at)
    for chunk in (1, 7, 23, 24):
        monkeypatch.setattr(evaluation, "CHUNK", chunk)
        part = scored.evaluate("train", at=at)
        assert (part.loss, part.error) == pytest.approx((whole.loss, whole.error), rel=1e-6)


def test_evaluate_some_cases(scored):
    some = scored.evaluate("train", cases=5)
    with torch.no_grad():
        z = scored.problem.model(scored.problem.inputs[:5])
    error = scored.problem.likelihood.error(z, scored.problem.targets[:5]).mean()
    assert some.error == pytest.approx(float(error), rel=1e-5)
    assert scored.evaluate("train", cases=10**6).error == scored.evaluate("train").error
    with pytest.raises(kl.RecipeError, match="at least 1"):
        scored.evaluate("train", cases=0)


def test_an_evaluation_leaves_the_run_alone():
    run, twin = run_of("generic"), run_of("generic")
    run.advance(3)
    twin.advance(3)
    modes = [m.training for m in run.problem.model.modules()]
    buffers = {n: b.clone() for n, b in run.problem.model.named_buffers()}
    first = run.evaluate("train", at="best")
    assert run.evaluate("train", at="best") == first  # no dropout in it
    assert [m.training for m in run.problem.model.modules()] == modes
    same(buffers, dict(run.problem.model.named_buffers()))
    same_run(run.advance(2), twin.advance(2))


def test_classes_are_scored_in_percent_wrong():
    run = kl.Run("digits_classifier", "adam", device="cpu").advance(20)
    score = run.evaluate("test")
    problem = run.problem
    with torch.no_grad():
        wrong = (problem.model(problem.test.inputs).argmax(-1) != problem.test.targets).double()
    assert score == pytest.approx(100 * float(wrong.mean()), rel=1e-6)


def test_without_an_average_best_is_theta():
    run = run_of(average="none").advance(2)
    assert run.evaluate("train", at="best") == run.evaluate("train", at="theta")
    with pytest.raises(kl.RecipeError, match="keeps no average"):
        run.evaluate("train", at="average")


def test_what_cannot_be_evaluated_says_so():
    run = run_of()
    with pytest.raises(kl.RecipeError, match="use 'train' or 'test'"):
        run.evaluate("validation")
    with pytest.raises(kl.RecipeError, match="'theta', 'average' or 'best'"):
        run.evaluate("train", at="last")
    with pytest.raises(kl.RecipeError, match=r"no test cases: give test=Split"):
        run.evaluate("test")
    assert run.history.evaluations == []


def test_a_callable_has_no_train_set():
    x, y = cases(40)
    problem = problem_of(data=lambda step, size: (x[:size], y[:size]), test=(x[24:], y[24:]))
    assert problem.inputs is None and problem.targets is None
    run = kl.Run(problem, recipe_of(), device="cpu").advance(3)
    with pytest.raises(kl.RecipeError, match=r"no train set .*evaluate.'test'"):
        run.evaluate("train")
    assert run.evaluate("test").error == pytest.approx(by_hand(run, "test")[1], rel=1e-6)


def test_a_dataset_is_what_its_tensors_are():
    x, y = cases()
    run = kl.Run(problem_of(data=TensorDataset(x, y)), recipe_of(), device="cpu").advance(4)
    twin = kl.Run(problem_of(), recipe_of(), device="cpu").advance(4)
    same(dict(run.problem.model.state_dict()), dict(twin.problem.model.state_dict()))
    assert run.problem.inputs is None and run.problem.available == 24
    assert run.evaluate("train") == pytest.approx(twin.evaluate("train"), rel=1e-6)
