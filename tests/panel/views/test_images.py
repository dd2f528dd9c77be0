"""Reconstructions and filters: the pixels are the model's own."""

import numpy as np
import pytest
import torch

import kfac_lab as kl
from kfac_lab.panel.views import seen
from kfac_lab.panel.views.mosaic import mosaic, zoom


def shown(axes):
    """The images of a sheet, from the first on."""
    return [np.asarray(image.get_array()) for image in axes.get_images()]


def test_reconstructions_are_the_models_outputs(runs, glance, drawn, views) -> None:
    axes = drawn("reconstructions", {"a": runs.swapped.history}, glance)[0]
    found = shown(axes)
    assert len(found) == 16
    problem = runs.swapped.problem
    cases = problem.test.inputs[:8]
    with torch.no_grad():
        outputs = torch.sigmoid(problem.model(cases))
    for k in range(8):
        assert np.array_equal(found[k].ravel(), cases[k].double().numpy())
        assert np.array_equal(found[8 + k].ravel(), outputs[k].double().numpy())
    errors = ((outputs - cases) ** 2).sum(1)
    text = views["reconstructions"].summary({"a": runs.swapped.history}, glance)
    assert ", ".join(f"{float(e):.4g}" for e in errors) in text
    assert f"mean {float(errors.mean()):.4g}" in text and "8 held-out images of digits 8x8" in text
    numbers = {t.get_text() for t in axes.texts}
    assert {f"{float(e):.3g}" for e in errors} <= numbers


def test_filters_are_the_first_layers_weights(runs, glance, drawn, views) -> None:
    axes = drawn("filters", {"a": runs.swapped.history}, glance)[0]
    weight = runs.swapped.problem.model[0].weight.detach().double().numpy()
    found = shown(axes)
    assert len(found) == 32
    for unit in range(32):
        assert np.array_equal(found[unit].ravel(), weight[unit])
    low, high = axes.get_images()[0].get_clim()
    assert high == -low == pytest.approx(np.abs(weight).max())
    norms = np.linalg.norm(weight, axis=1)
    text = views["filters"].summary({}, glance)
    assert f"greatest for unit {norms.argmax() + 1} ({norms.max():.4g})" in text
    assert f"from {weight.min():.4g} to {weight.max():.4g}" in text


def test_a_classifier_says_why_there_is_nothing(drawn, views) -> None:
    run = kl.Run("digits_classifier", recipe="robust", seed=0).advance(1)
    glance = seen(run)
    (axes,) = drawn("reconstructions", {"a": run.history}, glance)
    why = "this problem is no autoencoder: its targets are not its inputs"
    assert [t.get_text() for t in axes.texts] == [why]
    assert views["reconstructions"].summary({}, glance) == (
        f"Reconstructions. Nothing to show: {why}."
    )


@pytest.mark.parametrize(("side", "factor"), [(8, 3), (28, 1), (5, 4)])
def test_a_mosaic_leaves_one_empty_pixel_between_images(side, factor) -> None:
    images = torch.rand(5, side, side)
    assert zoom(images) == factor
    sheet = mosaic(images, 3)
    pitch = side * factor + 1
    assert sheet.shape == (2 * pitch - 1, 3 * pitch - 1)
    assert np.isnan(sheet[pitch - 1]).all() and np.isnan(sheet[:, pitch - 1]).all()
    assert np.isnan(sheet[pitch:, 2 * pitch :]).all(), "no sixth image"
    assert np.isfinite(sheet[: pitch - 1, : pitch - 1]).all()
