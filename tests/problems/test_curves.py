"""CURVES-like: what is known of the original holds, and the same images come every time."""

import hashlib
import os
import sys
import time

import pytest
import torch
import warm
from oracles.pca import pca_error
from torch import nn

from kfac_lab.problems.curves import _generate, curves, curves_data, draw_curves
from kfac_lab.problems.shared import _alive


def test_shapes_range_and_no_denormals():
    train, test = curves_data()
    assert train.shape == (20_000, 784) and test.shape == (10_000, 784)
    for images in (train, test):
        assert images.dtype == torch.float32
        assert images.min() == 0 and images.max() == 1
        assert images[images > 0].min() >= torch.tensor(1 / 255)
        assert ((images.sum(1) > 5) & (images.sum(1) < 200)).all()  # one curve on each


def test_calibrated_to_the_published_pca_error():
    train, test = curves_data()
    assert pca_error(train, test, 18) == pytest.approx(5.9, abs=0.1)


def test_generated_in_time_on_one_core():
    start = time.process_time()
    _generate()
    assert time.process_time() - start < 5


def test_reloaded_bit_for_bit(cache_home):
    first = curves_data()
    assert list((cache_home / "kfac_lab").glob("curves-*.npz"))
    second = curves_data()
    fresh = torch.from_numpy(_generate()["images"]).float().div_(255)
    for a, b, c in zip(first, second, (fresh[:20_000], fresh[20_000:]), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_another_process_draws_the_same_images(tmp_path):
    program = (
        "import hashlib; from kfac_lab.problems.curves import curves_data; "
        "print(*(hashlib.sha256(x.numpy().data).hexdigest() for x in curves_data()))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}  # nothing cached there
    there = warm.run([sys.executable, "-c", program], env=environment).stdout.split()
    assert there == [hashlib.sha256(x.numpy().data).hexdigest() for x in curves_data()]


def test_the_pen_is_the_gaussian_profile_of_the_distance():
    # A straight line at half height: points (0.2, ½), (½, ½), (0.8, ½), between rows 13 and 14.
    image = draw_curves(torch.tensor([[[0.2, 0.5], [0.5, 0.5], [0.8, 0.5]]]), pen=1.5)[0].double()
    distance = (torch.arange(28) - 13.5).abs().double()
    expected = 255 * torch.exp(-(distance**2) / (2 * 1.5**2))
    assert torch.allclose(image[:, 14], expected.round(), atol=2)
    assert (image[0] == 0).all() and (image[:, 0] <= 1).all()  # the line ends at 0.2


def test_the_curve_passes_through_its_points():
    points = torch.tensor([[[0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]])
    image = draw_curves(points)[0]
    for x, y in (points[0] * 28 - 0.5).round().int().tolist():
        assert image[y, x] > 200


def test_coincident_points_make_a_dot():
    image = draw_curves(torch.full((1, 3, 2), 0.5))[0]
    assert 0 < (image > 0).sum() <= 64


def test_the_problem():
    problem = curves(seed=3)
    widths = [layer.out_features for layer in problem.model if isinstance(layer, nn.Linear)]
    assert widths == [400, 200, 100, 50, 25, 6, 25, 50, 100, 200, 400, 784]
    assert sum(p.numel() for p in problem.model.parameters()) == 842_340
    assert problem.inputs is problem.targets
    assert (problem.name, problem.title, problem.l2) == ("curves", "CURVES-like", 1e-5)
    assert len(problem.test) == 10_000
    # the code layer is linear, and so is the last: its outputs are logits
    kinds = [type(module) for module in problem.model]
    assert kinds[10:13] == [nn.Linear, nn.Linear, nn.Sigmoid]
    assert kinds[-1] is nn.Linear


def test_the_seed_moves_the_parameters_and_not_the_images():
    a, b, c = curves(seed=0), curves(seed=0), curves(seed=1)
    assert torch.equal(a.model[0].weight, b.model[0].weight)
    assert not torch.equal(a.model[0].weight, c.model[0].weight)
    assert a.model is not b.model
    assert torch.equal(a.inputs, c.inputs)


def test_problems_alive_together_share_their_data_and_nothing_outlives_them():
    a, b = curves(seed=0), curves(seed=1)
    assert a.inputs is b.inputs and a.test.inputs is b.test.inputs
    del a
    assert curves(seed=2).inputs is b.inputs
    del b
    assert all(reference() is None for reference in _alive["curves", "cpu"])


def test_on_every_device(device):
    here, there = curves(), curves(device=device)
    assert there.inputs.device.type == there.test.inputs.device.type == device.type
    assert torch.equal(here.inputs, there.inputs.cpu())
    assert torch.equal(here.model[0].weight, there.model[0].weight.cpu())
