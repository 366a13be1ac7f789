"""What can go wrong at a destination: each names the path, the cause and what to do, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mkmeta.build import BuildOptions
from mkmeta.errors import BuildError
from mkmeta.model import Device, RegularFile, Special, Symlink
from mkmeta.plan import Plan
from mkmeta.sinks.directory import sink
from mkmeta.sinks.directory.sink import DirectorySink
from tests.conftest import Mount
from tests.layer.layers import build_layer
from tests.layer.manifests import manifest_from
from tests.vectors.trees import MTIME, Tree, regular

pytestmark = pytest.mark.needs("root", "trusted xattrs")

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw+ep, version 2


def node(**fields: object) -> RegularFile:
    """A file with these attributes."""
    given: dict[str, object] = {"mode": 0o100644, "uid": 0, "gid": 0, "mtime_ns": MTIME, "size": 1} | fields
    return RegularFile(**given)  # type: ignore[arg-type]


def fails(place: Path, manifest: bytes, message: str, *, hint: str | None = None, path: bytes | None = None) -> None:
    """Asserts how a build in `place` fails, and that nothing is left."""
    before = sorted(os.listdir(place))
    with pytest.raises(BuildError, match=message) as caught:
        build_layer(manifest, place / "layer")
    if hint is not None:
        assert caught.value.hint is not None
        assert hint in caught.value.hint
    if path is not None:
        assert caught.value.path == path
    assert sorted(os.listdir(place)) == before


@pytest.fixture
def loop(tmp_path: Path, mount: Mount) -> object:
    """`loop(mkfs command, MiB)` makes a filesystem in a file and mounts it."""

    def make(*mkfs: str, size: int = 32) -> Path:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(size << 20)
        subprocess.run([*mkfs, image], check=True, capture_output=True)
        return mount(mkfs[0].removeprefix("mkfs."), "loop", image)

    return make


def test_a_redirect_that_is_too_long_is_known_before_anything_is_written(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path of 4,094 bytes is the longest there is; with a prefix, the first that does not fit is named."""
    place = mount("tmpfs")  # ext4 holds no such xattr
    inner = Tree(children={b"y" * 251: node(), b"z" * 252: node(size=0)})  # paths of 4,093 and 4,094 bytes
    for letter in b"ponmlkjihgfedcb":
        inner = Tree(children={bytes([letter]) * 255: inner})
    manifest = manifest_from(Tree(children={b"a": inner, b"short": Tree(children={b"f": node()})}))
    result = build_layer(manifest, place / "fits", BuildOptions(plan=Plan(prefix=b"")))
    assert result.entries == 20
    shutil.rmtree(place / "fits")
    monkeypatch.setattr(DirectorySink, "begin", None)  # not even a staging directory
    with pytest.raises(BuildError, match=r"its redirect has 4096 bytes, the kernel follows 4095") as caught:
        build_layer(manifest, place / "layer", BuildOptions(plan=Plan(prefix=b"p")))
    assert caught.value.path is not None and caught.value.path.endswith(b"/" + b"y" * 251)
    assert caught.value.hint is not None and "--redirect-prefix" in caught.value.hint


def test_a_prefix_that_fits(mount: Mount) -> None:
    place = mount("tmpfs")
    leaf = Tree(children={b"f" * 200: node(), b"g" * 255: node(size=0)})
    manifest = manifest_from(Tree(children={b"d" * 255: leaf}))
    prefix = b"/".join([b"p" * 255] * 14) + b"/" + b"p" * 53
    assert len(prefix) + 1 + 255 + 1 + 200 + 1 == 4095
    build_layer(manifest, place / "layer", BuildOptions(plan=Plan(prefix=prefix)))
    with pytest.raises(BuildError, match="its redirect has 4096 bytes"):
        build_layer(manifest, place / "other", BuildOptions(plan=Plan(prefix=prefix + b"q")))


def many(count: int, **fields: object) -> bytes:
    leaves = {b"%d" % number: node(**fields) for number in range(count)}
    return manifest_from(Tree(children={b"d": Tree(children=leaves)}))


@pytest.mark.needs("loop mounts", "mkfs.ext4")
def test_a_full_disk(loop: Mount) -> None:
    place = loop("mkfs.ext4", "-q", "-b", "4096", "-N", "9000", size=16)
    # a block for each file; equal ones would share it
    leaves = {b"%d" % number: node(xattrs=((b"user.big", b"%d" % number * 500),)) for number in range(6000)}
    fails(place, manifest_from(Tree(children=leaves)), "no space left", hint="make room")


@pytest.mark.needs("loop mounts", "mkfs.ext4")
def test_no_inodes_is_known_before_anything_is_written(loop: Mount) -> None:
    place = loop("mkfs.ext4", "-q", "-N", "64")
    fails(place, many(500), "takes 501 inodes, its filesystem has", hint="mkfs.ext4 -N")


def test_inodes_that_somebody_else_takes(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """There were enough when the build began."""
    monkeypatch.setattr(sink, "_check_room", lambda *_: None)
    fails(mount("tmpfs", "nr_inodes=300"), many(500), "no space left", hint="no inodes are free")


@pytest.mark.needs("loop mounts", "mkfs.ext4")
def test_an_xattr_too_big_for_ext4(loop: Mount) -> None:
    place = loop("mkfs.ext4", "-q", "-b", "4096")
    manifest = manifest_from(Tree(children={b"d": Tree(children={b"f": node(xattrs=((b"user.big", b"x" * 9000),))})}))
    fails(place, manifest, r"xattr user.big of 9000 bytes does not fit", hint="-O ea_inode", path=b"d/f")


@pytest.mark.needs("loop mounts", "mkfs.ext4")
def test_times_the_filesystem_does_not_keep(loop: Mount) -> None:
    place = loop("mkfs.ext4", "-q", "-I", "128")
    fails(place, many(1), r"the filesystem keeps mtime \d+\.000000000 instead of", hint="btrfs or tmpfs")


@pytest.mark.parametrize("time_ns", [-(2**33) * 10**9, 2**40 * 10**9, -(2**31) * 10**9 + 1])
@pytest.mark.needs("loop mounts", "mkfs.ext4")
def test_times_beyond_ext4(loop: Mount, time_ns: int) -> None:
    place = loop("mkfs.ext4", "-q", "-I", "256")
    link = Symlink(mode=0o120777, uid=0, gid=0, mtime_ns=time_ns, target=b"x")
    for leaf in (node(mtime_ns=time_ns), link, Tree(mtime_ns=time_ns)):
        fails(place, manifest_from(Tree(children={b"x": leaf})), "keeps mtime", path=b"x")
    fails(place, manifest_from(Tree(mtime_ns=time_ns)), "keeps mtime", path=b"/")


def test_any_time_on_tmpfs(mount: Mount) -> None:
    place = mount("tmpfs")
    times = [-(2**63) * 10**9, (2**63 - 2) * 10**9 + 999_999_999]
    tree = Tree(children={b"%d" % number: node(mtime_ns=time_ns) for number, time_ns in enumerate(times)})
    build_layer(manifest_from(tree), place / "layer")
    assert [(place / "layer" / str(number)).stat().st_mtime_ns for number in range(2)] == times


@pytest.mark.needs("loop mounts", "mkfs.ext4")
def test_a_size_beyond_ext4(loop: Mount) -> None:
    place = loop("mkfs.ext4", "-q", "-b", "4096")
    fails(place, many(1, size=2**60), "its size cannot be set: file too large", hint="xfs", path=b"d/0")


def test_the_largest_size_on_tmpfs(mount: Mount) -> None:
    place = mount("tmpfs")
    build_layer(many(1, size=2**63 - 1), place / "layer")
    assert (place / "layer/d/0").stat().st_size == 2**63 - 1


def test_a_read_only_filesystem(mount: Mount) -> None:
    place = mount("tmpfs", "ro")
    fails(place, many(1), "read-only file system", hint="read-only")


def test_noexec_nosuid_nodev_are_no_obstacle(mount: Mount) -> None:
    place = mount("tmpfs", "noexec,nosuid,nodev")
    device = Device(mode=0o020666, uid=0, gid=0, mtime_ns=MTIME, major=1, minor=3)
    build_layer(manifest_from(Tree(children={b"x": node(mode=0o104755), b"d": device})), place / "layer")
    assert (place / "layer" / "x").stat().st_mode == 0o104755


def test_a_mount_point_as_dest(mount: Mount, tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "layer").mkdir(parents=True)
    mount("tmpfs", at=place / "layer")
    fails(place, many(1), "is a mount point")


def test_an_acl_that_contradicts_the_mode(tmp_path: Path) -> None:
    """user::rwx, user:1:rwx, group::r-x, mask::rwx, other::--- makes any mode 0770."""
    acl = bytes.fromhex("0200000001000700ffffffff020007000100000004000500ffffffff10000700ffffffff20000000ffffffff")
    name = b"system.posix_acl_access"
    fails(tmp_path, many(1, mode=0o100644, xattrs=((name, acl),)), "the mode became 100770 instead of 100644")
    build_layer(many(1, mode=0o100770, xattrs=((name, acl),)), tmp_path / "layer")
    assert os.getxattr(tmp_path / "layer/d/0", name) == acl


@pytest.mark.needs("setfacl")
def test_what_a_directory_passes_on_is_not_taken_over(tmp_path: Path) -> None:
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx,g:77:r", tmp_path], check=True)
    tmp_path.chmod(0o2775)
    build_layer(many(2), tmp_path / "layer")
    names = (tmp_path / "layer" / name for name in ("", "d", "d/0"))
    assert [name for path in names for name in os.listxattr(path) if "acl" in name] == []


@pytest.mark.needs("loop mounts", "mkfs.btrfs")
def test_compression_is_not_taken_over(loop: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    place = loop("mkfs.btrfs", "-q", size=300)
    subprocess.run(["btrfs", "property", "set", place, "compression", "zstd"], check=True)
    build_layer(many(2), place / "layer")
    for name in ("", "d", "d/0"):
        assert "btrfs.compression" not in os.listxattr(place / "layer" / name)

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "removexattr", refuse)
    with pytest.raises(BuildError, match=r"gets btrfs\.compression from its directory"):
        build_layer(many(2), place / "other")
    assert sorted(os.listdir(place)) == ["layer"]


@pytest.mark.needs("loop mounts", "mkfs.ext4")
def test_names_that_differ_in_case_only(loop: Mount) -> None:
    try:
        place = loop("mkfs.ext4", "-q", "-O", "casefold")
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"no case folding here: {error}")
    (place / "folding").mkdir()
    subprocess.run(["chattr", "+F", place / "folding"], check=True)
    with pytest.raises(BuildError, match="the same in upper and lower case") as caught:
        build_layer(many(2), place / "folding/layer")
    assert caught.value.hint is not None and "chattr" in caught.value.hint
    assert os.listdir(place / "folding") == []


def test_case_folding_without_a_kernel_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat

    def folding(path: Any, **options: Any) -> os.stat_result:
        return real(path.lower() if isinstance(path, bytes) else path, **options)

    monkeypatch.setattr(os, "stat", folding)
    fails(tmp_path, many(1), "the same in upper and lower case", hint="chattr")


@pytest.mark.parametrize("acl", [b"", b"\2\0\0\0", b"junk"])
def test_an_acl_that_is_none(tmp_path: Path, acl: bytes) -> None:
    fails(tmp_path, many(1, xattrs=((b"system.posix_acl_access", acl),)), "posix_acl_access")


def test_user_xattrs_on_what_cannot_have_them(tmp_path: Path) -> None:
    fifo = Special(mode=0o010644, uid=0, gid=0, mtime_ns=MTIME, xattrs=((b"user.x", b"1"),))
    fails(tmp_path, manifest_from(Tree(children={b"p": fifo})), "xattr user.x of 1 bytes cannot be set", path=b"p")


@contextlib.contextmanager
def without(capability: str) -> Iterator[list[str]]:
    """A command prefix that runs without one capability."""
    yield ["setpriv", "--bounding-set", f"-{capability}", "--inh-caps", f"-{capability}"]


DEVICE = Device(mode=0o020600, uid=0, gid=0, mtime_ns=MTIME, major=1, minor=3)


@pytest.mark.parametrize(
    ("capability", "leaf", "message", "hint"),
    [
        ("sys_admin", node(), "xattr trusted.overlay.mkmeta of 32 bytes cannot be set", "--userxattr"),
        ("chown", node(uid=7), "owner 7:0 cannot be set", "CAP_CHOWN"),
        ("mknod", DEVICE, "the device node cannot be made", "CAP_MKNOD"),
        ("setfcap", node(xattrs=((b"security.capability", CAPABILITY),)), "security.capability", "CAP_SETFCAP"),
    ],
)
def test_a_missing_capability_is_named(
    tmp_path: Path, capability: str, leaf: RegularFile | Device, message: str, hint: str
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "manifest").write_bytes(manifest_from(Tree(children={b"x": leaf})))
    with without(capability) as prefix:
        command = [*prefix, sys.executable, "-m", "mkmeta", "build", f"{tmp_path}/manifest", f"{place}/layer"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    first, second = result.stderr.splitlines()
    assert message in first
    assert hint in second
    assert os.listdir(place) == []


@pytest.mark.parametrize("namespace", ["user", "trusted"])
def test_a_destination_without_such_xattrs(mount: Mount, namespace: str) -> None:
    """ramfs holds no xattrs at all."""
    place = mount("ramfs")
    with pytest.raises(BuildError, match=rf"ramfs cannot hold {namespace}\.\* xattrs") as caught:
        build_layer(many(1), place / "layer", BuildOptions(plan=Plan(userxattr=namespace == "user")))
    assert caught.value.hint
    assert os.listdir(place) == []


@pytest.mark.needs("loop mounts", "mkfs.ext4")
@pytest.mark.parametrize(("inode_size", "outside"), [(256, 40), (512, 0)])
def test_what_xattrs_outside_of_inodes_cost(loop: Mount, inode_size: int, outside: int) -> None:
    place = loop("mkfs.ext4", "-q", "-b", "4096", "-I", str(inode_size))
    leaves = {b"long-enough-a-name-%d" % number: regular(1) for number in range(40)}
    result = build_layer(manifest_from(Tree(children={b"directory": Tree(children=leaves)})), place / "layer")
    assert result.published.filesystem == "ext4"
    assert (result.counts["xattr_files"], result.counts["xattr_bytes"]) == (outside, outside * 4096)


@pytest.mark.needs("loop mounts", "mkfs.ext4")
def test_too_many_links_for_ext4(loop: Mount) -> None:
    place = loop("mkfs.ext4", "-q", "-N", "70000", size=64)
    leaves = {b"%06d" % number: regular(1) for number in range(65_001)}
    links = {b"d/%06d" % number: b"d/000000" for number in range(1, 65_001)}
    manifest = manifest_from(Tree(children={b"d": Tree(children=leaves)}), links=links)
    fails(place, manifest, "cannot be linked: too many links", hint="more hard links", path=b"d/065000")


@pytest.mark.parametrize("filesystem", ["mkfs.xfs", "mkfs.btrfs"])
@pytest.mark.needs("loop mounts", "mkfs.xfs", "mkfs.btrfs")
def test_other_filesystems(loop: Mount, filesystem: str) -> None:
    place = loop(filesystem, "-q", size=400)
    build_layer(many(50, xattrs=((b"user.big", b"x" * 9000),)), place / "layer")
    assert os.getxattr(place / "layer/d/7", "trusted.overlay.redirect") == b"/d/7"
