"""A tree of numbers, texts and tensors as one file, every bit of which is checked when it is read.

The file is what ``torch.save`` writes, followed by a line with the SHA-256 of all before it. Inside
stands a SHA-256 for each tensor, by which a damaged file says what of it is damaged. Nothing in it
is code, and nothing is allocated that the file itself does not hold.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from kfac_lab.core import files
from kfac_lab.errors import CheckpointError

__all__ = ["digest", "load", "save", "seal", "tensors"]

_TRAILER = b"\nkfac-lab sha256 %s\n"
_LENGTH = len(_TRAILER) - 2 + 64
_FORM = re.compile(rb"\nkfac-lab sha256 ([0-9a-f]{64})\n")
_BLOCK = 1 << 20
_PLAIN = (int, float, bool, str, type(None))


def save(path: str | os.PathLike[str], tree: dict[str, Any]) -> Path:
    """Writes a tree of dicts, lists, numbers, texts and CPU tensors; whole or not at all.

    Raises:
        CheckpointError: the file cannot be written; an older one there is as it was.
    """
    content = {**tree, "digests": {name: digest(tensor) for name, tensor in tensors(tree)}}

    def produce(file: IO[bytes]) -> None:
        through = _Hashing(file)
        try:
            torch.save(content, through)  # type: ignore[arg-type]
        except RuntimeError as error:  # torch's writer hides what the file said
            raise through.error or OSError(5, str(error).splitlines()[0]) from error
        file.write(_TRAILER % through.sha.hexdigest().encode())

    return files.write(path, produce)


class _Hashing:
    """A file that takes the SHA-256 of what it is given to write."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.sha.update(view)
        try:
            return self.file.write(view)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def load(path: str | os.PathLike[str], what: str = "a saved run") -> dict[str, Any]:
    """Reads what :func:`save` wrote, or an older file without digests, whose checksums are checked.

    ``"digests"`` is in the tree of a file that has them.

    Raises:
        CheckpointError: there is no such file, it is none of ours, or a bit of it has changed.
    """
    path = files.path_of(path)
    try:
        with path.open("rb") as file:
            return _read(file, path, what)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path} to load a run from") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _read(file: IO[bytes], path: Path, what: str) -> dict[str, Any]:
    status = os.fstat(file.fileno())
    none = f"{path} is not {what}"
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{none}: it is no file")
    if file.read(4) != b"PK\x03\x04":
        raise CheckpointError(f"{none}: no file of Run.save")
    size = status.st_size
    stated = _trailer(file, size)
    sound = stated is not None and _sha256(file, size - _LENGTH) == stated
    names = _directory(file, size, none)
    if stated is None:
        bad = _bad_member(file, names)
        if bad is not None:
            raise CheckpointError(f"{path} is damaged: its part {bad} has another checksum")
    file.seek(0)
    try:
        tree = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's advice is to trust the file: not ours
        reason = f"{path} is damaged" if stated is not None else f"{none}: no file of Run.save"
        raise CheckpointError(reason) from error
    except MemoryError:
        raise
    except Exception as error:
        why = (str(error) or repr(error)).splitlines()[0]
        raise CheckpointError(f"{none}: {why}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{none}: no file of Run.save")
    _bounded(tree, size, path)
    if sound:
        return tree
    if stated is not None or "digests" in tree:
        raise CheckpointError(f"{path} is damaged: {_changed(tree)}; load an older copy")
    return tree


def _trailer(file: IO[bytes], size: int) -> str | None:
    if size < _LENGTH:
        return None
    file.seek(size - _LENGTH)
    found = _FORM.fullmatch(file.read(_LENGTH))
    return found.group(1).decode() if found else None


def _sha256(file: IO[bytes], length: int) -> str:
    file.seek(0)
    sha = hashlib.sha256()
    while length > 0:
        block = file.read(min(_BLOCK, length))
        if not block:
            break
        sha.update(block)
        length -= len(block)
    return sha.hexdigest()


def _directory(file: IO[bytes], size: int, none: str) -> list[str]:
    """The members' names; each holds as many bytes as it takes, so none grows when it is read."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"{none}: it is cut off, or was never whole ({error})") from error
    packed = any(m.compress_type != zipfile.ZIP_STORED for m in members)
    if packed or sum(m.file_size for m in members) > size:
        raise CheckpointError(f"{none}: it would take more room than the file itself")
    return [m.filename for m in members]


def _bad_member(file: IO[bytes], names: list[str]) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip()
    except Exception:  # its own table is damaged
        return names[0] if names else "directory"


def _bounded(tree: dict[str, Any], size: int, path: Path) -> None:
    """Plain values only, and not more of them than the file has bytes: parts may be shared."""
    left, room = size, 16 * size + (1 << 20)  # values, and bytes of tensors, which may share theirs
    todo: list[Any] = [tree]
    while todo:
        value = todo.pop()
        left -= 1
        if left < 0:
            raise CheckpointError(f"{path} is not a saved run: it unfolds to more than it holds")
        if isinstance(value, Tensor):
            if type(value) is not Tensor or value.layout != torch.strided or value.is_quantized:
                raise CheckpointError(f"{path} is not a saved run: it holds a special tensor")
            taken = value.numel() * value.element_size()
            room -= taken
            held = value.untyped_storage().nbytes() if value.device.type == "cpu" else -1
            if taken > held or room < 0:
                raise CheckpointError(f"{path} is not a saved run: a tensor exceeds its data")
        elif type(value) is dict:
            todo += value.keys()
            todo += value.values()
        elif type(value) is list:
            todo += value
        elif type(value) not in _PLAIN:
            raise CheckpointError(
                f"{path} is not a saved run: it holds a {type(value).__name__}, which none has"
            )


def _changed(tree: dict[str, Any]) -> str:
    """What of a tree is not what its digests say."""
    stated = tree.get("digests")
    try:
        found = {name: digest(tensor) for name, tensor in tensors(tree)}
        names = sorted(n for n in {*found, *stated} if found.get(n) != stated.get(n))  # type: ignore
    except Exception:  # the digests are what is damaged
        names = []
    if not names:
        return "what stands around its tensors is not what was saved"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} are not what was saved"


def tensors(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a tree with its path, ``"stepper.tree.theta"`` …"""
    todo: list[tuple[str, Any]] = [("", tree)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, Tensor):
            yield path, value
            continue
        # What core.state.to_tree makes of a mapping or a class goes by its own names.
        if isinstance(value, dict) and value.keys() == {"~", "items"}:
            own = value["~"] == "dict"
            value = [_pair(item) for item in value["items"]] if own else value["items"]
        else:
            own = False
        if own:
            inside = value
        elif isinstance(value, dict):
            inside = [(str(key), v) for key, v in value.items()]
        elif isinstance(value, list):
            inside = [(str(n), v) for n, v in enumerate(value)]
        else:
            continue
        todo += [(f"{path}.{key}" if path else key, v) for key, v in reversed(inside)]


def _pair(item: Any) -> tuple[str, Any]:
    key, value = item
    if isinstance(key, dict):
        key = "/".join(map(str, key.get("items", ())))
    return str(key), value


def digest(tensor: Tensor) -> str:
    """The first 32 hexadecimal digits of SHA-256 over type, shape and bytes of a CPU tensor."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    sha = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    sha.update(flat.numpy().data)
    return sha.hexdigest()[:32]


def seal(tree: Any) -> str:
    """SHA-256 over all that a tree of plain values is: every key, number, text and bit."""
    sha = hashlib.sha256()
    todo: list[Any] = [tree]
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            sha.update(f"tensor {digest(value.cpu())};".encode())
        elif isinstance(value, dict):
            sha.update(f"dict {len(value)};".encode())
            for key in reversed(value):
                todo += [value[key], key]
        elif isinstance(value, (list, tuple)):
            sha.update(f"list {len(value)};".encode())
            todo += reversed(value)
        else:
            text = repr(value)
            sha.update(f"{type(value).__name__} {len(text)} {text};".encode())
    return sha.hexdigest()[:32]
