"""What a scan records, against what find, getfattr and fsverity say of the same tree."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from mkmeta.digest import verity_digest
from mkmeta.manifest.check import check
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import (
    NS,
    Device,
    DigestName,
    Directory,
    DirectoryKind,
    HardLinks,
    Node,
    PrimaryRow,
    RegularFile,
    Symlink,
)
from tests.conftest import CAPABILITIES
from tests.scanner.helpers import make_sample, scan_tree
from tests.verifier.checking import found, make_layer

PRIVILEGED = CAPABILITIES["root"] and CAPABILITIES["trusted xattrs"]


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    root = tmp_path / "volume"
    root.mkdir()
    make_sample(root, privileged=PRIVILEGED)
    return root


def from_find(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Path, type, mode, owner, mtime and, where it means something, size and target; as find sees them."""
    form = r"%P\0%y\0%m\0%U\0%G\0%T@\0%s\0%l\0"
    output = subprocess.run(["find", root, "-mindepth", "1", "-printf", form], check=True, capture_output=True).stdout
    found: dict[bytes, tuple[object, ...]] = {}
    fields = output.split(b"\0")
    for start in range(0, len(fields) - 1, 8):
        path, kind, mode, uid, gid, mtime, size, target = fields[start : start + 8]
        size = size if kind == b"f" else b""
        found[path] = (kind, int(mode, 8), int(uid), int(gid), _ns(mtime), size, target)
    return found


def _ns(text: bytes) -> int:
    """find prints seconds with ten decimals, the sign before the seconds, the fraction always added."""
    whole, _, fraction = text.decode().partition(".")
    return int(whole) * NS + int(fraction[:9])


def from_manifest(node: Node) -> tuple[object, ...]:
    kinds = {0o100000: b"f", 0o40000: b"d", 0o120000: b"l", 0o10000: b"p", 0o140000: b"s", 0o20000: b"c", 0o60000: b"b"}
    size = str(node.size).encode() if isinstance(node, RegularFile) else b""
    target = node.target if isinstance(node, Symlink) else b""
    return (kinds[node.mode & 0o170000], node.mode & 0o7777, node.uid, node.gid, node.mtime_ns, size, target)


def test_attributes_are_those_find_shows(sample: Path) -> None:
    recorded = {path: from_manifest(node) for path, node in scan_tree(sample).nodes().items()}
    assert recorded == from_find(sample)
    assert len(recorded) > 25


@pytest.mark.needs("getfattr")
def test_xattrs_are_those_getfattr_shows(sample: Path) -> None:
    recorded = {
        path: {name: value.hex() for name, value in node.xattrs}
        for path, node in scan_tree(sample).nodes().items()
        if node.xattrs
    }
    output = subprocess.run(
        ["getfattr", "-R", "-P", "-h", "-d", "-m", "-", "-e", "hex", "--absolute-names", sample],
        check=True,
        capture_output=True,
    ).stdout
    shown: dict[bytes, dict[bytes, str]] = {}
    for block in output.strip().split(b"\n\n"):
        head, *lines = block.split(b"\n")
        path = os.path.relpath(_unescape(head.removeprefix(b"# file: ")), os.fsencode(sample))
        shown[path] = {name: value.decode()[2:] for name, _, value in (line.partition(b"=") for line in lines)}
    assert recorded == shown
    assert len(recorded) >= 3


def _unescape(text: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)


def test_digests_are_of_the_content(sample: Path) -> None:
    files = {path: node for path, node in scan_tree(sample).nodes().items() if isinstance(node, RegularFile)}
    assert len(files) > 8
    for path, node in files.items():
        with open(os.path.join(os.fsencode(sample), path), "rb") as file:
            content = file.read()
        assert node.blake3 == blake3(content).digest(), path
        assert node.verity == verity_digest(content), path


@pytest.mark.needs("fsverity")
def test_verity_digests_are_those_of_fsverity(sample: Path) -> None:
    nodes = scan_tree(sample, digests=(DigestName.VERITY,)).nodes()
    files = {path: node for path, node in nodes.items() if isinstance(node, RegularFile)}
    assert len(files) > 8
    for path, node in files.items():
        name = os.path.join(os.fsencode(sample), path)
        output = subprocess.run(["fsverity", "digest", "--compact", name], check=True, capture_output=True).stdout
        assert node.verity is not None and node.verity.hex() in output.decode(), path
        assert node.blake3 is None


def test_large_file_is_hashed_in_pieces(tmp_path: Path) -> None:
    """A file of its own task, with two Merkle levels, next to small ones."""
    root = tmp_path / "volume"
    (root / "d").mkdir(parents=True)
    content = os.urandom(9_000_001)
    for name in ("a", "m", "z"):
        (root / "d" / name).write_bytes(name.encode())
    (root / "d" / "large").write_bytes(content)
    os.link(root / "d" / "large", root / "again")
    scanned = scan_tree(root, workers=2)
    node = scanned.nodes()[b"d/large"]
    assert isinstance(node, RegularFile)
    assert (node.blake3, node.verity) == (blake3(content).digest(), verity_digest(content))
    assert list(scanned.nodes()) == [b"again", b"d", b"d/a", b"d/large", b"d/m", b"d/z"]
    assert scanned.report.counts.files == 5


def test_hard_links_across_subtrees(sample: Path) -> None:
    """A release can be deleted without another's files: only with HardLinks.ALL names in two of them are one inode."""
    one = os.lstat(sample / "grp/a/v1/lib/one.py")
    assert one.st_nlink == 3
    for hard_links, nlink in ((HardLinks.SUBTREE, 2), (HardLinks.ALL, 3)):
        scanned = scan_tree(sample, "grp/*/v1", "top", hard_links=hard_links)
        with ManifestReader.open(str(scanned.path)) as reader:
            rows = list(reader.links())
            check(reader)
        assert PrimaryRow(b"grp/a/v1/lib/one.py", nlink) in rows
        assert ((b"grp/b/v1/lib/same", b"grp/a/v1/lib/one.py") in rows) == (hard_links is HardLinks.ALL)
        assert (b"grp/a/v1/lib/same", b"grp/a/v1/lib/one.py") in rows
        assert (b"grp/a/v1/lib/fifo2", b"grp/a/v1/lib/fifo") in rows


def test_hard_link_with_one_end_selected_is_an_ordinary_file(sample: Path) -> None:
    scanned = scan_tree(sample, "grp/b")
    with ManifestReader.open(str(scanned.path)) as reader:
        assert list(reader.links()) == []
    assert b"grp/b/v1/lib/same" in scanned.nodes()


def test_selection_gives_skeleton_and_subtrees(sample: Path) -> None:
    nodes = scan_tree(sample, "grp/*/v1/lib", "tools/**/python", "top").nodes()
    kinds = {path: node.kind for path, node in nodes.items() if isinstance(node, Directory)}
    merge = {path for path, kind in kinds.items() if kind is DirectoryKind.MERGE}
    assert merge == {b"grp", b"grp/a", b"grp/a/v1", b"grp/b", b"grp/b/v1", b"tools", b"tools/x"}
    assert kinds[b"grp/a/v1/lib"] is kinds[b"grp/b/v1/lib/deep"] is DirectoryKind.OPAQUE
    assert b"grp/a/v2" not in nodes and b"top" in nodes


def test_facts_are_those_of_the_inodes(sample: Path) -> None:
    scanned = scan_tree(sample, "grp/a", "tools")
    with ManifestReader.open(str(scanned.path)) as reader:
        todo = [(b"", reader.root.directory, reader.facts_place)]
        seen = 0
        while todo:
            path, directory, place = todo.pop()
            assert place is not None
            for name, node, inode, change_time, _, below in reader.recorded(directory, path, place):
                full = os.path.join(path, name)
                actual = os.lstat(os.path.join(os.fsencode(sample), full))
                assert (inode, change_time) == (actual.st_ino, actual.st_ctime_ns)
                seen += 1
                if isinstance(node, Directory):
                    todo.append((full, node, below))
    assert seen > 15


def test_same_id_for_any_number_of_workers_and_any_copy(sample: Path, tmp_path: Path) -> None:
    reference = scan_tree(sample).id
    assert [scan_tree(sample, workers=count).id for count in (2, 3, 8)] == [reference] * 3
    if CAPABILITIES["rsync"]:
        copy = tmp_path / "elsewhere" / "copy"
        copy.parent.mkdir()
        subprocess.run(["rsync", "-aHAX", "--modify-window=-1", f"{sample}/", f"{copy}/"], check=True)
        os.utime(copy, ns=(0, os.lstat(sample).st_mtime_ns))
        assert os.lstat(copy / "top").st_ino != os.lstat(sample / "top").st_ino
        assert scan_tree(copy).id == reference


def _unlink(path: Path) -> None:
    """Makes a copy of what was a hard link."""
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.rename(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda root: (root / "top").write_bytes(b"LEVEL"),
    "mode": lambda root: (root / "top").chmod(0o600),
    "time": lambda root: os.utime(root / "top", ns=(0, 1)),
    "name": lambda root: (root / "grp/b/v1/lib/-").rename(root / "grp/b/v1/lib/--"),
    "xattr": lambda root: os.setxattr(root / "grp/b/empty", "user.x", b""),
    "link": lambda root: _unlink(root / "grp/a/v1/lib/same"),
    "directory": lambda root: (root / "grp/b/empty").rmdir(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_tree_has_another_id(sample: Path, what: str) -> None:
    times = {
        path: os.lstat(path).st_mtime_ns for path in (sample, *sample.rglob("*")) if path.is_dir() or path.name == "top"
    }
    before = scan_tree(sample).id
    CHANGES[what](sample)
    for path, mtime in times.items():  # so that only what was changed on purpose differs
        if path.exists() and what != "time":
            os.utime(path, ns=(mtime, mtime))
    assert scan_tree(sample).id != before


def test_device_numbers_beyond_a_byte(sample: Path) -> None:
    if not PRIVILEGED:
        pytest.skip("this machine lacks: root, trusted xattrs")
    node = scan_tree(sample).nodes()[b"grp/a/v1/lib/disk"]
    assert isinstance(node, Device)
    assert (node.major, node.minor) == (259, 1_000_000)


@pytest.mark.needs("root")
@pytest.mark.parametrize("pattern", ["*", "system.*", "system.posix_acl_access"])
def test_a_mode_without_its_acl_allows_no_more(tmp_path: Path, pattern: str) -> None:
    volume = tmp_path / "volume"
    (volume / "rel").mkdir(parents=True)
    acl = struct.pack(
        "<I" + "HHI" * 5, 2, 1, 7, 2**32 - 1, 2, 4, 1000, 4, 0, 2**32 - 1, 16, 5, 2**32 - 1, 32, 5, 2**32 - 1
    )
    for path in (volume / "rel", volume / "rel/file"):
        path.touch()
        os.setxattr(path, "system.posix_acl_access", acl)
        assert path.stat().st_mode & 0o777 == 0o755
    scanned = scan_tree(volume, drop_xattrs=(pattern.encode(),))
    nodes = scanned.nodes()
    for recorded in (b"rel", b"rel/file"):
        assert (nodes[recorded].mode & 0o777, nodes[recorded].xattrs) == (0o704, ())
    make_layer(scanned.path, tmp_path / "layer")
    assert found(scanned.path, tmp_path / "layer", lower=volume) == []
