"""Every bit of a file is checked, and nothing is built or allocated that the file does not hold."""

import random
import zipfile
from pathlib import Path

import pytest
import torch

from kfac_lab.core import archive
from kfac_lab.errors import CheckpointError

pytestmark = pytest.mark.host("a file is made of tensors of the host, by whoever saves")


def tree() -> dict:
    return {
        "kind": "a tree",
        "parts": [{"weight": torch.randn(9, 5)}, torch.tensor(1.5, dtype=torch.float64)],
        "named": {"~": "dict", "items": [["layer.weight", torch.randn(4).bfloat16()]]},
        "empty": torch.zeros(0),
        "flags": torch.tensor([True, False]),
        "numbers": [1, 2.5, float("nan"), None, True],
    }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return archive.save(tmp_path / "a.pt", tree())


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved = tree()
    found = archive.load(archive.save(tmp_path / "a.pt", saved))
    digests = found.pop("digests")
    assert same(found, saved)
    assert set(digests) == {"parts.0.weight", "parts.1", "named.layer.weight", "empty", "flags"}


def test_no_flipped_bit_is_silent(path: Path) -> None:
    whole, draw = path.read_bytes(), random.Random(0)
    named = 0
    for n in range(150):
        data = bytearray(whole)
        at = draw.randrange(len(data)) if n else whole.find(b"kfac-lab sha256")
        data[at] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as error:
            archive.load(path)
        named += "parts.0.weight" in str(error.value)
    assert named  # at least one hit its bytes


def test_the_message_names_the_tensor(path: Path) -> None:
    data = path.read_bytes()
    weight = archive.load(path)["parts"][0]["weight"].numpy().tobytes()
    at = data.find(weight)
    path.write_bytes(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
    with pytest.raises(CheckpointError, match=r"damaged: parts\.0\.weight are not what was saved"):
        archive.load(path)


def test_no_file_that_was_cut_off_is_loaded(path: Path) -> None:
    whole = path.read_bytes()
    for length in [*range(0, 90, 7), *range(90, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            archive.load(path)


def test_a_file_of_before_has_checksums(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"weight": torch.ones(100)}, path)
    assert archive.load(path).keys() == {"weight"}
    data = path.read_bytes()
    at = data.find(torch.ones(100).numpy().tobytes())
    path.write_bytes(data[: at + 42] + b"\0" + data[at + 43 :])
    with pytest.raises(CheckpointError, match=r"damaged: its part .*data/0 has another checksum"):
        archive.load(path)


def grown(path: Path) -> None:
    torch.save({"weight": torch.ones(1).expand(10**12)}, path)


def shared(path: Path) -> None:
    value: list = [0]
    for _ in range(40):
        value = [value, value]
    torch.save({"a": value}, path)


def packed(path: Path) -> None:
    torch.save({"weight": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in members.items():
            new.writestr(name, data)


def odd(value):
    return lambda path: torch.save({"a": value}, path)


@pytest.mark.parametrize(
    "make",
    [
        grown,
        shared,
        packed,
        odd(torch.ones(3).to_sparse()),
        odd(torch.nn.Parameter(torch.ones(2))),
        odd((1, 2)),
        odd({1, 2}),
    ],
)
def test_what_no_run_holds_is_refused_before_it_is_built(tmp_path: Path, make) -> None:
    make(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="is not a saved run"):
        archive.load(tmp_path / "a.pt")
