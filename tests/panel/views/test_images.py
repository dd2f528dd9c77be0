"""Reconstructions and filters: the pixels are the model's own."""

import numpy as np
import pytest
import torch

import kfac_lab as kl
from kfac_lab.panel.views import seen
from kfac_lab.panel.views.mosaic import mosaic, zoom


def tiles(sheet, shape, columns):
    """The images of a mosaic again: every pixel of an enlarged one must be the same."""
    high, wide = shape
    factor = max(1, 24 // min(shape))
    rows = (sheet.shape[0] + 1) // (high * factor + 1)
    found = []
    for row in range(rows):
        for column in range(columns):
            y, x = row * (high * factor + 1), column * (wide * factor + 1)
            tile = sheet[y : y + high * factor, x : x + wide * factor]
            small = tile[::factor, ::factor]
            assert np.array_equal(np.kron(small, np.ones((factor, factor))), tile, equal_nan=True)
            found.append(small)
    return found


def test_reconstructions_are_the_models_outputs(runs, glance, drawn, views) -> None:
    (axes,) = drawn("reconstructions", {"a": runs.swapped.history}, glance)
    sheet = np.asarray(np.ma.filled(axes.get_images()[0].get_array(), np.nan))
    found = tiles(sheet, (8, 8), 8)
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
    numbers = {t.get_text() for t in axes.figure.texts}
    assert {f"{float(e):.3g}" for e in errors} <= numbers


def test_filters_are_the_first_layers_weights(runs, glance, drawn, views) -> None:
    axes = drawn("filters", {"a": runs.swapped.history}, glance)[0]
    sheet = np.asarray(np.ma.filled(axes.get_images()[0].get_array(), np.nan))
    weight = runs.swapped.problem.model[0].weight.detach().double().numpy()
    columns = (sheet.shape[1] + 1) // 25
    found = tiles(sheet, (8, 8), columns)
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
