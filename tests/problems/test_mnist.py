"""MNIST, large and small: the canonical files, or one clear sentence."""

import gzip
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from oracles.pca import pca_error
from torch import nn

from kfac_lab.errors import DataError
from kfac_lab.problems import sources
from kfac_lab.problems.mnist import mnist, mnist_arrays, mnist_data
from kfac_lab.problems.mnist_small import downscale, mnist_small, mnist_small_data


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No data folder, no cache, no scikit-learn."""
    monkeypatch.delenv("KFAC_LAB_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)


# ---- where the data are missing or damaged -------------------------------------------------------


@pytest.mark.parametrize("build", [mnist, mnist_small])
def test_missing_data_are_one_clear_sentence(build, nowhere):
    with pytest.raises(DataError) as caught:
        build()
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in ("MNIST", "KFAC_LAB_DATA", "train-images-idx3-ubyte.gz", "kfac-lab[data]"):
        assert word in sentence


def test_a_folder_without_the_files_is_named(nowhere, tmp_path, monkeypatch):
    monkeypatch.setenv("KFAC_LAB_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"{tmp_path.name}.*does not hold"):
        mnist()


def test_without_a_network_the_reason_is_told(nowhere, monkeypatch):
    def offline(*args, **options):
        raise OSError("Name or service not known")

    fake = types.ModuleType("sklearn.datasets")
    fake.fetch_openml = offline
    monkeypatch.setitem(sys.modules, "sklearn.datasets", fake)
    with pytest.raises(DataError, match="Name or service not known"):
        mnist()


def idx(values: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()


def test_other_content_is_refused_by_its_checksum(nowhere, tmp_path, monkeypatch):
    monkeypatch.setenv("KFAC_LAB_DATA", str(tmp_path))
    for stem, shape in {
        "train-images-idx3-ubyte": (60_000, 28, 28),
        "train-labels-idx1-ubyte": (60_000,),
        "t10k-images-idx3-ubyte": (10_000, 28, 28),
        "t10k-labels-idx1-ubyte": (10_000,),
    }.items():
        (tmp_path / f"{stem}.gz").write_bytes(gzip.compress(idx(np.zeros(shape, np.uint8)), 1))
    with pytest.raises(DataError, match="SHA-256"):
        mnist()


@pytest.mark.parametrize(
    "content",
    [b"", gzip.compress(b""), gzip.compress(b"\0\0\x08")],
    ids=["empty", "empty gzip", "cut short"],  # gzip notes the time, and two workers must agree
)
def test_a_file_without_its_header_is_refused(content, nowhere, tmp_path, monkeypatch):
    monkeypatch.setenv("KFAC_LAB_DATA", str(tmp_path))
    for stem in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{stem}-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"train-images.*undamaged copy"):
        mnist()


def test_a_truncated_file_is_refused(nowhere, data_folder_copy, monkeypatch):
    path = data_folder_copy / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1_000_000])
    monkeypatch.setenv("KFAC_LAB_DATA", str(data_folder_copy))
    with pytest.raises(DataError, match=r"train-images.*cannot be read"):
        mnist()


# ---- real data -----------------------------------------------------------------------------------


@pytest.fixture
def data_folder_copy(data_folder, tmp_path):
    copy = tmp_path / "data"
    copy.mkdir()
    for path in data_folder.glob("*-ubyte.gz"):
        shutil.copyfile(path, copy / path.name)
    return copy


def test_shapes_range_and_pca(data_folder):
    train, test = mnist_data()
    assert train.shape == (60_000, 784) and test.shape == (10_000, 784)
    assert train.dtype == torch.float32
    assert train.min() == 0 and train.max() == 1
    assert train[train > 0].min() >= torch.tensor(1 / 255)
    assert train.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert train.std().item() == pytest.approx(0.3081, abs=1e-4)
    assert pca_error(train, test, 30) == pytest.approx(13.87, abs=0.01)


def test_the_training_cases_are_permuted_once_with_their_labels(data_folder):
    images, labels, _, test_labels = mnist_arrays()
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert labels.bincount().tolist() == counts
    assert labels[:10].tolist() != [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # the order of the file
    assert test_labels[:5].tolist() == [7, 2, 1, 0, 4]  # kept
    first = next(i for i, label in enumerate(labels.tolist()) if label == 0)
    assert images[first].float().mean() > 0
    raw = gzip.decompress((data_folder / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    file_labels = gzip.decompress((data_folder / "train-labels-idx1-ubyte.gz").read_bytes())[8:]
    pairs = {raw[784 * i : 784 * (i + 1)]: file_labels[i] for i in range(60_000)}
    for i in range(0, 60_000, 997):
        assert pairs[images[i].numpy().tobytes()] == labels[i]
    again = mnist_arrays()
    assert torch.equal(images, again[0]) and torch.equal(labels, again[1])


def test_unpacked_files_are_read_too(data_folder_copy, monkeypatch, nowhere):
    raw = data_folder_copy / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in data_folder_copy.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    monkeypatch.setenv("KFAC_LAB_DATA", str(data_folder_copy))
    assert mnist_arrays()[0].shape == (60_000, 28, 28)


@pytest.fixture
def fake_openml(data_folder, tmp_path, monkeypatch):
    """scikit-learn's fetcher, played by the local files: rows as floats, labels as text."""

    def values(stem: str, offset: int) -> np.ndarray:
        content = gzip.decompress((data_folder / f"{stem}.gz").read_bytes())
        return np.frombuffer(content, np.uint8, offset=offset)

    images = np.concatenate(
        [values("train-images-idx3-ubyte", 16), values("t10k-images-idx3-ubyte", 16)]
    ).reshape(-1, 784)
    labels = np.concatenate(
        [values("train-labels-idx1-ubyte", 8), values("t10k-labels-idx1-ubyte", 8)]
    )
    fake = types.ModuleType("sklearn.datasets")
    fake.calls = 0
    fake.bunch = types.SimpleNamespace(
        data=images.astype(np.float32), target=labels.astype(str).astype(object)
    )

    def fetch_openml(name, *, version, as_frame, parser, n_retries):
        assert (name, version, as_frame) == ("mnist_784", 1, False)
        fake.calls += 1
        return fake.bunch

    fake.fetch_openml = fetch_openml
    expected = mnist_arrays()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", fake)
    monkeypatch.delenv("KFAC_LAB_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake, expected


def test_fetched_data_are_the_same_and_fetched_once(fake_openml):
    fake, expected = fake_openml
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(mnist_arrays(), expected, strict=True))
    assert fake.calls == 1


def test_fetched_data_are_checked(fake_openml, tmp_path):
    fake, _ = fake_openml
    fake.bunch.data[17, 300] += 1
    with pytest.raises(DataError, match="SHA-256"):
        mnist_arrays()
    assert not (tmp_path / "cache").exists()  # nothing wrong is kept


def test_the_autoencoder(data_folder):
    problem = mnist(seed=1)
    widths = [layer.out_features for layer in problem.model if isinstance(layer, nn.Linear)]
    assert widths == [1000, 500, 250, 30, 250, 500, 1000, 784]
    assert sum(p.numel() for p in problem.model.parameters()) == 2_837_314
    assert problem.inputs is problem.targets
    assert (problem.name, problem.l2, len(problem.test)) == ("mnist", 1e-5, 10_000)


def test_the_small_classifier(data_folder):
    problem = mnist_small(seed=1)
    widths = [layer.out_features for layer in problem.model if isinstance(layer, nn.Linear)]
    assert widths == [20, 20, 20, 20, 20, 10]
    assert problem.inputs.shape == (1000, 256) and problem.test.inputs.shape == (10_000, 256)
    assert problem.targets.dtype == torch.int64
    assert problem.targets.bincount(minlength=10).min() > 70
    again = mnist_small_data()
    assert torch.equal(problem.inputs, again[0]) and torch.equal(problem.targets, again[1])


# ---- down-scaling --------------------------------------------------------------------------------


def test_downscaling_keeps_the_mean_and_constants():
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    small = downscale(images, 16)
    assert small.shape == (5, 16, 16)
    assert torch.allclose(small.mean((1, 2)), images.float().mean((1, 2)) / 255, atol=1e-6)
    white = downscale(torch.full((1, 28, 28), 255, dtype=torch.uint8), 16)
    assert torch.allclose(white, torch.ones_like(white), atol=1e-6)


def test_downscaling_by_a_whole_factor_is_block_averaging():
    images = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    blocks = nn.functional.avg_pool2d(images[:, None].float() / 255, 2)[:, 0]
    assert torch.allclose(downscale(images, 14), blocks, atol=1e-6)


def test_an_empty_data_variable_is_an_unset_one(monkeypatch):
    monkeypatch.setenv("KFAC_LAB_DATA", "")
    assert sources.find(["README.md", "."]) is None
