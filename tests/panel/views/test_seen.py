"""seen(run): copies taken between two steps, which disturb nothing."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.errors import KfacLabError
from kfac_lab.panel.views import seen
from kfac_lab.panel.views.seen import WANTS, image_shape


def small(**changes):
    return kl.Recipe.named("paper").replace(batch="constant(size=500)", **changes)


def tensors(value, path="state"):
    """Every tensor and number in a nested state, with where it is."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors(inner, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for n, inner in enumerate(value):
            yield from tensors(inner, f"{path}.{n}")
    else:
        yield path, value


def test_looking_changes_nothing() -> None:
    """A run that is looked at after each step ends bit for bit where its twin does."""
    watched = kl.Run("digits", recipe=small(structure="block_tridiagonal"), seed=3)
    twin = kl.Run("digits", recipe=small(structure="block_tridiagonal"), seed=3)
    before = torch.random.get_rng_state()
    for _ in range(8):
        seen(watched)
        watched.advance(1)
    twin.advance(8)
    engine = twin.stepper
    seconds = watched.stepper.seconds
    engine.held = replace(engine.held, state=replace(engine.state_, seconds=seconds))
    assert torch.equal(before, torch.random.get_rng_state())
    assert watched.problem.model.training == twin.problem.model.training
    found = dict(tensors(watched.stepper.state()))
    expected = dict(tensors(twin.stepper.state()))
    assert found.keys() == expected.keys() and len(found) > 50
    for path, value in expected.items():
        if torch.is_tensor(value):
            assert torch.equal(value, found[path]), path
        else:  # a NaN is what nobody has measured yet
            assert value == found[path] or (value != value and found[path] != found[path]), path


def test_what_was_seen_stays_while_the_run_goes_on() -> None:
    run = kl.Run("digits", recipe=small(), seed=0).advance(3)
    glance = seen(run)
    kept = [f.matrix.clone() for f in glance.factors]
    images, filters = glance.images.outputs.clone(), glance.filters.clone()
    applied = glance.preconditioner.apply(
        kl.Vec([torch.ones(s.d_out, s.d_in) for s in glance.layers])
    )
    run.advance(25)
    assert glance.step == 3
    assert all(torch.equal(a, f.matrix) for a, f in zip(kept, glance.factors, strict=True))
    assert torch.equal(images, glance.images.outputs) and torch.equal(filters, glance.filters)
    again = glance.preconditioner.apply(
        kl.Vec([torch.ones(s.d_out, s.d_in) for s in glance.layers])
    )
    assert all(map(torch.equal, applied, again))
    now = seen(run)
    assert not torch.equal(kept[0], now.factors[0].matrix) and not torch.equal(
        images, now.images.outputs
    )


def test_only_what_is_wanted_is_taken() -> None:
    run = kl.Run("digits", recipe=small(), seed=0).advance(1)
    parts = ("factors", "preconditioner", "images", "filters")
    for want, part in zip(WANTS, parts, strict=True):
        glance = seen(run, [want])
        assert [p for p in parts if getattr(glance, p) not in (None, ())] == [part]
    assert [s.path for s in seen(run, ()).layers] == [row.layer for row in run.coverage()[::2]]
    with pytest.raises(KfacLabError, match="seen by 'factor': use factors, inverse"):
        seen(run, ["factor"])


def test_the_factors_are_the_ledgers_moments_and_the_shifts_those_in_use() -> None:
    run = kl.Run("digits", recipe=small(), seed=0).advance(7)
    glance = seen(run, ["factors"])
    assert [(f.path, f.letter) for f in glance.factors] == [
        (layer.path, letter) for layer in glance.layers for letter in ("Ā", "G")
    ]
    gamma = float(run.history["gamma"][-1])
    for i, shape in enumerate(glance.layers):
        A, G = glance.factors[2 * i], glance.factors[2 * i + 1]
        assert A.matrix.shape == (shape.d_in, shape.d_in)
        assert G.matrix.shape == (shape.d_out, shape.d_out)
        assert torch.equal(A.matrix, run.stepper.store.current["A", i, i])
        assert torch.equal(G.matrix, run.stepper.store.current["G", i, i])
        assert A.shift * G.shift == pytest.approx(gamma**2, rel=1e-6)  # πγ · γ/π


def test_blocks_without_factors_give_diagonals_or_say_so() -> None:
    run = kl.Run("digits", recipe=small(block="kronecker(factor_a='diagonal')"), seed=0).advance(1)
    A, G = seen(run, ["factors"]).factors[:2]
    assert A.matrix.shape == (65,) and G.matrix.shape == (32, 32)
    run = kl.Run("digits", recipe=small(block="identity"), seed=0).advance(1)
    assert "keep no second moments" in seen(run, ["factors"]).why("factors")


def test_it_waits_for_the_step_that_is_being_made() -> None:
    run = kl.Run("digits", recipe=small(), seed=0).advance(1)
    found = []
    with run._lock:  # as a step holds it
        looker = threading.Thread(target=lambda: found.append(seen(run, ["filters"])))
        looker.start()
        time.sleep(0.05)
        assert not found
    looker.join(10)
    assert found[0].step == 1


def test_reasons_are_given_for_what_is_not_there() -> None:
    adam = kl.Run("digits_classifier", recipe="adam", seed=0)
    glance = seen(adam)
    assert glance.why("factors") == glance.why("inverse") == "the method adam keeps no curvature"
    assert "no autoencoder" in glance.why("images")
    assert glance.unit == "% wrong" and glance.band is None and glance.layers == ()
    assert glance.filters.shape == (32, 8, 8)
    fresh = seen(kl.Run("digits", recipe=small(), seed=0))
    assert fresh.why("factors") == "the first step has not been made yet"
    assert fresh.images is not None


def test_a_model_that_cannot_be_called_costs_the_images_alone() -> None:
    class Moody(nn.Linear):
        def forward(self, x):
            if not self.training:
                raise ValueError("not now")
            return super().forward(x)

    model = nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 9))
    inputs = torch.rand(40, 9)
    problem = kl.Problem(model=model, likelihood="gaussian", inputs=inputs, targets=inputs)
    run = kl.Run(problem, recipe=small())
    model[0].__class__ = Moody
    glance = seen(run)
    assert "ValueError: not now" in glance.why("images") and glance.images is None
    assert glance.filters is not None and all(m.training for m in model.modules())


def test_training_cases_serve_where_none_are_held_out() -> None:
    model = nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 9))
    inputs = torch.rand(40, 9)
    problem = kl.Problem(model=model, likelihood="bernoulli", inputs=inputs, targets=inputs.clone())
    images = seen(kl.Run(problem, recipe=small())).images
    assert not images.held_out and images.originals.shape == (8, 3, 3)
    assert torch.equal(images.originals.flatten(1), inputs[:8])
    expected = torch.sigmoid(model(inputs[:8])).detach()
    assert torch.equal(images.outputs.flatten(1), expected)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((64,), (8, 8)), ((625,), (25, 25)), ((10,), None), ((4,), None), ((5, 7), (5, 7)),
     ((3, 5, 7), (5, 7)), ((1, 9), None), ((), None), ((2, 2, 2, 2), None)],
)  # fmt: skip
def test_which_cases_are_images(shape, expected) -> None:
    assert image_shape(shape) == expected


def test_an_inverse_on_an_accelerator_comes_to_the_cpu(cuda) -> None:
    run = kl.Run("digits", recipe=small(structure="block_tridiagonal"), device="cuda").advance(3)
    glance = seen(run)
    vector = kl.Vec([torch.ones(s.d_out, s.d_in) for s in glance.layers])
    there = run.stepper.state_.inverse.apply(kl.Vec([m.to(cuda) for m in vector]))
    for mine, theirs in zip(glance.preconditioner.apply(vector), there, strict=True):
        assert mine.device.type == "cpu"
        torch.testing.assert_close(mine, theirs.cpu(), rtol=1e-3, atol=1e-5)
    assert all(f.matrix.device.type == "cpu" for f in glance.factors)
