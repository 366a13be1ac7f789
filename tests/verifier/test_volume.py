"""A volume that changed under a manifest: what changed is found and named, with and without reading data."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mkmeta.digest import verity_digest
from mkmeta.errors import MkmetaError
from mkmeta.linux.syscalls import open_beneath
from mkmeta.manifest.reader import ManifestReader
from mkmeta.plan import Plan
from mkmeta.scanner.looking import open_content
from mkmeta.trees.diff import diff
from mkmeta.trees.layer_tree import LayerTree
from mkmeta.verifier.data import Sample
from mkmeta.verifier.findings import Findings
from mkmeta.verifier.verify import Verified, VerifyOptions, verify
from tests.conftest import Mount
from tests.layer.manifests import manifest_of
from tests.scanner.helpers import make_sample, scan_tree
from tests.verifier.checking import brief, found, found_and_counted, make_layer

pytestmark = pytest.mark.needs("root", "trusted xattrs")

LIB, V2 = "grp/a/v1/lib", "grp/a/v2/lib"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    make_sample(tmp_path / "volume", privileged=True)
    return tmp_path / "volume"


@pytest.fixture
def manifest(volume: Path) -> Path:
    scanned = scan_tree(volume, "grp/*/v*", "top")
    assert not scanned.report.left_out
    return scanned.path


@pytest.fixture
def layer(manifest: Path, tmp_path: Path) -> Path:
    return make_layer(manifest, tmp_path / "layer")


def keeping_times(path: Path, change: Callable[[], object]) -> None:
    """Does something to a file without its times showing it."""
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_untouched_volume_has_no_finding(volume: Path, manifest: Path, layer: Path) -> None:
    findings, counts = found_and_counted(manifest, layer, lower=volume, data=Sample(), volume_jobs=3)
    assert findings == []
    files = [path for path in volume.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_size]
    selected = [path for path in files if "tools" not in path.parts]
    assert counts["read"] + counts["measured"] == len(selected)
    assert counts["bytes"] == sum(path.stat().st_size for path in selected)
    assert counts["volume"] == counts["layer"] > len(selected)


def test_what_grows_as_it_should_is_no_finding(volume: Path, manifest: Path, layer: Path) -> None:
    (volume / "grp/a/v3/lib").mkdir(parents=True)
    (volume / "grp/new").mkdir()
    (volume / "tools/x/python/tool").write_text("not selected")
    (volume / V2 / ".nfs000000000123456789abcdef").touch()  # the client's name for a deleted file
    (volume / V2 / ".snapshot").mkdir()
    status = (volume / V2).stat()
    os.utime(volume / V2, ns=(0, 0))
    assert brief(found(manifest, layer, lower=volume)) == [("volume", V2, "mtime")]
    assert status.st_mtime_ns != 0


def swap_for(path: Path, make: Callable[[Path], object], aside: Path | None = None) -> None:
    """Puts something else in the place of a name."""
    if aside:
        path.rename(aside)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    make(path)


CHANGES: dict[str, tuple[Callable[[Path], object], list[tuple[str, str]]]] = {
    "release deleted": (lambda top: shutil.rmtree(top / "grp/a/v2"), [("grp/a/v2", "missing")]),
    "file deleted": (lambda top: (top / V2 / "block").unlink(), [(V2, "mtime"), (f"{V2}/block", "missing")]),
    "selected file deleted": (lambda top: (top / "top").unlink(), [("top", "missing")]),
    "new name in a release": (lambda top: (top / V2 / "new").touch(), [(V2, "mtime"), (f"{V2}/new", "new")]),
    "new directory named as clients name deleted files": (
        lambda top: (top / V2 / ".nfs000000000123456789abcdef").mkdir(),
        [(V2, "mtime"), (f"{V2}/.nfs000000000123456789abcdef", "new")],
    ),
    "file rewritten": (
        lambda top: (top / V2 / "block").write_bytes(b"patched"),
        [(f"{V2}/block", "mtime"), (f"{V2}/block", "size")],
    ),
    "mode": (lambda top: (top / V2 / "block").chmod(0o600), [(f"{V2}/block", "mode")]),
    "mode of the skeleton": (lambda top: (top / "grp").chmod(0o700), [("grp", "mode")]),
    "owner": (lambda top: os.chown(top / V2 / "block", 5, 5), [(f"{V2}/block", "owner")]),
    "xattr": (lambda top: os.setxattr(top / V2 / "block", "user.x", b""), [(f"{V2}/block", "xattr")]),
    "target": (
        lambda top: swap_for(top / LIB / "dangling", lambda path: path.symlink_to("x")),
        [(LIB, "mtime"), (f"{LIB}/dangling", "mtime"), (f"{LIB}/dangling", "target")],
    ),
    "file replaced by a fifo": (
        lambda top: swap_for(top / V2 / "block", os.mkfifo),
        [(V2, "mtime"), (f"{V2}/block", "type")],
    ),
    "directory replaced by a link": (
        lambda top: swap_for(top / V2, lambda path: path.symlink_to("../../../aside"), aside=top / "aside"),
        [("grp/a/v2", "mtime"), (V2, "type")],
    ),
    "skeleton replaced by a file": (
        lambda top: swap_for(top / "grp/a", Path.touch),
        [("grp/a", "type")],
    ),
    "hard link broken": (
        lambda top: keeping_times(top / LIB, lambda: unlink_and_copy(top / LIB / "same")),
        [(f"{LIB}/same", "inode"), (f"{LIB}/same", "link")],
    ),
}


def unlink_and_copy(path: Path) -> None:
    copy = path.with_name("copy")
    subprocess.run(["cp", "-a", path, copy], check=True)
    os.rename(copy, path)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_release_is_found_without_reading(volume: Path, manifest: Path, layer: Path, change: str) -> None:
    do, expected = CHANGES[change]
    do(volume)
    assert brief(found(manifest, layer, lower=volume)) == [("volume", path, what) for path, what in expected]


def test_findings_name_the_release(volume: Path, manifest: Path, layer: Path) -> None:
    (volume / V2 / "block").chmod(0o600)
    (volume / LIB / "one.py").chmod(0o600)
    (volume / "top").chmod(0o600)
    subtrees = {one.subtree for one in found(manifest, layer, lower=volume)}
    assert subtrees == {b"grp/a/v1", b"grp/a/v2", b"grp/b/v1", b"top"}, "one.py has a name in grp/b/v1 too"


def replace_unseen(path: Path, content: bytes) -> None:
    """Puts another file of the same attributes in the place of one, and the times of the directory back."""
    fresh = path.with_name("fresh")

    def swap() -> None:
        fresh.write_bytes(content)
        subprocess.run(["cp", "-a", "--attributes-only", path, fresh], check=True)
        fresh.rename(path)

    keeping_times(path.parent, swap)


@pytest.mark.parametrize("share", [None, 0.0001])
def test_a_file_replaced_by_its_like(volume: Path, manifest: Path, layer: Path, share: float | None) -> None:
    """Nothing but the inode number tells; its data is read, whatever the sample."""
    replace_unseen(volume / V2 / "block", b"y" * 4096)
    sample = None if share is None else Sample(share)
    expected = [("volume", f"{V2}/block", "inode")]
    if sample is not None:
        expected += [("data", f"{V2}/block", "digest")] * 2  # BLAKE3 and fs-verity
    assert brief(found(manifest, layer, lower=volume, data=sample)) == expected


def test_a_symlink_replaced_by_its_like(volume: Path, manifest: Path, layer: Path) -> None:
    link = volume / LIB / "dangling"
    fresh = link.with_name("fresh")

    def swap() -> None:
        subprocess.run(["cp", "-a", link, fresh], check=True)
        fresh.rename(link)

    keeping_times(link.parent, swap)
    assert brief(found(manifest, layer, lower=volume)) == [("volume", f"{LIB}/dangling", "inode")]


def test_a_release_replaced_by_its_like(volume: Path, manifest: Path, layer: Path) -> None:
    (volume / "grp/a/v2").rename(volume.parent / "old")
    keeping_times(volume / "grp/a", lambda: subprocess.run(["cp", "-a", volume.parent / "old", volume / "grp/a/v2"]))
    findings = brief(found(manifest, layer, lower=volume))
    leaves = [path for path in (volume / "grp/a/v2").rglob("*") if not path.is_dir() or path.is_symlink()]
    assert findings == sorted(("volume", str(path.relative_to(volume)), "inode") for path in leaves)


@pytest.mark.parametrize("share", [None, 0.0001])
def test_what_only_the_change_time_tells_is_a_word_and_not_a_finding(
    volume: Path, manifest: Path, layer: Path, share: float | None
) -> None:
    """A file may have been linked, or written to: its data tells, and is compared whatever the sample."""
    block, more = volume / V2 / "block", volume / V2 / "more"
    keeping_times(block, lambda: block.write_bytes(b"y" * 4096))
    (volume.parent / "kept").hardlink_to(more)
    sample = None if share is None else Sample(share)
    findings, counts = found_and_counted(manifest, layer, lower=volume, data=sample)
    assert counts["touched"] == 2
    assert set(brief(findings)) == (set() if sample is None else {("data", f"{V2}/block", "digest")})
    assert counts["read"] + counts["measured"] == (0 if sample is None else 2)


def test_a_copy_of_the_volume_has_other_inodes(volume: Path, manifest: Path, layer: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", volume, tmp_path / "copy"], check=True)
    verified = verified_with(manifest, layer, tmp_path / "copy")
    assert verified.unproven is not None and "a copy of what was scanned" in verified.unproven
    assert verified.counts["touched"] == 0
    assert found(manifest, layer, lower=tmp_path / "copy") == []


def test_a_filesystem_that_makes_numbers_up(
    volume: Path, manifest: Path, layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_unseen(volume / V2 / "block", b"y" * 4096)
    monkeypatch.setattr("mkmeta.verifier.volume.filesystem_type", lambda _fd: "fuse.sshfs")
    assert found(manifest, layer, lower=volume) == []
    assert verified_with(manifest, layer, volume).unproven == "inode numbers of fuse.sshfs do not last"


def test_a_manifest_without_facts(volume: Path, layer: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.mkm"
    plain.write_bytes(manifest_of(volume))
    without = make_layer(plain, tmp_path / "without")
    (volume / "top").rename(volume / "aside")
    shutil.copy2(volume / "aside", volume / "top")
    assert verified_with(plain, without, volume).unproven == "the manifest has no inode numbers"


def verified_with(manifest: Path, layer: Path, lower: Path) -> Verified:
    options = VerifyOptions(layer=os.fsencode(layer), lower=os.fsencode(lower))
    with ManifestReader.open(str(manifest)) as reader, Findings() as findings:
        return verify(reader, options, findings)


def test_data_that_changed_without_a_trace(volume: Path, manifest: Path, layer: Path) -> None:
    """Same size, same times: only reading finds it."""
    block = volume / V2 / "block"
    keeping_times(block, lambda: block.write_bytes(b"y" * 4096))
    assert found(manifest, layer, lower=volume) == []
    findings = found(manifest, layer, lower=volume, data=Sample())
    assert brief(findings) == [("data", f"{V2}/block", "digest")] * 2
    assert "BLAKE3" in findings[0].message and "fs-verity" in findings[1].message


def test_hidden_names_stay_hidden(volume: Path, tmp_path: Path) -> None:
    (volume / V2 / "secret").touch()
    (volume / V2 / "cache").mkdir()
    scanned = scan_tree(volume, "grp/a/*", hide=(b"**/secret", b"**/cache"))
    layer = make_layer(scanned.path, tmp_path / "layer")
    assert found(scanned.path, layer, lower=volume) == []
    (volume / V2 / "public").touch()
    assert (f"{V2}/public", "new") in [
        (path, what) for _, path, what in brief(found(scanned.path, layer, lower=volume))
    ]


def test_dropped_xattrs_are_not_missed(volume: Path, tmp_path: Path) -> None:
    scanned = scan_tree(volume, "grp/a/*", drop_xattrs=(b"user.note",))
    assert scanned.report.counts.dropped_xattrs
    layer = make_layer(scanned.path, tmp_path / "layer")
    assert found(scanned.path, layer, lower=volume) == []
    os.removexattr(volume / LIB / "one.py", "trusted.secret")
    assert ("volume", f"{LIB}/one.py", "xattr") in brief(found(scanned.path, layer, lower=volume))


def test_the_recorded_root_below_the_lower(volume: Path, tmp_path: Path) -> None:
    scanned = scan_tree(volume / "grp", "a/v*")
    layer = make_layer(scanned.path, tmp_path / "layer", prefix=b"grp")
    assert found(scanned.path, layer, Plan(prefix=b"grp"), lower=volume, data=Sample()) == []


def test_a_mount_on_the_volume_is_a_finding(volume: Path, manifest: Path, layer: Path, mount: Mount) -> None:
    mount("tmpfs", at=volume / V2)
    seen = {(path, what) for _, path, what in brief(found(manifest, layer, lower=volume))}
    assert (V2, "unreadable") in seen


def test_a_manifest_without_digests_cannot_vouch_for_data(volume: Path, tmp_path: Path) -> None:
    scanned = scan_tree(volume, "grp/a/*", digests=())
    layer = make_layer(scanned.path, tmp_path / "layer")
    assert found(scanned.path, layer, lower=volume) == []
    with pytest.raises(MkmetaError, match="no digests"):
        found(scanned.path, layer, lower=volume, data=Sample())


def test_what_is_unreadable_is_a_finding(
    volume: Path, manifest: Path, layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_disk(name: bytes) -> int:
        if name == b"block":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_content(name)

    def root_squash(path: bytes, flags: int, *, dir_fd: int) -> int:
        if path.endswith(b"deep/er") and os.readlink(f"/proc/self/fd/{dir_fd}") == str(volume):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return open_beneath(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr("mkmeta.verifier.data.open_content", broken_disk)
    monkeypatch.setattr("mkmeta.verifier.looking.open_beneath", root_squash)
    findings = found(manifest, layer, lower=volume, data=Sample())
    assert brief(findings) == [
        ("volume", f"{V2}/block", "unreadable"),
        ("volume", "grp/b/v1/lib/deep/er", "unreadable"),
    ]
    assert [one.message for one in findings] == [
        "cannot be read: input/output error",
        "cannot be read: permission denied",
    ]


def test_what_the_filesystem_measures_is_not_read(
    volume: Path, manifest: Path, layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a filesystem with fs-verity, also where this kernel has none: `block` sealed, `more` with another salt."""
    sealed = verity_digest(b"x" * 4096)

    def measure(fd: int) -> bytes | None:
        size = os.fstat(fd).st_size
        return {4096: bytes(sealed), 300_000: b"other parameters".ljust(32)}.get(size)

    monkeypatch.setattr("mkmeta.verifier.data.measure_verity", measure)
    findings, counts = found_and_counted(manifest, layer, lower=volume, data=Sample())
    assert counts["measured"] == 1
    assert brief(findings) == [("data", f"{V2}/more", "verity")]
    keeping_times(volume / V2 / "block", lambda: (volume / V2 / "block").write_bytes(b"y" * 4096))
    sealed = verity_digest(b"y" * 4096)
    findings = found(manifest, layer, lower=volume, data=Sample())
    assert (f"{V2}/block", "digest") in {(path, what) for _, path, what in brief(findings)}


@pytest.mark.needs("loop mounts", "fsverity")
def test_fs_verity_vouches_for_data_without_reading(volume: Path, tmp_path: Path, mount: Mount) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "verity", image], check=True)
    top = mount("ext4", "loop", image)
    (top / "v1").mkdir()
    for name in ("sealed", "plain", "salted"):
        (top / "v1" / name).write_text(name * 2000)
    for name, *options in (("sealed",), ("salted", "--salt=00")):
        try:
            subprocess.run(["fsverity", "enable", *options, top / "v1" / name], check=True, capture_output=True)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this kernel has no fs-verity: {error.stderr!r}")
    scanned = scan_tree(top, "v1")
    layer = make_layer(scanned.path, tmp_path / "layer")
    findings, counts = found_and_counted(scanned.path, layer, lower=top, data=Sample())
    assert (counts["measured"], counts["read"]) == (1, 2)
    assert brief(findings) == [("data", "v1/salted", "verity")]


def test_samples_nest_and_are_the_same_everywhere() -> None:
    paths = [b"grp/%d/lib/file-%d" % (number % 7, number) for number in range(20_000)]
    one, five = ({path for path in paths if path in Sample(share)} for share in (0.01, 0.05))
    assert one < five
    assert 140 < len(one) < 260 and 850 < len(five) < 1150
    other = {path for path in paths if path in Sample(0.05, b"week 2")}
    assert len(other & five) < 100
    assert b"grp/0/lib/file-28" in Sample(1.0)
    pinned = sorted(path for path in paths[:500] if path in Sample(0.01))
    # The same on every host, and for ever: a change here makes hosts of two versions disagree.
    assert [int(path.rpartition(b"-")[2]) for path in pinned] == [273, 379, 464, 451, 68]


def test_a_sample_is_what_is_read(volume: Path, manifest: Path, layer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mkmeta.verifier.volume.filesystem_type", lambda _fd: "fuse"
    )  # or all are read: all are touched
    for path in volume.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size:
            first = path.read_bytes()[:1]
            keeping_times(path, lambda path=path, first=first: patch(path, bytes([first[0] ^ 1])))  # type: ignore[misc]
    everything = {one.path for one in found(manifest, layer, lower=volume, data=Sample())}
    half = {one.path for one in found(manifest, layer, lower=volume, data=Sample(0.5))}
    assert half == {path for path in everything if path in Sample(0.5)}
    assert 0 < len(half) < len(everything)


def patch(path: Path, data: bytes) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    with path.open("r+b") as file:
        file.write(data)
    path.chmod(mode)


def test_a_fifo_that_takes_the_place_of_a_file_does_not_block(volume: Path, manifest: Path, layer: Path) -> None:
    """Replaced between the look and the open, again and again."""
    block, aside = volume / V2 / "block", volume / "aside"
    os.mkfifo(volume / "pipe")
    stop = threading.Event()

    def replace() -> None:
        os.link(block, aside)
        while not stop.is_set():
            os.link(volume / "pipe", volume / "next")
            os.rename(volume / "next", block)
            os.link(aside, volume / "next")
            os.rename(volume / "next", block)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(10):
            whats = {one.what for one in found(manifest, layer, lower=volume, data=Sample())}
            assert whats <= {"mtime", "type", "missing", "link"}
    finally:
        stop.set()
        thread.join()


@pytest.mark.needs("root", "loop mounts", "mkfs.xfs", "setfacl")
def test_acls_on_xfs_are_no_xattrs_of_their_own(tmp_path: Path, mount: Mount) -> None:
    """Root sees where xfs keeps them: on a volume and in a layer that is no part of the tree."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", image], check=True)
    disk = mount("xfs", "loop", image)
    volume = disk / "volume"
    (volume / "d").mkdir(parents=True)
    (volume / "d/file").write_text("x")
    subprocess.run(["setfacl", "-m", "u:1000:rw", volume / "d/file"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1000:rwx", volume / "d"], check=True)
    assert "trusted.SGI_ACL_FILE" in os.listxattr(volume / "d/file")
    scanned = scan_tree(volume)
    make_layer(scanned.path, disk / "layer")
    assert found(scanned.path, disk / "layer", lower=volume) == []
    with ManifestReader.open(str(scanned.path)) as one, LayerTree(os.fsencode(disk / "layer")) as other:
        assert list(diff(one, other)) == []
