"""FACES: the patches are cut as described, or one clear sentence."""

import sys
import types

import numpy as np
import pytest
import torch
from oracles.pca import pca_error
from torch import nn

from kfac_lab.errors import DataError
from kfac_lab.problems import faces as module
from kfac_lab.problems.faces import ANGLES, SCALES, SPACING, cut_patches, faces, faces_data


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No data folder, no cache, no scikit-learn."""
    monkeypatch.delenv("KFAC_LAB_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)


def test_missing_data_are_one_clear_sentence(nowhere):
    with pytest.raises(DataError) as caught:
        faces()
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in ("Olivetti", "KFAC_LAB_DATA", "olivetti_faces.npz", "kfac-lab[data]"):
        assert word in sentence


def test_other_photographs_are_refused(nowhere, tmp_path, monkeypatch):
    np.savez(tmp_path / "olivetti_faces.npz", images=np.zeros((400, 64, 64), np.uint8))
    monkeypatch.setenv("KFAC_LAB_DATA", str(tmp_path))
    with pytest.raises(DataError, match="SHA-256"):
        faces()
    (tmp_path / "olivetti_faces.npz").write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot be read"):
        faces()


# ---- geometry ------------------------------------------------------------------------------------


def test_the_grid_is_46_rotations_by_9_scales():
    assert (len(ANGLES), ANGLES[0], ANGLES[-1]) == (46, -90, 90)
    assert SCALES == (1.4, 1.45, 1.5, 1.55, 1.6, 1.65, 1.7, 1.75, 1.8)
    images = torch.randint(0, 243, (2, 64, 64), dtype=torch.uint8)
    assert cut_patches(images).shape == (2, 414, 25, 25)


def test_patches_against_bilinear_sampling_by_hand():
    image = torch.randint(0, 243, (1, 64, 64), dtype=torch.uint8)
    patches = cut_patches(image)[0].view(46, 9, 25, 25)
    picture = image[0].double().numpy()
    for angle_index, scale_index, row, column in [(0, 0, 0, 0), (7, 8, 3, 21), (45, 4, 24, 12)]:
        angle = np.deg2rad(ANGLES[angle_index])
        step = SPACING / SCALES[scale_index]
        right, down = (column - 12) * step, (row - 12) * step
        x = 31.5 + np.cos(angle) * right - np.sin(angle) * down
        y = 31.5 + np.sin(angle) * right + np.cos(angle) * down
        i, j = int(np.floor(y)), int(np.floor(x))
        v, u = y - i, x - j
        expected = (1 - v) * ((1 - u) * picture[i, j] + u * picture[i, j + 1]) + v * (
            (1 - u) * picture[i + 1, j] + u * picture[i + 1, j + 1]
        )
        assert abs(float(patches[angle_index, scale_index, row, column]) - expected) <= 0.51


def test_a_patch_lies_inside_its_photograph():
    white = torch.full((1, 64, 64), 200, dtype=torch.uint8)
    assert (cut_patches(white) == 200).all()


def test_opposite_quarter_turns_are_half_a_turn_apart():
    image = torch.randint(0, 243, (1, 64, 64), dtype=torch.uint8)
    patches = cut_patches(image)[0].view(46, 9, 25, 25).int()
    difference = (patches[0] - patches[-1].rot90(2, (-2, -1))).abs()
    assert difference.max() <= 1  # rounding


# ---- real data -----------------------------------------------------------------------------------


def test_shapes_standardisation_and_pca(data_folder):
    train, test = faces_data()
    assert train.shape == (103_500, 625) and test.shape == (41_400, 625)
    assert train.dtype == torch.float32
    for patches in (train, test):
        tiny = torch.finfo(torch.float32).tiny
        assert not ((patches != 0) & (patches.abs() < tiny)).any()
        assert 0.8 < patches.var(0).mean() < 1.2
    assert train.mean(0).abs().max() < 0.25
    # every fifth patch of each photograph: 30 components are well determined by 20,700
    assert pca_error(train[::5], test[::5], 30) == pytest.approx(135, abs=3)


def test_mean_and_divisor_are_those_of_the_whole_data_set(data_folder):
    arrays = module._generate()
    patches = cut_patches(torch.from_numpy(module._photographs())).view(-1, 625)
    assert patches.shape == (165_600, 625)
    mean = patches.double().mean(0)
    assert torch.allclose(torch.from_numpy(arrays["mean"]), mean, atol=1e-9)
    variance = sum(float(((rows.double() - mean) ** 2).sum()) for rows in patches.split(20_000))
    assert float(arrays["deviation"]) ** 2 == pytest.approx(variance / patches.numel(), rel=1e-9)
    assert torch.equal(torch.from_numpy(arrays["patches"][:4140]), patches[:4140])
    assert torch.equal(torch.from_numpy(arrays["patches"][-4140:]), patches[-4140:])


def test_reloaded_bit_for_bit_and_made_again_when_damaged(data_folder, cache_home):
    first = faces_data()
    (path,) = (cache_home / "kfac_lab").glob("faces-*.npz")
    assert path.stat().st_size < 100e6
    assert all(torch.equal(a, b) for a, b in zip(first, faces_data(), strict=True))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert all(torch.equal(a, b) for a, b in zip(first, faces_data(), strict=True))


def test_fetched_photographs_are_the_same(data_folder, tmp_path, monkeypatch):
    local = module._photographs()
    assert local.shape == (400, 64, 64) and local.max() == 242
    fake = types.ModuleType("sklearn.datasets")

    def fetch_olivetti_faces(*, shuffle, n_retries):
        assert shuffle is False
        return types.SimpleNamespace(images=local.astype(np.float32) / np.float32(242))

    fake.fetch_olivetti_faces = fetch_olivetti_faces
    monkeypatch.setitem(sys.modules, "sklearn.datasets", fake)
    monkeypatch.delenv("KFAC_LAB_DATA")
    assert np.array_equal(module._photographs(), local)


def test_the_problem(data_folder):
    problem = faces(seed=1)
    widths = [layer.out_features for layer in problem.model if isinstance(layer, nn.Linear)]
    assert widths == [2000, 1000, 500, 30, 500, 1000, 2000, 625]
    assert sum(p.numel() for p in problem.model.parameters()) == 7_537_655
    assert problem.inputs is problem.targets
    assert (problem.name, problem.l2, len(problem.test)) == ("faces", 1e-5, 41_400)
    assert problem.likelihood.scale == "full"
    assert isinstance(problem.model[-1], nn.Linear)
