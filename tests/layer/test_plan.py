"""The plan: which overlayfs attributes every kind of entry gets."""

from __future__ import annotations

import pytest

from mkmeta.digest import ObjectId, VerityDigest
from mkmeta.errors import BuildError, UsageError
from mkmeta.model import Device, Directory, DirectoryKind, Entry, Node, RegularFile, Root, Special, Symlink
from mkmeta.plan import Plan, PlannedNode

DIGEST = VerityDigest(b"v" * 32)
SOURCE = ((b"user.source", b"1"),)


def file(size: int, verity: VerityDigest | None = None) -> RegularFile:
    return RegularFile(mode=0o100644, uid=1, gid=2, mtime_ns=3, size=size, verity=verity, xattrs=SOURCE)


def directory(kind: DirectoryKind) -> Directory:
    return Directory(
        mode=0o040755, uid=1, gid=2, mtime_ns=3, children=ObjectId(bytes(32)), entries=1, kind=kind, xattrs=SOURCE
    )


def planned(plan: Plan, node: Node, path: bytes = b"some/where") -> PlannedNode:
    (result,) = plan.children(path, [Entry(b"name", node)])
    assert result.name == b"name"
    assert result.inode is node
    return result


@pytest.mark.parametrize("namespace", [b"trusted.overlay.", b"user.overlay."])
def test_opaque_directories_carry_both_forms(namespace: bytes) -> None:
    plan = Plan(userxattr=namespace.startswith(b"user"))
    assert dict(planned(plan, directory(DirectoryKind.OPAQUE)).xattrs) == {
        b"user.source": b"1",
        namespace + b"opaque": b"y",
        namespace + b"overlay.opaque": b"y",
    }


def test_merge_directories_and_the_root_are_never_opaque() -> None:
    assert planned(Plan(), directory(DirectoryKind.MERGE)).xattrs == SOURCE
    root = Plan().root(Root(directory=directory(DirectoryKind.MERGE), links=None, digests=()), ObjectId(b"i" * 32))
    assert dict(root.xattrs) == {b"user.source": b"1", b"trusted.overlay.mkmeta": b"i" * 32}


@pytest.mark.parametrize(
    ("plan", "path", "redirect"),
    [
        (Plan(), b"", b"/name"),
        (Plan(), b"a/b", b"/a/b/name"),
        (Plan(prefix=b"sw/x"), b"", b"/sw/x/name"),
        (Plan(prefix=b"sw"), b"a", b"/sw/a/name"),
    ],
)
def test_files_redirect_to_their_path(plan: Plan, path: bytes, redirect: bytes) -> None:
    xattrs = dict(planned(plan, file(1), path).xattrs)
    assert xattrs == {b"user.source": b"1", b"trusted.overlay.metacopy": b"", b"trusted.overlay.redirect": redirect}


def test_digests_are_there_when_wanted() -> None:
    name = b"trusted.overlay.metacopy"
    assert dict(planned(Plan(), file(1, DIGEST)).xattrs)[name] == b"\0\x24\0\x01" + DIGEST
    assert dict(planned(Plan(verity=False), file(1, DIGEST)).xattrs)[name] == b""


@pytest.mark.parametrize(
    "node",
    [
        file(0, DIGEST),
        Symlink(mode=0o120777, uid=0, gid=0, mtime_ns=0, target=b"x", xattrs=SOURCE),
        Device(mode=0o020600, uid=0, gid=0, mtime_ns=0, major=1, minor=3, xattrs=SOURCE),
        Special(mode=0o010600, uid=0, gid=0, mtime_ns=0, xattrs=SOURCE),
    ],
    ids=["empty file", "symlink", "device", "fifo"],
)
def test_what_has_no_data_below_gets_nothing(node: Node) -> None:
    assert planned(Plan(), node).xattrs == SOURCE


def test_a_redirect_the_kernel_would_not_follow_is_an_error() -> None:
    plan = Plan(prefix=b"p" * 90)
    path = b"/".join([b"x" * 199] * 20)  # with name, prefix and two slashes: 4,095 bytes
    assert len(dict(planned(plan, file(1), path[:3998]).xattrs)[b"trusted.overlay.redirect"]) == 4095
    with pytest.raises(BuildError, match="its redirect has 4096 bytes"):
        planned(plan, file(1), b"x" + path[:3998])
    planned(plan, file(0), b"x" + path[:3998])


@pytest.mark.parametrize("prefix", [b"..", b"a/../b", b"a//b", b".", b"a\0b", b"/a"])
def test_a_prefix_the_kernel_would_not_follow_is_refused(prefix: bytes) -> None:
    with pytest.raises(UsageError, match="redirect prefix"):
        Plan(prefix=prefix)
