"""What is in a layer and what its mounts show, asked of stat, getfattr, rsync and the kernel's own overlays."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from mkmeta.build import BuildOptions
from mkmeta.plan import Plan
from tests.conftest import Mount
from tests.layer.layers import attributes, build_layer, differences, paths, with_plan, xattrs
from tests.layer.manifests import manifest_from, manifest_of
from tests.vectors.trees import Tree, regular

pytestmark = pytest.mark.needs("root", "trusted xattrs", "rsync", "getfattr", "setfacl", "setcap")

NS = 10**9
TIMES = {
    b"before-1970": -1_234_567_890 * NS + 123_456_789,
    b"just-before-1970": -1,
    b"after-2038": 4_000_000_000 * NS + 999_999_999,
    b"after-2242": 9_000_000_000 * NS + 1,
}
NAMES = [b"\xff\xfe", b"new\nline", b" ", b"-rf", b"back\\slash", b"...", b"x" * 255, "ümläut".encode(), b"tab\t*?["]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume with every type of file and every attribute."""
    top = tmp_path / "volume"
    subtree = top / "grp" / "v1"
    (subtree / "lib" / "empty-dir").mkdir(parents=True)
    (subtree / "bin").mkdir()
    (top / "grp" / "not-selected").write_text("falls through")
    lib, bin_ = subtree / "lib", subtree / "bin"
    (lib / "data").write_bytes(os.urandom(70_000))
    (lib / "empty").touch()
    with (lib / "huge").open("wb") as file:
        file.truncate(10 << 40)
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(lib) + b"/" + name)).write_bytes(b"content of " + name)
    for mode in (0o4755, 0o2711, 0o6555, 0o1644, 0o000, 0o444, 0o777):
        path = bin_ / f"mode-{mode:o}"
        path.write_text("#!")
        os.chown(path, 1234, 4_000_000_000)
        path.chmod(mode)
    (bin_ / "capable").write_text("x")
    os.chown(bin_ / "capable", 7, 8)
    subprocess.run(["setcap", "cap_net_raw+ep", bin_ / "capable"], check=True)
    (bin_ / "acl").write_text("x")
    subprocess.run(["setfacl", "-m", "u:1234:rwx,g:77:r", bin_ / "acl"], check=True)
    for kind, mode in (("sticky", 0o1777), ("setgid", 0o2775), ("closed", 0o000)):
        (bin_ / kind).mkdir()
        os.chown(bin_ / kind, 55, 66)
        (bin_ / kind / "inside").write_text("x")
        (bin_ / kind).chmod(mode)
    (bin_ / "inherits").mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", bin_ / "inherits"], check=True)
    (bin_ / "inherits" / "child").mkdir()
    (bin_ / "inherits" / "child" / "file").write_text("x")
    os.setxattr(lib / "data", "user.empty", b"")
    os.setxattr(lib / "data", "user.binary", bytes(range(256)))
    os.setxattr(lib / "data", "trusted.site", b"t")
    os.setxattr(lib, "user.on-directory", b"d")
    (lib / "link").symlink_to(b"../nowhere/\xff".decode(errors="surrogateescape"))
    os.setxattr(lib / "link", "trusted.on-link", b"l", follow_symlinks=False)
    os.chown(lib / "link", 5, 6, follow_symlinks=False)
    os.mkfifo(lib / "fifo", 0o640)
    os.setxattr(lib / "fifo", "trusted.on-fifo", b"f")
    os.mknod(lib / "char", stat.S_IFCHR | 0o4620, os.makedev(1, 3))
    os.mknod(lib / "block", stat.S_IFBLK | 0o660, os.makedev(4095, 1_048_575))
    here = os.open(lib, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:  # a path as long as tmp_path's does not fit an address
        server.bind(f"/proc/self/fd/{here}/socket")
    os.close(here)
    os.link(lib / "data", bin_ / "data-again")
    os.link(lib / "data", lib / "data-too")
    os.link(lib / "link", bin_ / "link-again")
    os.link(lib / "fifo", bin_ / "fifo-again")
    os.link(lib / "empty", bin_ / "empty-again")
    for name, time_ns in TIMES.items():
        path = Path(os.fsdecode(os.fsencode(lib) + b"/time-" + name))
        path.mkdir() if b"242" in name else path.write_text("x")
        os.utime(path, ns=(time_ns, time_ns))
    os.utime(lib / "link", ns=(-5, -5), follow_symlinks=False)
    os.utime(lib / "fifo", ns=(77, 77))
    for directory in (bin_, lib, subtree, top / "grp", top):
        os.utime(directory, ns=(1_500_000_000 * NS + 42, 1_500_000_000 * NS + 42))
    top.chmod(0o751)
    return top


SKELETON = (b"grp",)


@pytest.fixture
def layer(volume: Path, tmp_path: Path) -> Path:
    """The layer of the volume without what is not selected."""
    layer = tmp_path / "layer"
    build_layer(selected(volume), layer, BuildOptions(jobs=2))
    return layer


def selected(volume: Path) -> bytes:
    """A manifest of all but `not-selected`."""
    aside = volume.parent / "aside"
    before = (volume / "grp").stat().st_mtime_ns
    (volume / "grp" / "not-selected").rename(aside)
    os.utime(volume / "grp", ns=(before, before))
    try:
        return manifest_of(volume, skeleton=SKELETON, verity=False)
    finally:
        aside.rename(volume / "grp" / "not-selected")
        os.utime(volume / "grp", ns=(before, before))


def test_every_attribute_is_exact(volume: Path, layer: Path) -> None:
    expected = attributes(volume)
    del expected[b"grp/not-selected"]
    assert attributes(layer) == expected
    for path in expected:
        ours = {
            name: value for name, value in xattrs(os.fsencode(layer) + b"/" + path).items() if ".overlay." not in name
        }
        assert ours == xattrs(os.fsencode(volume) + b"/" + path), path


def test_overlay_xattrs_are_where_the_format_says(volume: Path, layer: Path) -> None:
    opaque = {"trusted.overlay.opaque": b"y", "trusted.overlay.overlay.opaque": b"y"}
    for path in paths(layer):
        status = os.lstat(os.fsencode(layer) + b"/" + path)
        found = xattrs(os.fsencode(layer) + b"/" + path, r"\.overlay\.")
        if stat.S_ISDIR(status.st_mode):
            assert found == ({} if path in SKELETON else opaque), path
        elif stat.S_ISREG(status.st_mode) and status.st_size:
            assert found["trusted.overlay.metacopy"] == b"", path
            real = os.fsencode(volume) + found["trusted.overlay.redirect"]
            assert os.path.samefile(real, os.fsencode(volume) + b"/" + path), path
            assert len(found) == 2
        else:
            assert found == {}, path


def test_files_hold_no_data(layer: Path) -> None:
    size, block = 0, 4096
    for path in paths(layer):
        status = os.lstat(os.fsencode(layer) + b"/" + path)
        if stat.S_ISREG(status.st_mode):
            assert status.st_blocks * 512 <= block, path  # at most a block of xattrs
            size += status.st_size
    assert size > 10 << 40


def test_hard_links_are_links(volume: Path, layer: Path) -> None:
    def groups(top: Path) -> set[frozenset[bytes]]:
        inodes: dict[int, set[bytes]] = {}
        for path in paths(top):
            status = os.lstat(os.fsencode(top) + b"/" + path)
            if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
                inodes.setdefault(status.st_ino, set()).add(path)
        return {frozenset(names) for names in inodes.values()}

    assert len(groups(volume)) == 4
    assert groups(layer) == groups(volume)


def test_the_root_carries_the_manifest_id(volume: Path, tmp_path: Path) -> None:
    result = build_layer(selected(volume), tmp_path / "layer")
    assert xattrs(tmp_path / "layer", "overlay") == {"trusted.overlay.mkmeta": result.manifest_id}
    assert result.published.old is None
    assert result.links == 5
    assert result.entries == len(list(paths(volume))) - 1


@pytest.mark.needs("overlay")
@pytest.mark.parametrize("how", ["merge", "nested"])
def test_the_mount_is_the_volume(volume: Path, layer: Path, overlay: Mount, how: str) -> None:
    (volume / "grp" / "v1" / "lib" / "huge").unlink()  # nobody wants to read ten TiB
    (layer / "grp" / "v1" / "lib" / "huge").unlink()
    for top in (volume, layer):
        os.utime(top / "grp" / "v1" / "lib", ns=(0, 0))
    mounted = overlay(layer, volume, how)
    told = differences(volume, mounted)
    if how == "merge":  # root sees the escaped xattr there
        told = [line for line in told if not line.startswith(".d........x ")]
    assert told == []
    assert (mounted / "grp" / "not-selected").read_text() == "falls through"
    assert "trusted.overlay.mkmeta" not in os.listxattr(mounted)
    with pytest.raises(OSError, match="No data"):
        os.getxattr(mounted, "trusted.overlay.mkmeta")


@pytest.mark.needs("overlay")
def test_a_data_only_mount_shows_the_selection_alone(volume: Path, layer: Path, overlay: Mount) -> None:
    mounted = overlay(layer, volume, "data-only")
    assert set(paths(mounted)) == set(paths(layer))
    for name in NAMES:
        path = b"/grp/v1/lib/" + name
        assert Path(os.fsdecode(os.fsencode(mounted) + path)).read_bytes() == b"content of " + name
    assert not any(name.startswith("trusted.overlay.mk") for name in os.listxattr(mounted))
    assert (mounted / "grp/v1/bin/data-again").read_bytes() == (volume / "grp/v1/lib/data").read_bytes()


@pytest.mark.needs("overlay")
@pytest.mark.parametrize("how", ["merge", "nested"])
def test_later_names_show_in_merge_directories_only(volume: Path, layer: Path, overlay: Mount, how: str) -> None:
    (volume / "grp" / "v2").mkdir()
    (volume / "grp" / "v1" / "lib" / "late").touch()
    mounted = overlay(layer, volume, how)
    assert (mounted / "grp" / "v2").is_dir()
    assert "late" not in os.listdir(mounted / "grp" / "v1" / "lib")
    assert not (mounted / "grp" / "v1" / "lib" / "late").exists()
    assert not (mounted / "grp" / "v1" / "nothing").exists()


@pytest.mark.needs("overlay")
@pytest.mark.parametrize("how", ["merge", "data-only", "nested"])
def test_the_longest_redirect_opens(tmp_path: Path, mount: Mount, overlay: Mount, how: str) -> None:
    """4,095 bytes with the slash. Longer ones open above merged lowers only, so the plan refuses them."""
    volume, layer = tmp_path / "volume", mount("tmpfs") / "layer"  # ext4 has no room for such xattrs
    volume.mkdir()
    fd = os.open(volume, os.O_RDONLY)
    components = [b"c" * 200] * 20 + [b"d" * 69]
    for name in components:
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    with os.fdopen(os.open(b"four", os.O_CREAT | os.O_WRONLY, dir_fd=fd), "wb") as file:
        file.write(b"data")
    os.close(fd)
    assert len(b"/" + b"/".join([*components, b"four"])) == 4095
    tree = Tree(children={b"four": regular(4)})
    for name in reversed(components):
        tree = Tree(children={name: tree})
    build_layer(manifest_from(tree), layer)
    mounted = overlay(layer, volume, how)
    fd = os.open(mounted, os.O_RDONLY)
    for name in components:
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    with os.fdopen(os.open(b"four", os.O_RDONLY, dir_fd=fd), "rb") as file:
        assert file.read() == b"data"
    os.close(fd)


@pytest.mark.needs("overlay")
def test_a_prefix_reaches_a_volume_mounted_elsewhere(volume: Path, tmp_path: Path, overlay: Mount) -> None:
    above = tmp_path / "above"
    (above / "sw").mkdir(parents=True)
    volume.rename(above / "sw" / "x")
    build_layer(selected(above / "sw" / "x"), tmp_path / "layer", with_plan(prefix=b"sw/x"))
    mounted = overlay(tmp_path / "layer", above, "data-only")
    assert (mounted / "grp/v1/bin/acl").read_text() == "x"


def test_workers_make_no_difference(volume: Path, tmp_path: Path) -> None:
    manifest = selected(volume)
    for jobs in (1, 2, 5):
        build_layer(manifest, tmp_path / f"j{jobs}", BuildOptions(jobs=jobs))
    assert attributes(tmp_path / "j1") == attributes(tmp_path / "j2") == attributes(tmp_path / "j5")
    assert differences(tmp_path / "j1", tmp_path / "j5", checksum=False) == []


def test_digests_in_metacopy(volume: Path, tmp_path: Path) -> None:
    (volume / "grp/v1/lib/huge").unlink()
    manifest = manifest_of(volume, skeleton=SKELETON, verity=True)
    build_layer(manifest, tmp_path / "layer")
    value = xattrs(tmp_path / "layer/grp/v1/lib/data", "metacopy")["trusted.overlay.metacopy"]
    output = subprocess.run(
        ["fsverity", "digest", "--compact", volume / "grp/v1/lib/data"], capture_output=True, check=True, text=True
    ).stdout
    assert value == b"\0\x24\0\x01" + bytes.fromhex(output.strip())
    build_layer(manifest, tmp_path / "plain", BuildOptions(plan=Plan(verity=False)))
    assert xattrs(tmp_path / "plain/grp/v1/lib/data", "metacopy") == {"trusted.overlay.metacopy": b""}


def test_attributes_of_the_place_are_not_inherited(volume: Path, tmp_path: Path) -> None:
    """Set-group-id and a default ACL of the directory DEST is in pass on to what is created there; not to a layer."""
    place = tmp_path / "place"
    place.mkdir()
    os.chown(place, 0, 4711)
    place.chmod(0o2775)
    subprocess.run(["setfacl", "-d", "-m", "u:99:rwx", place], check=True)
    os.chown(volume / "grp/v1/lib/data", 0, 4711)  # what the place would make of it by itself
    build_layer(selected(volume), place / "layer")
    expected = attributes(volume)
    del expected[b"grp/not-selected"]
    assert attributes(place / "layer") == expected
    assert xattrs(place / "layer", "acl") == {}
    assert xattrs(place / "layer/grp/v1/lib/data", "acl") == {}
