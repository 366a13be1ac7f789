"""Histories that once hid files, sent a name to a deleted file or ended a scan; each stands for its kind."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mkmeta.scanner.looking import open_content
from tests.conftest import Mount
from tests.model.test_machine import BEFORE, History
from tests.scanner.helpers import scan_tree

pytestmark = pytest.mark.needs("root", "overlay", "trusted xattrs", "user xattrs")


@pytest.fixture
def history() -> Iterator[History]:
    made = History()
    try:
        yield made
    finally:
        made.teardown()


@pytest.mark.parametrize("patterns", [["s/new"], ["s/new/a"], ["*/new"], ["s/note", "s/new"]])
def test_a_rescan_of_the_rest_after_a_prune(history: History, patterns: list[str]) -> None:
    history.first_scan(("s",))
    history.prune(["s/old"])
    history.scan_only(patterns)
    history.scan_again()
    assert history.whole


@pytest.mark.parametrize("drop", ["s/old", "s/old/d", "s/note"])
def test_a_rescan_of_all_after_a_prune(history: History, drop: str) -> None:
    history.first_scan(("s",))
    history.prune([drop])
    history.scan_again()


@pytest.mark.parametrize("select", [("g/*",), ("g/*/*",), ("*",)])
@pytest.mark.parametrize("beside", [b"g/p/v1/linked", b"g/p/linked", b"g/q/v2/linked"])
def test_a_rescan_of_parts_with_links_beside_them(history: History, select: tuple[str, ...], beside: bytes) -> None:
    os.link(history.volume.real(b"g/p/v1/a"), history.volume.real(beside))
    history.first_scan(select)
    history.scan_only(["g/*/v2"])
    history.volume.remove(b"g/p/v2")
    history.dirty.add(b"g/p/v2")
    history.scan_only(["g/*/v2"])


def test_the_directory_of_a_link_is_gone_on_the_way(history: History) -> None:
    os.link(history.volume.real(b"g/p/v1/a"), history.volume.real(b"g/p/v1/d/linked"))
    history.first_scan(("g/*",))
    history.volume.remove(b"g/p/v1/d")
    history.dirty.add(b"g/p/v1/d")
    history.scan_only(["g/*/*/d/b"])
    history.scan_only(["g/*/v1"])


@pytest.mark.needs("loop mounts", "mkfs.ext4")
@pytest.mark.parametrize("digest", ["none", "blake3"])
def test_an_inode_number_that_was_used_again(mount: Mount, tmp_path: Path, digest: str) -> None:
    """A release is deleted, the same files are released elsewhere: equal attributes, times and inode numbers."""
    with (tmp_path / "image").open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", tmp_path / "image"], check=True)
    history = History(mount("ext4", "loop", tmp_path / "image"))
    stage = history.scratch / "stage"
    stage.mkdir()
    for count in range(40):
        (stage / str(count)).write_bytes(b"%02d" % (count if digest == "none" else 0))
        os.utime(stage / str(count), ns=(BEFORE, BEFORE))
    old, new = history.volume.real(b"s/v1"), history.volume.real(b"s/v2")
    subprocess.run(["cp", "-a", stage, old], check=True)
    numbers = {os.lstat(os.path.join(old, name)).st_ino for name in os.listdir(old)}
    history.first_scan(("s/v1",), digest)
    history.volume.remove(b"s/v1")
    history.dirty.add(b"s/v1")
    subprocess.run(["cp", "-a", stage, new], check=True)
    assert numbers & {os.lstat(os.path.join(new, name)).st_ino for name in os.listdir(new)}, "ext4 uses them again"
    history.merge_news("s/v2")


@pytest.mark.parametrize("select", [("g/p/*", "s"), ("g/*/v*", "s", "top"), ("**/v1", "**/v3", "g/p/v2/a")])
def test_releases_that_share_files_by_links(history: History, select: tuple[str, ...]) -> None:
    history.copy_by_links("g/p/v1", "v3")
    os.link(history.volume.real(b"g/p/v1/a"), history.volume.real(b"g/p/v1/again"))
    os.unlink(history.volume.real(b"g/p/v2/a"))
    os.link(history.volume.real(b"g/p/v1/a"), history.volume.real(b"g/p/v2/a"))
    history.first_scan(select)
    history.scan_again()
    history.merge_shards()
    history.scan_only(["g/p/v*"])


def test_a_linked_file_changes_at_each_look(history: History) -> None:
    """Its subtree is left out, and the rest is recorded."""
    volume = history.volume
    os.link(volume.real(b"s/old/a"), volume.real(b"s/old/d/again"))
    number = os.lstat(volume.real(b"s/old/a")).st_ino

    def changing(name: bytes) -> int:
        fd = open_content(name)
        seen = os.fstat(fd)
        if seen.st_ino == number and name == b"again":
            os.chmod(volume.real(b"s/old/a"), stat.S_IMODE(seen.st_mode) ^ 0o040)
        return fd

    scanned = scan_tree(volume.top, "s/*", open_content=changing)
    assert set(scanned.left_out()) == {b"s/old"}
    assert {b"s/new", b"s/new/a", b"s/note"} <= set(scanned.nodes())


@pytest.mark.parametrize("again", ["s/zz/again", "s/old/d/again", "g/q/v2/again", "g/p/v1/again"])
def test_a_link_changes_between_the_looks_at_its_names(history: History, again: str) -> None:
    """Changed once: as it was, read again or left out; never the end of the scan."""
    volume = history.volume
    for name in ["s/zz", *(f"s/m{count}" for count in range(10))]:
        (volume.top / name).mkdir()
        volume.write(f"{name}/file".encode())
    os.link(volume.real(b"s/old/a"), volume.top / again)
    number = os.lstat(volume.real(b"s/old/a")).st_ino
    reads = []

    def changing(name: bytes) -> int:
        if os.lstat(name).st_ino == number:
            reads.append(name)
            if len(reads) == 2:  # one name is read, the other looked at
                os.chmod(volume.real(b"s/old/a"), 0o640)
        return open_content(name)

    # the hook is called in a process that is forked for the scan, so what it does is seen on the volume only
    scanned = scan_tree(volume.top, "g/*/*", "s", "top", open_content=changing)
    assert stat.S_IMODE(os.lstat(volume.real(b"s/old/a")).st_mode) == 0o640, "the change was made"
    assert set(scanned.left_out()) <= {b"s", b"g/q/v2", b"g/p/v1"}
    assert {b"top", b"g/p/v2", b"g/p/v2/a", b"g/q/v1/a"} <= set(scanned.nodes())
