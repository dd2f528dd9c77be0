"""The cache gives back what was put in, or nothing."""

import hashlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kfac_lab.problems import cache

LAYOUT = {"values": ("uint8", (50, 7)), "scale": ("float64", ())}


class Builder:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> cache.Arrays:
        self.calls += 1
        values = np.random.default_rng(0).integers(0, 255, (50, 7), dtype=np.uint8)
        return {"values": values, "scale": np.array(1.5)}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kfac_lab"


@pytest.fixture
def build() -> Builder:
    return Builder()


def same(a: cache.Arrays, b: cache.Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_built_once_then_read(home, build):
    first = cache.cached("thing", "one", LAYOUT, build)
    second = cache.cached("thing", "one", LAYOUT, build)
    assert build.calls == 1
    assert same(first, second)
    assert [path.name.split("-")[0] for path in home.iterdir()] == ["thing"]  # no temporary left


def test_another_recipe_is_another_file(home, build):
    cache.cached("thing", "one", LAYOUT, build)
    cache.cached("thing", "two", LAYOUT, build)
    assert build.calls == 2
    assert len(list(home.iterdir())) == 2


def flip(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flip, lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"not an npz"],
    ids=["one bit flipped", "cut short", "empty", "something else"],
)
def test_a_damaged_file_is_made_again(home, build, damage):
    first = cache.cached("thing", "one", LAYOUT, build)
    (path,) = home.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    second = cache.cached("thing", "one", LAYOUT, build)
    assert build.calls == 2
    assert same(first, second)
    cache.cached("thing", "one", LAYOUT, build)
    assert build.calls == 2


def test_arrays_of_another_shape_are_made_again(home, build):
    cache.store(cache.path_of("thing", "one"), {"values": np.zeros(3), "scale": np.array(1.0)})
    assert same(cache.cached("thing", "one", LAYOUT, build), build())


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, monkeypatch, build):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert same(cache.cached("thing", "one", LAYOUT, build), build())


def test_a_full_disk_is_no_error_and_leaves_nothing(home, monkeypatch, build):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "savez", full)
    assert same(cache.cached("thing", "one", LAYOUT, build), build())
    assert list(home.iterdir()) == []


def test_a_relative_cache_home_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "kfac_lab"
    assert not os.path.exists("relative")


def test_known_content_is_compared_and_damage_mends_itself(home, build):
    known = {
        name: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
        for name, array in build().items()
    }
    build.calls = 0
    path = cache.path_of("thing", "one")
    path.parent.mkdir(parents=True)
    zeros = {name: np.zeros(shape, dtype) for name, (dtype, shape) in LAYOUT.items()}
    for digests in (known, None):
        np.savez(path, **zeros)  # names, types and shapes are right
        assert same(cache.cached("thing", "one", LAYOUT, build, digests), build())
        assert same(cache.load(path, LAYOUT, digests), build())
    cache.store(path, zeros)  # with digests of its own, which are not the known ones
    assert cache.load(path, LAYOUT, known) is None


def test_nothing_is_allocated_for_another_shape(home):
    path = cache.path_of("thing", "one")
    path.parent.mkdir(parents=True)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**13,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("values.npy", header.getvalue())
    assert cache.load(path, LAYOUT) is None
