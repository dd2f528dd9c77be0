"""Files are written whole or not at all, and what their owner made of them stays."""

import errno
import os
import stat
from pathlib import Path

import pytest

from kfac_lab.core import files
from kfac_lab.errors import CheckpointError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_the_mode_of_the_umask_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = files.write(tmp_path / "a", "one")
        assert mode(path) == 0o640
        path.chmod(0o604)
        files.write(path, b"two")
        assert mode(path) == 0o604 and path.read_text() == "two"
    finally:
        os.umask(before)


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "real"
    target.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(target)
    files.write(link, "new")
    assert link.is_symlink() and target.read_text() == "new"


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 16)
    (tmp_path / ".run.pt.0000000000000000.tmp").symlink_to(victim)
    # The name is random in truth; whoever guesses it gets it removed, not followed.
    with pytest.raises(CheckpointError):
        files.write(tmp_path / "run.pt", "mine")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("raised", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("stage", ["write", "fsync", "replace"])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, stage, raised):
    path = files.write(tmp_path / "a", "old")

    def fail(*args):
        raise raised

    if stage != "write":
        monkeypatch.setattr(files.os, stage, fail)
    wanted = CheckpointError if isinstance(raised, OSError) else KeyboardInterrupt
    with pytest.raises(wanted):
        files.write(path, fail if stage == "write" else "new")
    monkeypatch.undo()
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(tmp_path) -> None:
    left = tmp_path / ".a.0123456789abcdef.tmp"
    left.write_text("half")
    other = tmp_path / ".a.mine.tmp"
    other.write_text("not ours")

    def produce(file):
        file.write(b"first")
        files.write(tmp_path / "a", "second")  # beside a writer that is still at it

    files.write(tmp_path / "a", produce)
    assert (tmp_path / "a").read_text() == "first"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.mine.tmp", "a"]


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    files.write("/dev/null", "anything")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("path", ["", None, b"a", 3, "a\0b"], ids=repr)
def test_what_is_no_path(path) -> None:
    with pytest.raises(CheckpointError, match=r"names no file|named by a text"):
        files.write(path, "x")


def test_other_places_that_cannot_be(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "a", tmp_path / ("n" * 300)):
        with pytest.raises(CheckpointError, match="cannot be written"):
            files.write(path, "x")
    long = tmp_path / ("n" * 252 + ".pt")  # 255 bytes: the longest name there is
    assert files.write(long, "x").read_text() == "x"


def test_a_torn_last_line_is_no_line_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    assert files.read_lines(path) == []
    files.append(path, "one")
    files.append(path, "two")
    path.write_bytes(path.read_bytes()[:-2])
    assert files.read_lines(path) == ["one"]
    files.append(path, "three")
    assert files.read_lines(path) == ["one", "three"]
    path.write_bytes(b"torn, and nothing before it")
    files.append(path, "four")
    assert path.read_text() == "four\n"


def test_an_append_that_fails_leaves_whole_lines(tmp_path, monkeypatch) -> None:
    path = tmp_path / "lines"
    files.append(path, "one")
    real = os.write

    def some(handle, data):
        real(handle, data[:2])
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(files.os, "write", some)
    with pytest.raises(CheckpointError, match="No space left"):
        files.append(path, "two")
    assert path.read_text() == "one\n"


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    with files.locked(tmp_path / "lock"):
        with pytest.raises(CheckpointError, match="another process is at work"):
            with files.locked(tmp_path / "lock", wait=False):
                pass
    with files.locked(tmp_path / "lock", wait=False):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(CheckpointError, match="cannot be locked"), files.locked(tmp_path / "link"):
        pass
    assert not (tmp_path / "victim").exists()
