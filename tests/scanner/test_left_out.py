"""Invariant 1 under attack: what cannot be recorded faithfully takes its whole subtree out, and nothing else."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mkmeta.errors import LeftOutError, MkmetaError, NothingSelectedError, ScanError
from mkmeta.model import DigestName, Directory, DirectoryKind, Node, path_within
from mkmeta.scanner import directory, looking
from mkmeta.scanner.looking import open_content
from mkmeta.scanner.options import OnError
from tests.conftest import Mount
from tests.scanner.helpers import scan_tree


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Two releases; the trouble is made deep inside `bad`."""
    root = tmp_path / "volume"
    for release in ("good", "bad"):
        (root / release / "lib/deep").mkdir(parents=True)
        for name in ("lib/a", "lib/deep/b", "lib/deep/c", "z"):
            (root / release / name).write_text(f"{release} {name}")
    return root


def assert_bad_is_left_out(root: Path, expected: str, **options: object) -> None:
    """The subtree `bad` falls through as a whole, with a reason; `good` is complete; asked to stop, the scan stops."""
    scanned = scan_tree(root, "*", **options)
    assert set(scanned.left_out()) == {b"bad"}
    assert expected in scanned.left_out()[b"bad"]
    nodes = scanned.nodes()
    assert not [path for path in nodes if path.startswith(b"bad")]
    assert {path for path in nodes if path.startswith(b"good")} == {
        b"good", b"good/lib", b"good/lib/a", b"good/lib/deep", b"good/lib/deep/b", b"good/lib/deep/c", b"good/z"
    }  # fmt: skip
    assert scanned.report.counts.files == 4
    with pytest.raises(LeftOutError, match=expected.replace(".", r"\.")) as stop:
        scan_tree(root, "*", on_error=OnError.FAIL, **options)
    assert stop.value.path is not None and stop.value.path.startswith(b"bad/lib/deep")


_IN_NAMESPACE = """
import json, sys
sys.stdin.readline()  # until there are IDs
from pathlib import Path
from mkmeta.model import DigestName
from tests.scanner.helpers import scan_tree
digests = tuple(map(DigestName, sys.argv[2:]))
left_out = scan_tree(Path(sys.argv[1]), "*", digests=digests).left_out()
print(json.dumps({path.decode(): why for path, why in left_out.items()}))
"""
_OVERFLOW = int(Path("/proc/sys/kernel/overflowuid").read_text())
_OWNERS = (0, 1000, 1999, 2000, _OVERFLOW, 70_000, 4_000_000_000)


@pytest.mark.needs("root", "user namespaces", "unshare")
@pytest.mark.parametrize(
    "ranges",
    [[range(1)], [range(1), range(1000, 2000)], [range(65536)], [range(2**32 - 1)]],
    ids=["root", "root and some", "as many as containers have", "all"],
)
@pytest.mark.parametrize("digests", [(), (DigestName.BLAKE3,)], ids=["plain", "digests"])
def test_owners_without_an_id_in_the_user_namespace(
    tmp_path: Path, ranges: list[range], digests: tuple[DigestName, ...]
) -> None:
    """Each shows the overflow ID there, as he does who has it: what seems to be his is left out unless all have one."""
    chance = random.Random(len(ranges) + ranges[-1].stop)
    volume = tmp_path / "volume"
    volume.mkdir()
    expected = set()
    for number in range(24):
        release = volume / f"r{number}"
        (release / "lib").mkdir(parents=True)
        (release / "lib/link").symlink_to("f0")
        for name in range(4):
            (release / f"lib/f{name}").write_text("x")
        odd = chance.sample(sorted(release.rglob("*")), chance.choice((0, 1, 1, 2)))
        for path in odd:
            owner = chance.choice(_OWNERS), chance.choice(_OWNERS)
            os.chown(path, *owner, follow_symlinks=False)
            known = [any(one in ids for ids in ranges) and one != _OVERFLOW for one in owner]
            if not all(known) and ranges[-1].stop < 2**32 - 1:
                expected.add(f"r{number}")
    command = ["unshare", "--user", sys.executable, "-c", _IN_NAMESPACE, str(volume), *digests]
    table = "".join(f"{ids.start} {ids.start} {len(ids)}\n" for ids in ranges)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        while os.readlink(f"/proc/{process.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
            time.sleep(0.01)
        for kind in ("uid", "gid"):
            Path(f"/proc/{process.pid}/{kind}_map").write_text(table)
        print(file=process.stdin, flush=True)
        left_out = json.loads(process.stdout.readline())
    assert set(left_out) == expected
    assert all("has no ID in this user namespace" in why for why in left_out.values())
    assert set(scan_tree(volume, "*").left_out()) == set(), "here all are known"


@pytest.mark.needs("root")
def test_whiteout(volume: Path) -> None:
    os.mknod(volume / "bad/lib/deep/gone", 0o20000, os.makedev(0, 0))
    assert_bad_is_left_out(volume, "bad/lib/deep/gone: is an overlayfs whiteout")


@pytest.mark.parametrize(
    ("target", "xattr"),
    [
        pytest.param("b", "trusted.overlay.redirect", marks=pytest.mark.needs("trusted xattrs")),
        pytest.param(".", "trusted.overlay.opaque", marks=pytest.mark.needs("trusted xattrs")),
        pytest.param("b", "user.overlay.metacopy", marks=pytest.mark.needs("user xattrs")),
        pytest.param(".", "user.overlay.overlay.x", marks=pytest.mark.needs("user xattrs")),
    ],
)
def test_xattr_of_overlayfs(volume: Path, target: str, xattr: str) -> None:
    os.setxattr(volume / "bad/lib/deep" / target, xattr, b"y")
    assert_bad_is_left_out(volume, f"has the xattr {xattr}, which cannot be carried: belongs to overlayfs")


@pytest.mark.needs("root")
def test_mount_point_inside(volume: Path, mount: Mount) -> None:
    (volume / "bad/lib/deep/mnt").mkdir()
    mount("tmpfs", at=volume / "bad/lib/deep/mnt")
    assert_bad_is_left_out(volume, "bad/lib/deep/mnt: is a mount point")


@pytest.mark.needs("root")
@pytest.mark.parametrize("target", ["directory", "file"])
def test_bind_mount_of_the_same_filesystem(volume: Path, mount: Mount, target: str) -> None:
    """st_dev does not change here, but overlayfs does not follow it either."""
    where, source = volume / "bad/lib/deep/d", volume / "good"
    if target == "file":
        where, source = volume / "bad/lib/deep/b", volume / "good/z"
    if target == "directory":
        where.mkdir()
    mount("none", "bind", source=source, at=where)
    assert_bad_is_left_out(volume, "is a mount point")


@pytest.mark.needs("root", "setpriv")
def test_unreadable_entries(volume: Path) -> None:
    """As seen by a root that the capability to ignore permissions was taken from, like root on a root_squash export."""
    os.chown(volume / "bad/lib/deep", 12345, -1)
    (volume / "bad/lib/deep").chmod(0o700)
    os.chown(volume / "good/z", 12345, -1)
    (volume / "good/z").chmod(0)
    drop = "-dac_override,-dac_read_search"
    command = ["setpriv", "--bounding-set", drop, "--inh-caps", drop, sys.executable, "-m", "mkmeta", "scan"]
    for digest, left_out in (("none", ["bad"]), ("blake3", ["bad", "good"])):
        output = volume.parent / "out.mkm"
        output.unlink(missing_ok=True)
        result = subprocess.run(
            [*command, volume, "-o", output, "-q", "--digest", digest], capture_output=True, text=True, check=False
        )
        lines = [line for line in result.stderr.splitlines() if line.startswith("left out: ")]
        assert [line.split(": ")[1] for line in lines] == (left_out if len(left_out) < 2 else [])
        assert "permission denied" in result.stderr
        assert (result.returncode, output.exists()) == ((3, True) if len(left_out) < 2 else (1, False)), result.stderr


def test_path_too_long_to_follow(volume: Path) -> None:
    at = os.open(volume / "bad/lib/deep", os.O_RDONLY)
    for _ in range(17):
        os.mkdir("d" * 250, dir_fd=at)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    try:
        assert_bad_is_left_out(volume, "is longer than 4094 bytes")
    finally:
        subprocess.run(["rm", "-rf", volume / "bad"], check=True)


FAULTS = {
    errno.EIO: "input/output error",
    errno.EACCES: "permission denied",
    errno.ETIMEDOUT: "connection timed out",
}


@pytest.mark.parametrize("number", FAULTS)
def test_failing_reads(volume: Path, number: int) -> None:
    def opener(name: bytes) -> int:
        if name == b"c" and os.getcwd().endswith("bad/lib/deep"):
            raise OSError(number, os.strerror(number), name)
        return open_content(name)

    assert_bad_is_left_out(volume, f"bad/lib/deep/c: cannot be read: {FAULTS[number]}", open_content=opener)


def changing(path: Path, change: Callable[[Path], object], times: int) -> Callable[[bytes], int]:
    """Opens files; the first `times` times that `path` is opened, it is changed between the listing and the opening."""
    counter = path.parent.parent.parent.parent.parent / "counter"
    counter.touch()

    def opener(name: bytes) -> int:
        if name == os.fsencode(path.name) and os.getcwd() == str(path.parent) and counter.stat().st_size < times:
            with counter.open("a") as file:
                file.write("x")
            change(path)
        return open_content(name)

    return opener


CHANGES: dict[str, Callable[[Path], object]] = {
    "grows": lambda path: path.open("a").write("more"),
    "rewritten": lambda path: path.write_text("BAD lib/deep/c"),
    "replaced": lambda path: (path.with_name("new").write_text(path.read_text()), path.with_name("new").rename(path)),
    "chmod": lambda path: path.chmod(0o600),
    "sibling appears": lambda path: path.with_name(f"new{time.monotonic_ns()}").touch(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_once_is_read_again(volume: Path, change: str) -> None:
    path = volume / "bad/lib/deep/c"
    scanned = scan_tree(volume, open_content=changing(path, CHANGES[change], 1))
    assert scanned.left_out() == {}
    settled = scan_tree(volume)
    assert scanned.id == settled.id, "the second look must see the tree as it is now"


@pytest.mark.parametrize("change", CHANGES)
def test_what_keeps_changing_is_left_out(volume: Path, change: str) -> None:
    def always(path: Path) -> None:
        time.sleep(0.01)  # a clock tick, so that every change shows in a time stamp
        CHANGES[change](path)

    scanned = scan_tree(volume, open_content=changing(volume / "bad/lib/deep/c", always, 9))
    assert list(scanned.left_out()) == [b"bad"]
    assert "changed while it was read, twice" in scanned.left_out()[b"bad"]
    assert b"good/z" in scanned.nodes()


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOENT])
def test_stale_handles_are_asked_again(volume: Path, number: int) -> None:
    failures = volume.parent / "failures"
    failures.touch()

    def opener(name: bytes) -> int:
        if name == b"c" and failures.stat().st_size < 1:
            failures.write_text("x")
            raise OSError(number, os.strerror(number), name)
        return open_content(name)

    assert scan_tree(volume, open_content=opener).left_out() == {}


def merges(node: Node) -> bool:
    """Whether it shows what the volume has as well: then it may be absent, when nothing in it is recorded."""
    return isinstance(node, Directory) and node.kind is DirectoryKind.MERGE


@pytest.mark.parametrize(
    ("select", "odd"),
    [(("*",), b"bad"), (("bad", "good"), b"bad"), (("*/lib", "*/z"), b"bad"), (("*/z", "bad/lib"), b"z")],
)
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES, errno.EIO, errno.ENOTDIR])
@pytest.mark.parametrize("times", [1, 9])
def test_a_name_in_a_merge_directory_is_gone_only_when_there_is_none(
    volume: Path, monkeypatch: pytest.MonkeyPatch, select: tuple[str, ...], odd: bytes, number: int, times: int
) -> None:
    """Any other answer leaves it out, or is given once: nothing that is selected is absent in silence."""
    lstat = os.lstat
    asked = volume.parent / "asked"
    asked.touch()

    def answer(name: bytes) -> os.stat_result:
        if name == odd and asked.stat().st_size < times:
            with asked.open("a") as file:
                file.write("x")
            raise OSError(number, os.strerror(number), name)
        return lstat(name)

    whole = scan_tree(volume, *select).nodes()
    monkeypatch.setattr(os, "lstat", answer)
    scanned = scan_tree(volume, *select)
    monkeypatch.undo()
    assert asked.stat().st_size
    if times == 1:
        assert (scanned.nodes(), scanned.left_out()) == (whole, {})
    else:
        left_out = {path for path, _ in scanned.report.left_out}
        assert {path.split(b"/")[-1] for path in left_out} == {odd}
        missing = {path for path in whole.keys() - scanned.nodes().keys() if not merges(whole[path])}
        assert missing and all(any(path_within(path, top) for top in left_out) for path in missing)


def test_a_volume_that_goes_away_ends_the_scan(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a dead server every subtree would fail, one timeout after the other, and an empty layer would come out."""

    def opener(name: bytes) -> int:
        raise OSError(errno.EIO, "", name)

    def statvfs(_: int) -> None:
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    monkeypatch.setattr(os, "statvfs", statvfs)
    with pytest.raises(ScanError, match="does not answer any more: connection timed out"):
        scan_tree(volume, open_content=opener)


def test_single_entries_are_left_out_alone(volume: Path) -> None:
    """A selected file in a merge directory is no subtree: its directory still shows the volume's."""

    def opener(name: bytes) -> int:
        if name == b"z":
            raise OSError(errno.EACCES, "", name)
        return open_content(name)

    scanned = scan_tree(volume, "good/z", "good/lib/a", "bad/lib", open_content=opener)
    assert list(scanned.left_out()) == [b"good/z"]
    nodes = scanned.nodes()
    assert b"good/lib/a" in nodes and b"bad/lib/deep/b" in nodes and b"good/z" not in nodes
    assert nodes[b"good/lib"].kind is DirectoryKind.MERGE  # type: ignore[union-attr]


def test_nothing_left_is_an_error(volume: Path) -> None:
    def opener(name: bytes) -> int:
        raise OSError(errno.EACCES, "", name)

    with pytest.raises(ScanError, match="nothing selected could be recorded"):
        scan_tree(volume, open_content=opener)


def test_skeleton_of_what_was_left_out_goes_with_it(volume: Path) -> None:
    def opener(name: bytes) -> int:
        if name == b"b" and "bad" in os.getcwd():
            raise OSError(errno.EACCES, "", name)
        return open_content(name)

    scanned = scan_tree(volume, "*/lib/deep", open_content=opener)
    assert list(scanned.left_out()) == [b"bad/lib/deep"]
    assert set(scanned.nodes()) == {b"good", b"good/lib", b"good/lib/deep", b"good/lib/deep/b", b"good/lib/deep/c"}
    assert scanned.report.counts.skeleton == 3


def test_links_into_a_left_out_subtree_do_not_count(volume: Path) -> None:
    os.link(volume / "good/z", volume / "bad/lib/deep/same")

    def opener(name: bytes) -> int:
        if name == b"c" and "bad" in os.getcwd():
            raise OSError(errno.EACCES, "", name)
        return open_content(name)

    scanned = scan_tree(volume, "*", open_content=opener)
    assert list(scanned.left_out()) == [b"bad"]
    scanned.nodes()  # a link row naming bad/... would be a link to nowhere


def test_linked_names_that_differ_leave_their_subtrees_out(volume: Path) -> None:
    """Two names of an inode were seen in two states: one of the looks is of what is no more."""
    changed = volume.parent / "changed"
    os.link(volume / "bad/lib/a", volume / "good/lib/deep/zz")

    def opener(name: bytes) -> int:
        if name == b"c" and "good" in os.getcwd() and not changed.exists():
            changed.touch()
            (volume / "bad/lib/a").chmod(0o444)
        return open_content(name)

    scanned = scan_tree(volume, open_content=opener)
    assert changed.exists()
    left_out = {path for path, why in scanned.report.left_out if "changed during the scan" in why}
    assert left_out and left_out < {b"bad", b"good", b"other"}
    nodes = scanned.nodes()
    assert not any(path.split(b"/")[0] in left_out for path in nodes)
    for path in (b"bad/lib/a", b"good/lib/deep/zz"):
        assert (path in nodes) == (path.split(b"/")[0] not in left_out)
        assert path not in nodes or nodes[path].mode == 0o100444
    assert scan_tree(volume).report.left_out == ()
    with pytest.raises(LeftOutError):
        (volume / "bad/lib/a").chmod(0o600)
        changed.unlink()
        scan_tree(volume, open_content=opener, on_error=OnError.FAIL)


def test_transient_names_are_not_recorded(volume: Path) -> None:
    (volume / "good/lib/.nfs00000000012ab34c0000001f").write_text("deleted, but open")
    (volume / "good/lib/.nfs00000000012ab34c00000020").symlink_to("no link any more")
    others = [
        ".nfs-readme",
        ".nfs00000000012ab34c0000001",
        ".nfs00000000012ab34c0000001f0",
        ".nfs00000000012AB34C0000001F",
    ]
    others += [".nfs00000000012ab34c0000001f.py", ".nfs00000000012ab34c0000001g", ".NFS00000000012ab34c0000001f"]
    for name in others:
        (volume / "good/lib" / name).write_text("a file like any other")
    (volume / "good/lib/.nfs00000000012ab34c00000021").mkdir()
    (volume / "good/.snapshot/hourly.0").mkdir(parents=True)
    (volume / "good/lib/deep/.snapshot").write_text("a file like any other")
    scanned = scan_tree(volume)
    found = {path for path in scanned.nodes() if b".nfs" in path.lower() or b".snapshot" in path}
    others += [".nfs00000000012ab34c00000021", "deep/.snapshot"]
    assert found == {b"good/lib/" + name.encode() for name in others}
    counts = scanned.report.counts
    assert (counts.silly_renamed, counts.snapshots) == (2, 1)


def test_hidden_names(volume: Path) -> None:
    scanned = scan_tree(volume, hide=(b"**/deep", b"bad/z"))
    assert set(scanned.nodes()) == {b"good", b"good/lib", b"good/lib/a", b"good/z", b"bad", b"bad/lib", b"bad/lib/a"}
    assert scanned.report.counts.hidden == 3


@pytest.mark.needs("user xattrs")
def test_dropped_xattrs(volume: Path) -> None:
    os.setxattr(volume / "good/z", "user.overlay.x", b"1")
    os.setxattr(volume / "good/z", "user.kept", b"1")
    scanned = scan_tree(volume, drop_xattrs=(b"user.overlay.*",))
    assert scanned.left_out() == {}
    assert scanned.nodes()[b"good/z"].xattrs == ((b"user.kept", b"1"),)
    assert scanned.report.counts.dropped_xattrs == 1


@pytest.mark.needs("user xattrs")
def test_when_all_xattrs_are_dropped_none_is_asked_for(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS every answer is a request."""
    os.setxattr(volume / "good/z", "user.x", b"1")

    def unexpected(*_args: object, **_kwargs: object) -> list[str]:
        raise AssertionError("asked for xattrs")

    monkeypatch.setattr(os, "listxattr", unexpected)
    scanned = scan_tree(volume, drop_xattrs=(b"*",))
    assert scanned.nodes()[b"good/z"].xattrs == ()


def test_nfs4_acls_are_counted(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.listxattr
    monkeypatch.setattr(os, "listxattr", lambda *a, **k: [*real(*a, **k), "system.nfs4_acl", "system.nfs4_dacl"])
    scanned = scan_tree(volume)
    assert scanned.left_out() == {}
    assert scanned.report.counts.nfs4_acl == scanned.report.entries + 1, "every entry, and the root"


def test_only_directories_that_can_lead_to_a_match_are_listed(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = volume.parent / "listed"
    real = looking.listdir

    def logged(fd: int, path: bytes) -> list[bytes]:
        with log.open("ab") as file:
            file.write(path + b"\n")
        return real(fd, path)

    monkeypatch.setattr(directory, "listdir", logged)
    scan_tree(volume, "good/lib/deep", "bad/l*b/a")
    assert log.read_text().split() == ["bad", "good/lib/deep"]


def test_unmatched_patterns_are_named(volume: Path) -> None:
    scanned = scan_tree(volume, "good", "good/lib/deep", "nope/*", "good/*/nothing")
    assert scanned.report.unmatched == (b"nope/*", b"good/*/nothing")
    with pytest.raises(NothingSelectedError):
        scan_tree(volume, "nope")


def test_links_to_directories_are_not_followed(volume: Path) -> None:
    (volume / "current").symlink_to("good")
    scanned = scan_tree(volume, "*/lib")
    assert not [path for path in scanned.nodes() if path.startswith(b"current")]
    assert b"current" in scan_tree(volume, "cur*").nodes()


def test_worker_that_is_killed(volume: Path) -> None:
    def opener(name: bytes) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return -1

    with pytest.raises(MkmetaError, match="a worker process was killed by SIGKILL"):
        scan_tree(volume, workers=2, open_content=opener)


def test_no_process_and_no_descriptor_is_left(volume: Path) -> None:
    def state() -> tuple[int, str]:
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
        return len(os.listdir("/proc/self/fd")), children

    scan_tree(volume, workers=3)
    before = state()
    for _ in range(3):
        scan_tree(volume, workers=3)
    assert state() == before


@pytest.mark.needs("user xattrs")
@pytest.mark.parametrize("digests", [(), (DigestName.BLAKE3,)])
@pytest.mark.parametrize("changes", [1, 100])
def test_attributes_that_change_while_xattrs_are_read(
    volume: Path, monkeypatch: pytest.MonkeyPatch, changes: int, digests: tuple[DigestName, ...]
) -> None:
    """After the look at the file and its content: read again once, then left out. Never two states in one entry."""
    file = volume / "bad/lib/deep/c"
    os.setxattr(file, "user.note", b"before")
    getxattr = os.getxattr
    done: list[bytes] = []

    def changing(path: bytes, name: bytes, *, follow_symlinks: bool = True) -> bytes:
        value = getxattr(path, name, follow_symlinks=follow_symlinks)
        if name == b"user.note" and len(done) < changes:
            done.append(name)
            file.chmod(0o600 + len(done) % 8)
            os.setxattr(file, "user.note", b"after")
        return value

    monkeypatch.setattr(os, "getxattr", changing)
    scanned = scan_tree(volume, "*", digests=digests)
    assert stat.S_IMODE(file.stat().st_mode) != 0o644, "it was changed"
    if changes > 1:
        assert set(scanned.left_out()) == {b"bad"} and "changed while it was read, twice" in scanned.left_out()[b"bad"]
    else:
        node = scanned.nodes()[b"bad/lib/deep/c"]
        assert stat.S_IMODE(node.mode) == 0o601
        assert dict(node.xattrs) == {b"user.note": b"after"}
