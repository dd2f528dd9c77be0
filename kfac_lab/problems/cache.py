"""Generated and fetched data on disk, in the user's cache folder.

The folder is ``kfac_lab`` under ``XDG_CACHE_HOME``, or under ``~/.cache`` where that is unset. A
file is trusted only if the digests of its arrays are right, and their names, types and shapes;
otherwise the data are made again, and kept in its place. The digests are those that are known where
the data are known, else those that were kept with them. A folder that cannot be written is no
error: then nothing is kept.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from kfac_lab.core import files
from kfac_lab.errors import CheckpointError

__all__ = ["Arrays", "Layout", "cached", "folder", "load", "path_of", "store"]

Arrays = dict[str, np.ndarray]
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of each array to its NumPy dtype and shape."""

_DIGESTS = "digests"  # the member with the SHA-256 of each array, in the order of their names
_UNREADABLE = (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def cached(
    name: str,
    recipe: str,
    layout: Layout,
    build: Callable[[], Arrays],
    known: Mapping[str, str] | None = None,
) -> Arrays:
    """The arrays kept under (name, recipe); where there are none, ``build()``'s, then kept.

    Args:
        name: of the data set; the file name starts with it.
        recipe: text that changes whenever ``build`` would give other arrays.
        layout: what the arrays must look like.
        build: makes them; must be deterministic.
        known: the SHA-256 of each array's bytes, where the data are known.
    """
    path = path_of(name, recipe)
    arrays = load(path, layout, known)
    if arrays is None:
        arrays = build()
        store(path, arrays)
    return arrays


def folder() -> Path | None:
    """The cache folder, which need not exist; None where the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the XDG rules: a relative path is ignored
        return Path(base) / "kfac_lab"
    try:
        return Path.home() / ".cache" / "kfac_lab"
    except RuntimeError:
        return None


def path_of(name: str, recipe: str) -> Path | None:
    """Where the arrays of (name, recipe) are kept."""
    base = folder()
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    return None if base is None else base / f"{name}-{digest}.npz"


def load(
    path: Path | None, layout: Layout, known: Mapping[str, str] | None = None
) -> Arrays | None:
    """The arrays in ``path``; None if it is absent, unreadable, of another layout or content."""
    if path is None:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: _member(archive, name, *layout[name]) for name in layout}
            if known is None:
                stated = _member(archive, _DIGESTS, "uint8", (len(layout), 32))
                known = {n: bytes(row).hex() for n, row in zip(sorted(layout), stated, strict=True)}
    except _UNREADABLE:
        return None
    if any(_sha256(array).hexdigest() != known[name] for name, array in arrays.items()):
        return None
    return arrays


def _member(archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of the expected type and shape; nothing is allocated for any other."""
    with archive.open(f"{name}.npy") as file:
        version = npy.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{name} has version {version}")
        header = npy.read_array_header_1_0(file)
        if header != (shape, False, np.dtype(dtype)):
            raise ValueError(f"{name} is {header}")
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        data = bytearray(file.read(size))
        if len(data) != size or file.read(1):  # the last read compares the member's checksum
            raise ValueError(f"{name} has another size")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _sha256(array: np.ndarray) -> hashlib._Hash:
    return hashlib.sha256(np.ascontiguousarray(array).data)


def store(path: Path | None, arrays: Arrays) -> bool:
    """Write ``path`` whole or not at all; whether it was written."""
    if path is None:
        return False
    rows = [np.frombuffer(_sha256(arrays[n]).digest(), np.uint8) for n in sorted(arrays)]
    kept = {**{n: np.asarray(a, order="C") for n, a in arrays.items()}, _DIGESTS: np.array(rows)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, lambda file: np.savez(file, **kept))  # type: ignore[arg-type]
    except (OSError, CheckpointError):
        return False
    return True
