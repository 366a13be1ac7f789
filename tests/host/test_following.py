"""Following a pointer: the least that is needed, never back unasked; what is mounted stays when it cannot be had."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mkmeta.linux.mount import MNT_DETACH, mount, umount2
from tests.calling import Result
from tests.host.hosts import Host

pytestmark = pytest.mark.needs("root", "overlay")


class Site:
    """A publisher and a client that share a volume."""

    def __init__(self, publisher: Host, client_top: Path) -> None:
        self.publisher = publisher
        self.client = Host(client_top)
        self.client.volume.rmdir()
        self.client.volume.symlink_to(publisher.volume)
        self.pointer = publisher.volume / ".mkmeta" / "sw.json"
        self.pointer.parent.mkdir()

    def publish(self, *args: str) -> Result:
        return self.publisher.call("publish", self.publisher.store, "--pointer", self.pointer, *args)

    def release(self, version: str) -> None:
        """Publishes a release: on the volume, as a generation, through the pointer."""
        self.publisher.release(version, {"lib/file": version})
        self.publisher.publish()
        self.publish()

    def follow(self, *args: str, check: int | None = 0) -> Result:
        return self.client.activate("--follow", self.pointer, "--json", *args, check=check)

    def action(self, *args: str) -> object:
        return self.follow(*args).messages[-1]["action"]


@pytest.fixture
def site(host: Host, tmp_path: Path) -> Iterator[Site]:
    made = Site(host, tmp_path / "client")
    made.publish()
    yield made
    made.client.unmount_all()


def test_the_first_call_fetches_builds_and_mounts(site: Site) -> None:
    assert site.action() == "mounted"
    assert (site.client.point / "grp/paint/v1/lib/one").read_text() == "first\n"
    assert [path.name for path in site.client.store.glob("generations/0*")] == [
        path.name for path in site.publisher.store.glob("generations/0*")
    ]


@pytest.mark.needs("strace")
def test_nothing_new_is_one_stat(site: Site) -> None:
    site.follow()
    _settle(site)
    command = site.client.command(
        "activate", site.client.store, site.client.point, "--lower", site.client.volume, "--follow", site.pointer
    )
    trace = site.client.top / "trace"
    subprocess.run(["strace", "-f", "-e", "trace=file", "-o", trace, *command], check=True, capture_output=True)
    touched = [line for line in trace.read_text().splitlines() if str(site.publisher.volume) in line]
    assert len(touched) == 1, touched
    assert "sw.json" in touched[0]
    assert site.action() == "nothing"


def _settle(site: Site, seconds: int = 301) -> None:
    """As if the last call had been made that much later."""
    (memory,) = (site.client.run / "followed").iterdir()
    fields = json.loads(memory.read_text())
    memory.write_text(json.dumps({**fields, "looked": fields["looked"] + seconds * 10**9}))


def test_a_pointer_that_is_alike_in_all_but_what_it_says(site: Site) -> None:
    """Inode number, size and times as before: soon after the last news it is read all the same."""
    site.follow()
    site.release("v2")
    (memory,) = (site.client.run / "followed").iterdir()
    status = site.pointer.stat()
    identity = [status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size]
    memory.write_text(json.dumps({**json.loads(memory.read_text()), "identity": identity}))
    assert site.action() == "switched"


def test_a_serial_that_begins_again(site: Site) -> None:
    """Removed and published again: the same generation, the same serial, perhaps within the same second."""
    site.follow()
    site.pointer.unlink()
    site.publish()
    assert json.loads(site.pointer.read_text())["serial"] == 1
    assert site.action() == "refreshed"
    site.pointer.touch()  # nothing was published
    assert site.action() == "nothing"


def test_a_pointer_named_through_a_layer(site: Site, tmp_path: Path) -> None:
    """It would go on showing the one it has shown; through a bind mount of the layer too."""
    site.follow()
    through = site.client.point / ".mkmeta/sw.json"
    assert through.exists()
    other = tmp_path / "bind"
    other.mkdir()
    mount(os.fsencode(site.client.point), os.fsencode(other), None, 0x1000)
    try:
        for pointer in (through, other / ".mkmeta/sw.json"):
            arguments = (site.client.store, site.client.point, "--lower", site.client.volume, "--follow", pointer)
            assert "named through the layer" in site.client.call("activate", *arguments, check=16).err
            refused = site.publisher.call("publish", site.publisher.store, "--pointer", pointer, check=16)
            assert "named through the layer" in refused.err
    finally:
        umount2(os.fsencode(other), MNT_DETACH)


def _as_a_directory(memory: Path) -> None:
    memory.unlink()
    memory.mkdir()


def _as_a_pipe(memory: Path) -> None:
    memory.unlink()
    os.mkfifo(memory)


def _as_a_file_above(memory: Path) -> None:
    memory.unlink()
    memory.parent.rmdir()
    memory.parent.touch()


DAMAGE: list[Callable[[Path], object]] = [
    _as_a_directory,
    _as_a_pipe,
    _as_a_file_above,
    *(
        lambda memory, text=text: memory.write_text(text)
        for text in (
            *(
                "",
                "{",
                "[]",
                "\0" * 70000,
                '{"format": "mkmeta-followed"}',
                '{"format": "mkmeta-followed", "version": 9}',
            ),
            '{"format": "mkmeta-followed", "version": 1, "identity": 1, "looked": "x", "digest": [], "id": {}}',
            '{"format": "mkmeta-followed", "version": 1, "identity": ["a"], "looked": 99999999999999999999}',
        )
    ),
]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_what_is_remembered_is_not_believed(site: Site, damage: Callable[[Path], object]) -> None:
    """The memory is damaged: the pointer is read, and what it asks for is done."""
    site.follow()
    (memory,) = (site.client.run / "followed").iterdir()
    damage(memory)
    assert site.action() == "refreshed"
    site.release("v2")
    assert site.action() == "switched"
    assert site.client.leftovers() == []


def test_a_new_generation_is_switched_to(site: Site) -> None:
    site.follow()
    site.release("v2")
    assert site.action() == "switched"
    assert (site.client.point / "grp/paint/v2/lib/file").read_text() == "v2"
    assert site.action() == "nothing"


def test_something_published_without_a_new_layer_is_a_refresh(site: Site) -> None:
    site.follow()
    late = site.client.point / "tools/new"
    assert not late.exists()
    (site.publisher.volume / "tools").mkdir()
    (site.publisher.volume / "tools/new").write_text("new\n")
    assert not late.exists()
    assert site.action() == "nothing"
    site.publish()
    assert site.action() == "refreshed"
    assert late.read_text() == "new\n"
    assert site.action() == "nothing"


def test_a_client_keeps_the_publishers_numbers(site: Site) -> None:
    for version in ("v2", "v3"):
        site.release(version)
    site.follow()
    (only,) = site.client.store.glob("generations/0*")
    assert only.name.startswith("000003-")


def test_never_back_unless_the_pointer_says_so(site: Site) -> None:
    site.release("v2")
    site.follow()
    pointer = json.loads(site.pointer.read_text())
    first = next(site.publisher.store.glob("generations/000001-*"))
    old = json.loads((first / "generation.json").read_text())
    site.publish("--generation", "1", "--rollback")
    rolled_back = json.loads(site.pointer.read_text())
    site.pointer.write_text(json.dumps({**rolled_back, "rollback": False}))
    refused = site.follow(check=16)
    assert "--rollback" in refused.err
    assert site.client.live().short_id == pointer["id"][:12]
    site.publish("--generation", "1", "--rollback")
    assert site.action() == "switched"
    assert site.client.live().short_id == old["id"][:12]
    site.release("v3")
    assert site.action() == "switched"


def test_a_pointer_that_cannot_be_read(site: Site) -> None:
    site.pointer.rename(site.pointer.with_suffix(".away"))
    missing = site.follow(check=1)
    assert "the pointer cannot be read" in missing.err
    site.pointer.with_suffix(".away").rename(site.pointer)
    site.follow()
    site.pointer.write_text("{")
    before = site.client.stack()
    assert "the pointer cannot be read" in site.follow(check=1).err
    assert site.client.stack() == before
    site.client.call("deactivate", site.client.point)  # as after a reboot: there is a store, and nothing is mounted
    done = site.client.activate("--follow", site.pointer)
    assert "mounting what this host has" in done.err
    assert site.client.stack() != []


def test_a_manifest_that_is_not_what_the_pointer_names(site: Site) -> None:
    site.follow()
    site.release("v2")
    named = json.loads(site.pointer.read_text())["manifest"]
    first = next(path for path in site.pointer.parent.glob("*.mkm") if path.name != named)
    (site.pointer.parent / named).write_bytes(first.read_bytes())
    before = site.client.stack()
    site.follow(check=11)
    (site.pointer.parent / named).write_bytes(b"nonsense")
    site.follow(check=10)
    (site.pointer.parent / named).unlink()
    assert f"{named}: no such file" in site.follow(check=1).err
    assert site.client.stack() == before
    assert len(list(site.client.store.glob("generations/*"))) == 1


def test_a_new_pointer_to_what_is_mounted_by_hand_is_a_refresh(site: Site) -> None:
    """The memory of the last call is lost, as when RUN is: at most one refresh too many."""
    site.follow()
    for path in (site.client.run / "followed").iterdir():
        path.unlink()
    assert site.action() == "refreshed"
    assert site.action() == "nothing"


def test_two_mount_points_are_remembered_apart(site: Site, tmp_path: Path) -> None:
    site.follow()
    second = tmp_path / "second"
    second.mkdir()
    call = ("activate", site.client.store, second, "--lower", site.client.volume, "--follow", site.pointer, "--json")
    assert site.client.call(*call).messages[-1]["action"] == "mounted"
    site.release("v2")
    assert site.action() == "switched"
    assert site.client.call(*call).messages[-1]["action"] == "switched"
    site.client.call("deactivate", second)
