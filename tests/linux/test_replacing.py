"""Files that appear complete or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mkmeta.linux.replacing import replacing


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_data_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, bool, bytes]] = []
    fsync, rename = os.fsync, os.rename

    def note(what: str) -> None:
        there = tmp_path / "name"
        done.append((what, there.exists(), (there if there.exists() else tmp_path / "temporary").read_bytes()))

    def noted_fsync(fd: int) -> None:
        note("directory" if os.path.samestat(os.fstat(fd), os.fstat(directory)) else "file")
        fsync(fd)

    def noted_rename(source: bytes, target: bytes, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        note("rename")
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    with replacing(b"name", b"temporary", dir_fd=directory) as stream:
        stream.write(b"all of it")
    assert done == [("file", False, b"all of it"), ("rename", False, b"all of it"), ("directory", True, b"all of it")]


@pytest.mark.parametrize("failing", ["block", "fsync", "rename"])
def test_what_was_there_stays_when_anything_fails(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_args: object, **_more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "name").write_bytes(b"old")
    if failing != "block":
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"), replacing(b"name", b"temporary", dir_fd=directory) as stream:
        stream.write(b"new")
        if failing == "block":
            fail()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"name": b"old"}


def test_what_somebody_else_put_there_is_not_written_through(tmp_path: Path, directory: int) -> None:
    (tmp_path / "temporary").symlink_to("elsewhere")
    with pytest.raises(FileExistsError), replacing(b"name", b"temporary", dir_fd=directory):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["temporary"]
