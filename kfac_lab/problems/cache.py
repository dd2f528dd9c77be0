"""Generated and fetched data on disk, in the user's cache folder.

The folder is ``kfac_lab`` under ``XDG_CACHE_HOME``, or under ``~/.cache`` where that is unset. A
file is trusted only if its checksums, names, types and shapes are right; otherwise the data are
made again. A folder that cannot be written is no error: then nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

__all__ = ["Arrays", "Layout", "cached", "folder", "load", "path_of", "store"]

Arrays = dict[str, np.ndarray]
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of each array to its NumPy dtype and shape."""


def cached(name: str, recipe: str, layout: Layout, build: Callable[[], Arrays]) -> Arrays:
    """The arrays kept under (name, recipe); where there are none, ``build()``'s, then kept.

    Args:
        name: of the data set; the file name starts with it.
        recipe: text that changes whenever ``build`` would give other arrays.
        layout: what the arrays must look like.
        build: makes them; must be deterministic.
    """
    path = path_of(name, recipe)
    arrays = load(path, layout)
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


def load(path: Path | None, layout: Layout) -> Arrays | None:
    """The arrays in ``path``; None if it is absent, unreadable, damaged or of another layout."""
    if path is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as file:  # zip members carry checksums
            arrays = {name: file[name] for name in layout}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    for name, (dtype, shape) in layout.items():
        if arrays[name].dtype != np.dtype(dtype) or arrays[name].shape != shape:
            return None
    return arrays


def store(path: Path | None, arrays: Arrays) -> bool:
    """Write ``path`` whole or not at all; whether it was written."""
    if path is None:
        return False
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except OSError:
        return False
    else:
        temporary = None
        return True
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
