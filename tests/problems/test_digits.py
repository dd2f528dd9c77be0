"""The digits that travel with the package."""

from pathlib import Path

import pytest
import torch
from oracles.pca import pca_error
from torch import nn

import kfac_lab.problems
from kfac_lab.problems.digits import digits, digits_classifier, digits_data, digits_small


def test_shapes_ranges_and_classes():
    train, train_labels, test, test_labels = digits_data()
    assert train.shape == (1437, 64) and test.shape == (360, 64)
    assert train_labels.shape == (1437,) and test_labels.shape == (360,)
    for images, labels in ((train, train_labels), (test, test_labels)):
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert images.min() == 0 and images.max() == 1
        assert torch.equal(images * 16, (images * 16).round())
        assert labels.unique().tolist() == list(range(10))


def test_the_embedded_file_is_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    loaded = datasets.load_digits()
    train, train_labels, test, test_labels = digits_data()
    here = torch.cat(
        [torch.cat([train, test]) * 16, torch.cat([train_labels, test_labels])[:, None]], 1
    )
    there = torch.cat(
        [torch.from_numpy(loaded.data).float(), torch.from_numpy(loaded.target).float()[:, None]], 1
    )
    assert sorted(here.tolist()) == sorted(there.tolist())


def test_same_cases_at_every_call():
    assert all(torch.equal(a, b) for a, b in zip(digits_data(), digits_data(), strict=True))


def test_the_file_is_small_and_says_whose_it_is():
    folder = Path(kfac_lab.problems.__file__).parent / "data"
    assert (folder / "digits.npz").stat().st_size < 60_000
    assert "CC BY 4.0" in (folder / "README.md").read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "digits.npz"]


def test_the_autoencoder():
    problem = digits(seed=2)
    widths = [layer.out_features for layer in problem.model if isinstance(layer, nn.Linear)]
    assert widths == [32, 16, 4, 16, 32, 64]
    assert problem.inputs is problem.targets
    assert len(problem.inputs) == 1437 and len(problem.test) == 360
    assert problem.name == "digits" and problem.l2 == 1e-5


def test_the_classifier_starts_near_chance():
    problem = digits_classifier(seed=2)
    widths = [layer.out_features for layer in problem.model if isinstance(layer, nn.Linear)]
    assert widths == [32, 16, 10]
    assert [type(m) for m in problem.model][1::2] == [nn.Tanh, nn.Tanh]
    loss = problem.likelihood.loss(problem.model(problem.inputs), problem.targets).mean()
    assert 2 < loss < 4


def test_pca_error_against_the_singular_values():
    train, _, test, _ = digits_data()
    centred = (train - train.mean(0)).double()
    singular = torch.linalg.svdvals(centred)
    assert pca_error(train, train, 4) == pytest.approx(
        float((singular[4:] ** 2).sum()) / len(train)
    )
    assert pca_error(train, test, 64) == pytest.approx(0, abs=1e-9)
    assert pca_error(train, test, 4) == pytest.approx(2.46, abs=0.01)


def test_digits_small_has_the_middle_of_mnist_small():
    problem = digits_small(seed=2)
    widths = [layer.out_features for layer in problem.model if isinstance(layer, nn.Linear)]
    assert widths == [20, 20, 20, 20, 20, 10]
    assert len(problem.inputs) == 1437 and problem.inputs.shape[1] == 64
