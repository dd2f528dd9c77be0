"""Files as a database keeps them: written whole or not at all, and still there after a power cut.

Every file that the package writes goes through here. A new file is made under a random name beside
its target, exclusively, so that nothing that lies there already is followed or overwritten; it is
forced to the disk, renamed over the target, and the folder is forced to the disk as well. What the
target was stays what it is: its mode, its group, and a link that its owner made.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from kfac_lab.errors import CheckpointError

try:  # not on Windows, where files are written as whole, but not locked
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]

__all__ = ["append", "locked", "path_of", "read_lines", "write"]

Producer = Callable[[IO[bytes]], None]

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_SHOWN = 40  # characters of the target's name in a temporary's: names have at most 255 bytes


def path_of(path: Any) -> Path:
    """``path`` as a Path.

    Raises:
        CheckpointError: it is none: no text, no Path, or empty.
    """
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise CheckpointError(f"a file is named by a text or a Path, not by {path!r}")
    if not os.fspath(path) or "\0" in str(path):
        raise CheckpointError(f"{os.fspath(path)!r} names no file: give a path such as 'run.pt'")
    return Path(path)


def write(path: str | os.PathLike[str], content: bytes | str | Producer) -> Path:
    """Writes a file whole or not at all; ``content`` may be a function that writes to the file.

    Where ``path`` is a link, the file that it points at is replaced, and the link stays. A new file
    has the mode that the umask gives, a replaced one keeps its own. Returns the path.

    Raises:
        CheckpointError: the file cannot be written; an older one there is as it was.
    """
    given = path_of(path)
    try:
        _write(given, _producer(content))
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{given} cannot be written: {reason}") from error
    return given


def _producer(content: bytes | str | Producer) -> Producer:
    if isinstance(content, str):
        content = content.encode("utf-8")
    if isinstance(content, bytes):
        data = content

        def whole(file: IO[bytes]) -> None:
            file.write(data)

        return whole
    return content


def _write(path: Path, produce: Producer) -> None:
    target = Path(os.path.realpath(path))
    before = _status(target)
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(21, "it is a folder: name a file in it")
    if before is not None and not stat.S_ISREG(before.st_mode):
        with target.open("wb") as device:  # /dev/stdout, a pipe: there is nothing to replace
            produce(device)
        return
    if not target.parent.is_dir():
        raise FileNotFoundError(2, f"there is no folder {target.parent}")
    _sweep(target)
    temporary = target.with_name(f".{target.name[:_SHOWN]}.{secrets.token_hex(8)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _BINARY
    mode = 0o666 if before is None else stat.S_IMODE(before.st_mode)
    try:
        with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
            _lock(file.fileno(), wait=False)  # says that somebody is at it: see _sweep
            if before is not None and hasattr(os, "fchmod"):
                _keep_owner(file.fileno(), before)
                os.fchmod(file.fileno(), mode)  # what the umask took away
            produce(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _keep_owner(handle: int, before: os.stat_result) -> None:
    """The group, and where one may, the owner of the file that is replaced."""
    now = os.fstat(handle)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        with contextlib.suppress(OSError):
            os.fchown(handle, -1, before.st_gid)
        with contextlib.suppress(OSError):
            os.fchown(handle, before.st_uid, -1)


def _sync_folder(folder: Path) -> None:
    """The name itself on the disk; not every system lets a folder be opened."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sweep(target: Path) -> None:
    """Removes what a killed writer of ``target`` left behind: nobody holds its lock any more."""
    if fcntl is None:
        return
    pattern = re.compile(re.escape(f".{target.name[:_SHOWN]}.") + r"[0-9a-f]{16}\.tmp")
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove_if_left(entry.path)


def _remove_if_left(path: str) -> None:
    handle = os.open(path, os.O_RDWR | _NOFOLLOW)
    try:
        if _lock(handle, wait=False):
            os.unlink(path)
    finally:
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Whether the lock on an open file is ours now; where the system has none, it is nobody's."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, wait: bool = True) -> Iterator[None]:
    """One process at a time inside, by a lock on the file ``path``, which stays and is empty.

    Raises:
        CheckpointError: another process is inside and ``wait`` is False, or the file cannot be.
    """
    path = path_of(path)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | _NOFOLLOW, 0o666)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be locked: {error.strerror or error}") from error
    try:
        if not _lock(handle, wait=wait):
            raise CheckpointError(
                f"another process is at work in {path.parent}: wait until it has ended, or name "
                "another folder"
            )
        yield
    finally:
        os.close(handle)  # which gives the lock back, as the end of the process does


def append(path: str | os.PathLike[str], line: str) -> None:
    """Adds one line to a text file, in one write, forced to the disk; a torn last line goes first.

    Raises:
        CheckpointError: the file cannot be written.
    """
    given = path_of(path)
    data = (line + "\n").encode("utf-8")
    try:
        handle = os.open(given, os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY, 0o666)
        try:
            end = _whole_end(handle)
            os.ftruncate(handle, end)
            try:
                while data:
                    data = data[os.write(handle, data) :]
            except BaseException:
                os.ftruncate(handle, end)
                raise
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{given} cannot be written: {reason}") from error


def _whole_end(handle: int) -> int:
    """Where the last whole line ends."""
    end = os.lseek(handle, 0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        os.lseek(handle, start, os.SEEK_SET)
        found = os.read(handle, end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The whole lines of a text file; none where there is no file. A torn last line is no line.

    Raises:
        CheckpointError: the file cannot be read.
    """
    given = path_of(path)
    try:
        text = given.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{given} cannot be read: {reason}") from error
    whole = text[: text.rfind(b"\n") + 1]
    return whole.decode("utf-8", errors="replace").splitlines()
