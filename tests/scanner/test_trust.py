"""What a base is trusted with: not change times of images, which have none, and nothing of a clock that was ahead."""

from __future__ import annotations

import dataclasses
import os
import random
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mkmeta.codec.info import Info
from mkmeta.manifest.reader import ManifestReader
from mkmeta.scanner import base as base_module
from mkmeta.scanner import scan as scan_module
from tests.scanner.helpers import Scanned, make_sample
from tests.scanner.test_base import Opened, again, first_scan

THEN = 1_600_000_000  # seconds; mtime of everything in the images
IMAGES = {
    "squashfs": ["mksquashfs", "{source}", "{image}", "-noappend", "-all-time", str(THEN), "-mkfs-time", str(THEN)],
    "erofs": ["mkfs.erofs", f"-T{THEN}", "-U00000000-0000-0000-0000-000000000001", "{image}", "{source}"],
}


@pytest.fixture(autouse=True)
def _everything_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_module, "TRUST_MARGIN", 0)


def tree(root: Path, version: str, owner: int) -> Path:
    """The same names, sizes and times for every version."""
    (root / "rel/lib").mkdir(parents=True)
    (root / "rel/lib/version.py").write_text(f"version = {version}")
    (root / "rel/current").symlink_to(f"v{version}")
    (root / "rel/own").write_text("x")
    os.chown(root / "rel/own", owner, 0)
    os.setxattr(root / "rel/own", "user.k", version.encode())
    for path in (root, *root.rglob("*")):
        os.utime(path, (THEN, THEN), follow_symlinks=False)
    return root


@pytest.fixture
def mount_point(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "volume"
    point.mkdir()
    yield point
    subprocess.run(["umount", "-q", point], check=False)


@pytest.mark.needs("root", "loop mounts")
@pytest.mark.parametrize("kind", IMAGES)
def test_another_image_in_the_same_place(tmp_path: Path, mount_point: Path, kind: str) -> None:
    results: list[Scanned] = []
    for version in "12":
        source, image = tree(tmp_path / version, version, int(version)), tmp_path / f"{version}.img"
        command = [word.format(source=source, image=image) for word in IMAGES[kind]]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip(f"this machine lacks: {command[0]}")
        subprocess.run(["umount", "-q", mount_point], check=False)
        subprocess.run(["mount", "-o", "loop,ro", image, mount_point], check=True)
        if not results:
            results = [first_scan(mount_point)]
    base = results[0]
    with ManifestReader.open(str(base.path)) as reader:
        looks = [
            (seen.inode, seen.change_time) for seen in reader.recorded(reader.root.directory, b"", reader.facts_place)
        ]
        assert [(status.st_ino, status.st_ctime_ns) for status in [os.lstat(mount_point / "rel")]] == looks
    assert again(mount_point, base).id == first_scan(mount_point).id != base.id


def test_a_base_from_the_future_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    make_sample(volume, privileged=False)
    ahead = 10**13  # ns

    def of_a_clock_ahead(**fields: object) -> Info:
        info = Info(**fields)  # type: ignore[arg-type]
        return dataclasses.replace(info, created=info.created + ahead)

    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "Info", of_a_clock_ahead)
        base = first_scan(volume)
    time.sleep(0.012)
    opened = Opened(tmp_path / "opened")
    result = again(volume, base, open_content=opened)
    assert result.report.base_is_from_the_future and result.id == base.id
    assert len(opened.names) >= 7 and result.report.counts.unchanged == 0
    part = again(volume, base, only=(b"grp/a",))
    with ManifestReader.open(str(part.path)) as reader:
        assert reader.info.created > time.time_ns(), "what was not looked at is as doubtful as before"
    once_more = Opened(tmp_path / "again")
    assert not again(volume, result, open_content=once_more).report.base_is_from_the_future
    assert once_more.names == []


def test_each_attribute_alone_is_a_change(tmp_path: Path) -> None:
    """Whatever the change time says: what lstat(2) tells is compared."""
    file = tmp_path / "file"
    file.write_text("x")
    os.utime(file, ns=(5, 5))
    seen = os.lstat(file)
    fd = os.open(tmp_path, os.O_RDONLY)
    volume = tmp_path / "v"
    volume.mkdir()
    (volume / "f").touch()
    time.sleep(0.012)
    with ManifestReader.open(str(first_scan(volume).path)) as reader:
        base = base_module.Base(reader, fd, adopted=False, trust=True)
    os.close(fd)
    row: list[object] = [b"file", seen.st_mode, seen.st_uid, seen.st_gid, 0, 5, 1, None, None]
    assert base.are_as_recorded([row], [seen.st_ino], [seen.st_ctime_ns], [seen])
    assert not base.are_as_recorded([row], [seen.st_ino + 1], [seen.st_ctime_ns], [seen])
    assert not base.are_as_recorded([row], [seen.st_ino], [seen.st_ctime_ns - 1], [seen])
    base.trusted_before = seen.st_ctime_ns
    assert not base.are_as_recorded([row], [seen.st_ino], [seen.st_ctime_ns], [seen]), "it may have changed once more"
    base.trusted_before += 1
    base._is_clock_trusted = False
    for change_time, mtime, same in ((5 * 10**9, 5 * 10**9, False), (6 * 10**9, 5 * 10**9, True), (7, 7, True)):
        stamps = {"st_mtime_ns": mtime, "st_ctime_ns": change_time}
        image = os.stat_result((*tuple(seen)[:8], mtime // 10**9, change_time // 10**9), stamps)
        there = [*row[:4], *divmod(mtime, 10**9), *row[6:]]
        assert base.are_as_recorded([there], [seen.st_ino], [change_time], [image]) is same, stamps
    base._is_clock_trusted = True
    chance = random.Random(1)
    for position in range(1, 7):
        other = list(row)
        other[position] = int(str(row[position])) ^ 1 << chance.randrange(9)
        assert not base.are_as_recorded([other], [seen.st_ino], [seen.st_ctime_ns], [seen]), position
        rows, inodes, times = [row, other, row], [seen.st_ino] * 3, [seen.st_ctime_ns] * 3
        assert not base.are_as_recorded(rows, inodes, times, [seen] * 3), position


@pytest.mark.needs("root")
def test_each_type_is_compared_by_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "f").touch()
    (tmp_path / "link").symlink_to("target")
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "device", 0o020600, os.makedev(5, 7))
    (tmp_path / "directory").mkdir()
    time.sleep(0.012)
    fd = os.open(tmp_path, os.O_RDONLY)
    with ManifestReader.open(str(first_scan(tmp_path / "v").path)) as reader:
        base = base_module.Base(reader, fd, adopted=False, trust=True)
    os.close(fd)
    own: dict[str, list[Any]] = {"link": [b"target"], "fifo": [], "device": [5, 7], "directory": [bytes(32), 0, 1]}
    looks = {name: os.lstat(tmp_path / name) for name in own}
    rows = {
        name: [name.encode(), seen.st_mode, seen.st_uid, seen.st_gid, *divmod(seen.st_mtime_ns, 10**9), *own[name]]
        for name, seen in looks.items()
    }

    def same(found: str, **other: list[Any]) -> bool:
        recorded = other.get("row", rows[found])
        return base.are_as_recorded([recorded], [looks[found].st_ino], [looks[found].st_ctime_ns], [looks[found]])

    assert same("link") and same("fifo") and same("device")
    assert not same("directory"), "what is in it may have changed"
    assert not same("link", row=[*rows["link"][:6], b"targets"])
    assert not same("device", row=[*rows["device"][:6], 5, 8])
    assert not same("device", row=[*rows["device"][:6], 6, 7])
    assert not same("fifo", row=rows["link"])
    assert not same("link", row=rows["fifo"])


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The value of system.posix_acl_access: version 2, then tag, permissions and ID of each entry (acl(5))."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACLS = [acl((1, 6, NOBODY), (2, bits, 1000), (4, 4, NOBODY), (0x10, 4, NOBODY), (0x20, 4, NOBODY)) for bits in (1, 4)]


@pytest.mark.needs("root")
@pytest.mark.parametrize("name", ["user.k", "trusted.k", "security.k", "system.posix_acl_access"])
@pytest.mark.parametrize("what", ["grp/a/v1/lib/one.py", "grp/a/v1/lib"])
def test_attributes_are_not_asked_for_where_the_change_time_is_as_before(
    tmp_path: Path, name: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since whatever is done to one shows in that (formats/manifest.md section 6), and the mode may stay as it is."""
    volume = tmp_path / "volume"
    volume.mkdir()
    make_sample(volume, privileged=False)
    path = volume / what
    values = ACLS if name == "system.posix_acl_access" else [b"one", b"two"]
    os.chmod(path, 0o644 if path.is_file() else 0o755)
    asked = os.listxattr
    before = None
    for value in (None, *values, None):
        if value is not None:
            os.setxattr(path, name, value)
        elif before is not None:
            os.removexattr(path, name)
        time.sleep(0.05)  # more than a tick of the clock of change times
        found = first_scan(volume)
        if before is not None:
            assert found.id != before.id
            assert again(volume, before).id == found.id
        before = found

    def listxattr(path: bytes, *, follow_symlinks: bool = True) -> list[str]:
        raise AssertionError(path)  # in a worker, which then ends

    assert before is not None
    os.setxattr(volume, "user.of-the-root", b"which is looked at as it always merges")
    monkeypatch.setattr(os, "listxattr", lambda name, **how: asked(name, **how) if name == b"." else listxattr(name))
    assert again(volume, before).report.counts.unchanged == before.report.counts.files + (
        before.report.counts.symlinks + before.report.counts.others
    )
