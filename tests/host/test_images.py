"""Layers that are images: everything that directories are put through, beside directories, in one store."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mkmeta.linux.descriptors import closing
from mkmeta.linux.loop import attach
from mkmeta.linux.mount import MNT_DETACH, umount2
from mkmeta.linux.mountinfo import mounts
from mkmeta.mounts import image, switch
from mkmeta.mounts.image import by_loop, is_placed_image
from mkmeta.mounts.overlay import make
from mkmeta.mounts.profile import Overlay
from tests.conftest import Mount
from tests.host.hosts import Host, host_in, kill_sometimes, took
from tests.host.test_users import program

pytestmark = pytest.mark.needs("root", "overlay", "EROFS mounts")
AT_ONCE = ("--keep", "1", "--min-age", "0")
PROFILES = ("nested", "merge", "data-only")


def _host(top: Path) -> Iterator[Host]:
    """A host whose first generation is a directory, the second an image with another file."""
    for host in host_in(top):
        host.kind = "erofs"
        host.release("v1", {"lib/two": "second\n"})
        host.publish()
        yield host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Wherever temporary files are."""
    yield from _host(tmp_path / "host")


@pytest.fixture(params=["a disk", "memory"])
def either(request: pytest.FixtureRequest, tmp_path: Path, mount: Mount) -> Iterator[Host]:
    """On a filesystem of which the kernel mounts files as they are (6.12), and on one of which it does not."""
    if request.param == "memory":
        yield from _host(mount("tmpfs") / "host")
        return
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    yield from _host(mount("ext4", "loop", disk) / "host")


def _image(host: Host, number: int = 2) -> Path:
    (found,) = host.store.glob(f"generations/{number:06}-*/private/layer")
    return found


def _numbers(host: Host) -> list[int]:
    return sorted(int(path.name[:6]) for path in (host.store / "generations").iterdir())


def _gc_until(host: Host, wanted: list[int]) -> None:
    """A mount, and a loop device, take the kernel a moment to take apart."""
    for _ in range(50):
        host.call("gc", host.store, *AT_ONCE)
        if _numbers(host) == wanted:
            return
        time.sleep(0.1)
    assert _numbers(host) == wanted


def _placed(host: Host) -> list[bytes]:
    """The sources of the images that are mounted for this host."""
    return [
        one.source for one in mounts() if is_placed_image(one) and one.point.startswith(os.fsencode(host.top) + b"/")
    ]


@pytest.mark.needs("mkfs.ext4", "loop mounts")
@pytest.mark.parametrize("profile", PROFILES)
def test_there_and_back(either: Host, profile: str) -> None:
    """Shows the same as the directory of the same manifest, by a loop device where it must be; nothing is left over."""
    host = either
    host.activate("--profile", profile)
    (source,) = _placed(host)
    assert source.startswith(b"/dev/loop" if "tmpfs" in _type(host.store) else b"/")
    live = host.live()
    assert (live.profile, live.layer) == (profile, os.fsencode(_image(host)))
    assert (host.point / "grp/paint/v1/lib/two").read_text() == "second\n"
    assert subprocess.run([host.point / "grp/paint/v1/bin/tool"], capture_output=True, check=True).stdout == b"one\n"
    assert (host.point / "notes").exists() == (profile != "data-only")
    (shown,) = host.call("status", host.point, "--json").messages
    assert (shown["kind"], shown["state"], shown["profile"], shown["generation"]) == ("erofs", "current", profile, 2)
    assert str(shown["id"]).startswith(str(shown["short_id"]))
    assert host.activate("--profile", profile, "--json").messages[-1]["action"] == "unchanged"
    host.call("refresh", host.point)
    host.call("rollback", host.point)
    assert not (host.point / "grp/paint/v1/lib/two").exists()
    assert (_placed(host), host.leftovers()) == ([], [])
    host.activate("--generation", "2", "--profile", profile)
    (host.volume / "grp/paint/v1/lib/three").write_text("third\n")
    host.publish()
    host.activate("--profile", profile)  # from one image to another
    assert (host.point / "grp/paint/v1/lib/three").read_text() == "third\n"
    host.call("deactivate", host.point)
    assert (_placed(host), host.leftovers(), host.stack()) == ([], [], [])
    _gc_until(host, [3])


def _type(path: Path) -> str:
    return subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True).stdout


def test_the_same_manifest_as_a_directory_and_as_an_image(host: Host) -> None:
    """Two generations with one ID: each can be mounted, and each is told from the other."""
    host.kind = "directory"
    host.publish()
    for number, kind in ((2, "erofs"), (3, "directory"), (2, "erofs")):
        host.activate("--generation", str(number))
        (shown,) = host.call("status", host.point, "--json").messages
        assert (shown["generation"], shown["kind"]) == (number, kind)
    for store in (
        host.store,
        next(host.store.glob("generations/000002-*")),
        next(host.store.glob("generations/000003-*")),
    ):
        host.call("verify", store, "--lower", host.volume)
        host.call("diff", host.top / "sw.mkm", store)
    assert "recorded" in host.call("explain", host.point, "grp/paint/v1/lib/two").out


@pytest.mark.parametrize("damage", ["cut", "flipped", "longer", "empty"])
def test_a_damaged_image_is_refused(host: Host, damage: str) -> None:
    path = _image(host)
    data = path.read_bytes()
    at = len(data) // 2
    path.write_bytes(
        {
            "cut": data[:-4096],
            "flipped": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
            "longer": data + bytes(4096),
            "empty": b"",
        }[damage]
    )
    said = host.activate(check=16).err
    assert said.startswith(f"mkmeta: {path}: the image is damaged, or another: its digest is ")
    assert (host.stack(), host.leftovers(), _placed(host)) == ([], [], [])
    assert "digest" in host.call("verify", host.store, check=4).out
    host.publish()  # the manifest is built again, not taken to be there
    host.activate()
    assert host.live().layer == os.fsencode(_image(host, 3))


def test_an_image_that_was_removed_is_said(either: Host) -> None:
    """What is mounted goes on; nothing can be mounted of it again."""
    either.activate()
    _image(either).unlink()
    done = either.call("status", either.point, check=22)
    assert "no such file" in (done.out + done.err).lower()
    assert (either.point / "grp/paint/v1/lib/two").read_text() == "second\n"
    either.call("deactivate", either.point)


def test_nobody_else_reads_an_image(host: Host) -> None:
    path = _image(host)
    assert (path.stat().st_mode & 0o7777, path.parent.stat().st_mode & 0o7777) == (0o600, 0o700)
    host.activate()
    inner = host.live().inner_path
    assert inner is not None
    assert os.stat(os.path.dirname(inner)).st_mode & 0o7777 == 0o700


def test_an_image_cannot_be_written_into(host: Host) -> None:
    assert "an image cannot be written into" in host.activate("--profile", "upper", check=16).err
    assert (host.stack(), host.leftovers()) == ([], [])


# --- who uses one ---


@contextlib.contextmanager
def _mounted_and_detached(path: Path) -> Iterator[None]:
    with closing(image.mounted(os.fsencode(path))):
        yield


@contextlib.contextmanager
def _behind_a_loop_device(path: Path) -> Iterator[None]:
    _device, fd = attach(os.fsencode(path))
    with closing(fd):
        yield


@contextlib.contextmanager
def _mounted_in_another_namespace(path: Path) -> Iterator[None]:
    script = f"mount -t erofs -o loop {path} /mnt && echo && sleep 1000"
    child = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
        yield
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


@pytest.mark.parametrize(
    "how",
    [_mounted_and_detached, _behind_a_loop_device, Path.open, _mounted_in_another_namespace],
    ids=lambda how: how.__name__,
)
def test_an_image_in_use_stays(host: Host, how: object) -> None:
    host.kind = "directory"
    host.publish("grp/*")
    with how(_image(host)):  # type: ignore[operator]
        said = host.call("gc", host.store, *AT_ONCE).err
        assert _numbers(host) == [2, 3]
        assert "its image is open" in said
    _gc_until(host, [3])


def test_a_program_that_has_a_file_of_an_earlier_image_keeps_it(host: Host) -> None:
    host.activate()
    with program("fd = os.open(point + '/grp/paint/v1/lib/two', os.O_RDONLY)", host.point):
        host.publish("grp/*")
        host.activate()
        host.call("gc", host.store, *AT_ONCE)
        assert _numbers(host) == [2, 3]
    _gc_until(host, [3])


def test_nothing_but_the_image_is_asked_about_it(host: Host) -> None:
    """Whatever could not be looked at on this host, what nobody has open is nobody's."""
    host.kind = "directory"
    host.publish("grp/*")
    command = ["setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", *host.command("gc", host.store)]
    subprocess.run([*command, *AT_ONCE], check=True, capture_output=True)
    assert 2 not in _numbers(host)


def test_a_copy_in_another_namespace_keeps_it_mounted(host: Host) -> None:
    host.activate()
    with program("ok(libc.unshare(0x20000))", host.point):
        said = host.call("deactivate", host.point).err
        assert "is still mounted" in said
        assert len(_placed(host)) == 1
    for _ in range(50):
        host.call("gc", host.store, *AT_ONCE)
        if not _placed(host):
            break
        time.sleep(0.1)
    assert (_placed(host), os.listdir(host.run / "inner")) == ([], [])


# --- interrupted, at once, older kernels ---


@pytest.mark.slow
def test_killed_activations(host: Host) -> None:
    """At any moment: the path is there, the next call works, and in the end nothing is mounted that nobody needs."""
    chance = random.Random(11)
    killed = 0
    for number in range(8):
        first, second = (
            host.command("activate", host.store, host.point, "--lower", host.volume, "--generation", str(wanted))
            for wanted in (1 + number % 2, 2 - number % 2)
        )
        killed += kill_sometimes(second, chance.uniform(0.5, 1.1) * took(first)) == -signal.SIGKILL
        assert (host.point / "grp/paint/v1/lib/one").read_text() == "first\n"
    assert killed > 1
    host.activate("--generation", "2")
    assert (len(host.stack()), host.leftovers(), len(_placed(host))) == (1, [], 1)
    host.call("deactivate", host.point)
    assert (_placed(host), host.leftovers()) == ([], [])


def test_two_activations_at_once(host: Host) -> None:
    host.activate("--generation", "1")
    racing = [
        subprocess.Popen(host.command("activate", host.store, host.point, "--generation", str(1 + number % 2)))
        for number in range(4)
    ]
    assert [one.wait() for one in racing] == [0] * 4
    assert (len(host.stack()), host.leftovers()) == (1, [])


def test_a_kernel_that_counts_an_image_as_a_level(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two levels: mounted as it is, it leaves no room for nested; by a loop device it does."""

    def with_a_level_more(path: bytes) -> int:
        empty = os.fsencode(host.top / "empty")
        os.makedirs(empty, exist_ok=True)
        below = Overlay(source=b"one", lowers=(empty, os.fsencode(host.volume / "grp")), flags=image.FLAGS)
        return make(below, lambda: contextlib.nullcontext(empty))

    monkeypatch.setattr(switch, "WAYS", (with_a_level_more, by_loop))
    host.activate()
    assert host.live().profile == "nested"
    assert _placed(host)[0].startswith(b"/dev/loop")
    monkeypatch.setattr(switch, "WAYS", (with_a_level_more,))
    host.activate("--generation", "1")
    said = host.activate("--generation", "2", "--profile", "nested", check=1).err
    assert "cannot be mounted" in said
    assert host.live().image is None
    assert host.leftovers() == []


def test_a_path_that_is_too_long_for_the_kernel_to_open(host: Host) -> None:
    long = host.top / ("d" * 200) / ("e" * 100)
    long.mkdir(parents=True)
    host.store.rename(long / "store")
    host.call("activate", long / "store", host.point, "--lower", host.volume)
    assert host.live().layer.startswith(os.fsencode(long))


def test_full_disk(host: Host, mount: Mount) -> None:
    """A build that has no room leaves the store as it was."""
    small = mount("tmpfs", "size=64k")
    manifest = host.top / "sw.mkm"
    built = 0
    for size in (16, 24, 32, 40, 48, 64, 96):
        subprocess.run(["mount", "-o", f"remount,size={size}k", small], check=True)
        done = host.call("build", manifest, "--store", small / "store", "--format", "erofs", check=None)
        names = sorted(os.listdir(small / "store/generations")) if (small / "store/generations").exists() else []
        built += done.code == 0
        assert (done.code, len(names)) in ((0, 1), (1, 0)), (size, done, names)
    assert 0 < built < 7


def test_a_pointer_that_is_followed_builds_images(host: Host) -> None:
    pointer = host.volume / "sw.json"
    host.call("publish", host.store, "--pointer", pointer)
    follow = ("activate", host.top / "client", host.point, "--lower", host.volume, "--follow", pointer)
    host.call(*follow, "--format", "erofs")
    assert host.live().image is not None
    host.call(*follow)  # as it is there
    assert host.live().image is not None
    host.call("activate", host.store, host.point, "--format", "erofs", check=2)


# --- in no store ---


def test_an_image_of_its_own(host: Host) -> None:
    """On the volume, as for hosts without a disk: activated, switched, replaced under the mount, refused."""
    first, second = host.volume / "first.erofs", host.volume / "second.erofs"
    digest = host.call("build", host.top / "sw.mkm", first, "--format", "erofs").out.split()[0]
    host.call("activate", first, host.point, "--lower", host.volume, "--image-digest", digest)
    assert (host.point / "grp/paint/v1/lib/two").read_text() == "second\n"
    (shown,) = host.call("status", host.point, "--json").messages
    assert (shown["generation"], shown["store"], shown["kind"], shown["layer"]) == (None, None, "erofs", str(first))
    assert "in no store" in host.call("rollback", host.point, check=1).err
    host.release("v2", {"lib/new": "new\n"})
    host.call("scan", host.volume, "--select", "grp/*/v*", "-o", host.top / "sw.mkm")
    host.call("build", host.top / "sw.mkm", second, "--format", "erofs")
    assert "should be" in host.call("activate", second, host.point, "--image-digest", digest, check=16).err
    assert host.call("activate", second, host.point, "--json").messages[-1]["action"] == "switched"
    assert (host.point / "grp/paint/v2/lib/new").read_text() == "new\n"
    host.call("build", "--swap", host.top / "sw.mkm", first, "--format", "erofs", "--no-verity")
    host.call("refresh", host.point)
    host.call("activate", host.store, host.point, "--generation", "1")
    host.call("activate", host.top / "sw.mkm", host.point, check=1)
    host.call("deactivate", host.point)
    assert (_placed(host), host.leftovers()) == ([], [])


def test_an_image_of_somebody_else(host: Host, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    subprocess.run(["mkfs.erofs", tmp_path / "image", tmp_path / "empty"], check=True, capture_output=True)
    said = host.call("activate", tmp_path / "image", host.point, "--lower", host.volume, check=16).err
    assert "did not build as a layer" in said


def test_a_bind_mount_of_it_is_a_copy(host: Host) -> None:
    host.activate()
    other = host.top / "other"
    other.mkdir()
    subprocess.run(["mount", "--bind", host.point, other], check=True)
    (shown,) = host.call("status", "--json").messages
    assert shown["copies"] == [{"path": str(other)}]
    host.call("rollback", host.point)
    assert (other / "grp/paint/v1/lib/two").read_text() == "second\n"
    assert len(_placed(host)) == 1  # what the copy is made of
    umount2(os.fsencode(other), MNT_DETACH)
    host.activate("--generation", "2")
    assert len(_placed(host)) == 1
