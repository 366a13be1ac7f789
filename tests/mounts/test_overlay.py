"""The ways to hand layers to the kernel, and reading them back from its mount table."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mkmeta.errors import MountError
from mkmeta.linux.mount import MNT_DETACH, FilesystemContext, MountFlags, MountRefused, move_mount, umount2
from mkmeta.linux.mountinfo import Mount, mount_of, mounts
from mkmeta.mounts import overlay as ways
from mkmeta.mounts.live import layers_of
from mkmeta.mounts.overlay import closing, make
from mkmeta.mounts.profile import Overlay
from mkmeta.mounts.run import RunDirectory
from tests.host.hosts import mounts_below

pytestmark = pytest.mark.needs("root", "overlay")
ODD = [
    b"plain",
    b"with space",
    b"comma,",
    b"colon:",
    b"back\\slash",
    b"two\\\\,:::",
    b"a::b",
    b"end\\",
    b"\xff\n\t'\"",
    b"=#",
]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.open(os.fsencode(tmp_path / "run"), None)


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Callable[[int], Mount]]:
    """Attaches a mount, and returns its line of the mount table."""
    point = os.fsencode(tmp_path / "point")
    os.mkdir(point)
    attached = []

    def attach(fd: int) -> Mount:
        move_mount(fd, point)
        attached.append(point)
        return mount_of(point, mounts())

    yield attach
    for one in attached:
        umount2(one, MNT_DETACH)


def _overlay(top: Path, name: bytes, *, data: bool, writable: bool = False) -> Overlay:
    layer, lower, work = (os.fsencode(top) + b"/" + name + end for end in (b"", b".low", b".work"))
    for directory in (layer, lower, work):
        os.mkdir(directory)
    os.mkdir(layer + b"/in-layer")
    with open(lower + b"/in-volume", "wb"):
        pass
    if writable:
        return Overlay(source=b"mkmeta:test", lowers=(lower,), upper=layer, work=work)
    if data:
        return Overlay(source=b"mkmeta:test", lowers=(layer,), data=(lower,), options=((b"metacopy", b"on"),))
    return Overlay(source=b"mkmeta:test", lowers=(layer, lower), flags=MountFlags.RDONLY | MountFlags.NOSUID)


def _only(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every way but one answer as kernels do that do not know it."""

    def unknown(_overlay: Overlay) -> int:
        raise MountRefused(22, "overlay: Unknown parameter 'lowerdir+'", b"lowerdir+")

    for other in ("_by_descriptor", "_by_path", "_by_string"):
        if other != way:
            monkeypatch.setattr(ways, other, unknown)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EBADF, "Bad file descriptor"),  # Linux 6.12
        (errno.EINVAL, "Invalid argument"),
        (errno.EINVAL, "overlay: Bad value for 'lowerdir+'"),
    ],
)
def test_a_kernel_that_takes_no_descriptors_is_given_paths(
    tmp_path: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def declined(_context: FilesystemContext, key: bytes, _fd: int) -> None:
        raise MountRefused(number, said, key)

    monkeypatch.setattr(FilesystemContext, "set_fd", declined)
    with closing(make(_overlay(tmp_path, b"name", data=False), run.scratch)) as fd:
        assert set(os.listdir(f"/proc/self/fd/{fd}")) == {"in-layer", "in-volume"}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", ["merge", "data", "upper"])
@pytest.mark.parametrize("way", ["_by_descriptor", "_by_path", "_by_string", "_by_mount2"])
def test_every_way_takes_any_path_and_it_is_read_back(
    tmp_path: Path,
    run: RunDirectory,
    shown: Callable[[int], Mount],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    kind: str,
    name: bytes,
) -> None:
    _only(way, monkeypatch)
    wanted = _overlay(tmp_path, name, data=kind == "data", writable=kind == "upper")
    with closing(make(wanted, run.scratch)) as fd:
        assert set(os.listdir(f"/proc/self/fd/{fd}")) == ({"in-layer"} if kind == "data" else {"in-layer", "in-volume"})
        mount = shown(fd)
    assert mount.source == b"mkmeta:test"
    assert layers_of(mount) == (list(wanted.lowers), list(wanted.data), wanted.upper)
    assert os.listdir(run.path + b"/inner") == []
    if kind == "merge":
        assert {b"ro", b"nosuid"} <= mount.flags


@pytest.mark.parametrize("way", ["_by_descriptor", "_by_mount2"])
def test_long_paths(
    tmp_path: Path, run: RunDirectory, shown: Callable[[int], Mount], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Over 255 bytes, which the calls that take one string per layer refuse."""
    _only(way, monkeypatch)
    deep = tmp_path / ("x" * 200) / ("y" * 200)
    deep.mkdir(parents=True)
    wanted = _overlay(deep, b"layer", data=False)
    with closing(make(wanted, run.scratch)) as fd:
        assert layers_of(shown(fd)).lowers == list(wanted.lowers)


def test_by_string_a_long_path_goes_on_to_mount2(
    tmp_path: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    _only("_by_string", monkeypatch)
    deep = tmp_path / ("x" * 200) / ("y" * 200)
    deep.mkdir(parents=True)
    os.close(make(_overlay(deep, b"layer", data=False), run.scratch))
    assert os.listdir(run.path + b"/inner") == []


@pytest.mark.parametrize(
    "refusal",
    [
        MountRefused(errno.EBADF, os.strerror(errno.EBADF), b"lowerdir+"),  # 6.5 to 6.12
        MountRefused(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), b"lowerdir+"),  # before
        MountRefused(errno.EINVAL, "overlay: Unknown parameter 'lowerdir+'", b"lowerdir+"),
        MountRefused(errno.EINVAL, "VFS: Legacy: Option 'lowerdir+' contained comma", b"lowerdir+"),
        OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)),
    ],
    ids=str,
)
def test_what_older_kernels_say_to_a_way_they_do_not_know(
    tmp_path: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, refusal: OSError
) -> None:
    def refuse(_context: FilesystemContext, _key: bytes, _value: object) -> None:
        raise refusal

    monkeypatch.setattr(FilesystemContext, "set_fd", refuse)
    os.close(make(_overlay(tmp_path, b"layer", data=False), run.scratch))
    monkeypatch.setattr(FilesystemContext, "set_string", refuse)
    os.close(make(_overlay(tmp_path, b"second", data=False), run.scratch))


def test_what_no_way_can_take_is_said(tmp_path: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    _only("_by_mount2", monkeypatch)
    very_deep = b"/" + b"/".join([b"z" * 200] * 12)
    with pytest.raises(MountError, match="too long"):
        make(Overlay(source=b"x", lowers=(very_deep, very_deep)), run.scratch)


def test_the_kernels_own_words(tmp_path: Path, run: RunDirectory) -> None:
    wanted = dataclasses.replace(_overlay(tmp_path, b"layer", data=False), options=((b"metacopy", b"perhaps"),))
    with pytest.raises(MountError, match="overlay: Bad value for 'metacopy'"):
        make(wanted, run.scratch)


def test_a_volume_in_the_layer_is_explained(tmp_path: Path, run: RunDirectory) -> None:
    top = os.fsencode(tmp_path)
    with pytest.raises(MountError) as caught:
        make(Overlay(source=b"x", lowers=(top,), data=(top,), options=((b"metacopy", b"on"),)), run.scratch)
    assert caught.value.hint == "layer and volume must not contain each other"


def test_a_mount_that_is_not_attached_is_gone_with_its_descriptor(tmp_path: Path, run: RunDirectory) -> None:
    before = mounts_below(tmp_path)
    os.close(make(_overlay(tmp_path, b"layer", data=False), run.scratch))
    assert mounts_below(tmp_path) == before


def test_flags_of_mountinfo() -> None:
    names = frozenset((b"ro", b"nosuid", b"nodev", b"relatime"))
    assert MountFlags.of(names) == MountFlags.RDONLY | MountFlags.NOSUID | MountFlags.NODEV


def test_a_context_says_what_the_filesystem_said() -> None:
    with FilesystemContext.open(b"tmpfs") as context:
        with pytest.raises(OSError, match="Unknown parameter"):
            context.set_string(b"nonsense", b"1")
        with pytest.raises(OSError, match="Bad value"):
            context.set_string(b"size", b"huge")
