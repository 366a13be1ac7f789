"""The program's own mounts over NFS: what they show, how they are exchanged, and what they ask the server."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from mkmeta.host import following
from tests.nfs.conftest import KERNEL, PROFILES, Connect
from tests.nfs.hosts import NfsHost
from tests.nfs.test_mounts import as_user, differences
from tests.nfs.volumes import make_volume

pytestmark = [pytest.mark.nfs, pytest.mark.needs("NFS sandbox")]

MOUNTS_MD = Path(__file__).resolve().parents[2] / "formats" / "mounts.md"
NO_GAP = KERNEL >= (6, 5)  # MOVE_MOUNT_BENEATH
AUTO = "nested" if KERNEL >= (6, 7) else "merge"
GAP = () if NO_GAP else ("--allow-gap",)
SOON = "actimeo=1"  # so that what the client knows is old after EXPIRED
EXPIRED = 1.5  # seconds
OLD, NEW = "old\n", "new content\n"


@pytest.fixture
def host(connect: Connect, volume: Path, tmp_path: Path) -> Iterator[NfsHost]:
    """A host with a mount of an empty volume; its store is where paths are hard to write."""
    made = NfsHost(tmp_path / "host, with:odd", client=connect(SOON))
    yield made
    made.unmount_all()


@contextlib.contextmanager
def running(*command: str, stdin: IO[str]) -> Iterator[int]:
    """A program that has a file open; its number."""
    with subprocess.Popen(command, stdin=stdin) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def expire() -> None:
    """Until the client asks the server again."""
    time.sleep(EXPIRED)


@pytest.mark.parametrize("every", [*PROFILES, "upper"])
def test_shows_what_plain_nfs_shows(host: NfsHost, every: str) -> None:
    make_volume(host.served)
    host.publish("**" if every == "data-only" else "grp/*/*/lib")
    host.activate("--profile", every)
    assert host.live().profile == every
    # a link from one release to another is a file of its own in the layer
    apart = [] if every == "data-only" else ["hf          grp/b/v1/lib/same => grp/a/v1/lib/module1.py"]
    assert differences(host.volume, host.point) == apart
    assert differences(host.served, host.point) == apart
    assert (host.point / "grp/b/v1/doc/readme").read_text() == "how to use b/v1"
    host.call("status", host.point)
    host.call("deactivate", host.point)
    assert host.leftovers() == []


@pytest.mark.oldest
def test_auto_is_what_the_kernel_can(host: NfsHost) -> None:
    host.release("v1", {"lib/one": OLD})
    host.publish()
    done = host.activate()
    live = host.live()
    assert live.profile == AUTO
    keys = {key for key, _ in live.mount.options if key.startswith(b"lowerdir")}
    if AUTO == "nested":
        assert "note: profile" not in done.err
        assert keys == {b"lowerdir+"}
    else:
        assert "note: profile merge, as nested does not work here" in done.err
        assert "the first stat of every file asks the volume" in done.err
        assert keys == {b"lowerdir"}
        for profile in ("nested", "data-only"):
            assert "cannot mount profile" in host.activate("--profile", profile, check=1).err
    assert (host.point / "grp/paint/v1/lib/one").read_text() == OLD


def test_switch_rollback_and_gc(host: NfsHost) -> None:
    """In one step where the kernel has one; elsewhere the gap has to be allowed, and until then nothing changes."""
    host.release("v1", {"lib/one": OLD})
    host.publish()
    host.activate()
    host.release("v2", {"lib/two": NEW})
    host.publish()
    before = host.stack()
    if not NO_GAP:
        assert "--allow-gap" in host.activate(check=17).err
        assert host.stack() == before and (host.point / "grp/paint/v1/lib/one").read_text() == OLD
    with (host.point / "grp/paint/v1/lib/one").open() as held, running("sleep", "100", stdin=held) as holder:
        assert host.activate("--json", *GAP).messages[-1]["action"] == "switched"
        assert len(host.stack()) == 1 and host.leftovers() == []
        assert (host.point / "grp/paint/v2/lib/two").read_text() == NEW
        assert held.read() == OLD
        status = host.call("status", host.point, "--json").messages[0]
        for _ in range(10):  # it says so when a slow machine has no answer within its three seconds
            if not status["unseen"]:
                break
            status = host.call("status", host.point, "--json").messages[0]
        assert (status["generation"], status["state"]) == (2, "current")
        assert f"'process': {holder}, 'command': 'sleep', 'generation': 1" in str(status["holders"])
        host.call("gc", host.store, "--keep", "1", "--min-age", "0")
        assert len(list(host.store.glob("generations/0*"))) == 2, "in use"
    if not NO_GAP:
        host.call("rollback", host.point, check=17)
    assert host.call("rollback", host.point, "--json", *GAP).messages[-1]["generation"] == 1
    host.activate("--generation", "2", *GAP)
    host.call("gc", host.store, "--keep", "1", "--min-age", "0")
    assert [path.name[:6] for path in host.store.glob("generations/0*")] == ["000002"]
    host.call("deactivate", host.point)
    assert host.stack() == [] and host.leftovers() == []


@pytest.mark.parametrize("every", [name for name in (*PROFILES, "upper") if name != "data-only"])
def test_a_release_added_on_the_server(host: NfsHost, every: str) -> None:
    host.release("v1", {"lib/one": OLD})
    host.publish()
    host.activate("--profile", every)
    early = host.point / "grp/paint/v2/lib/two"
    assert not early.exists()
    for version in ("v2", "v3"):
        host.release(version, {"lib/two": NEW})
    expire()
    assert (host.point / "grp/paint/v3/lib/two").read_text() == NEW, "never asked for: there at once"
    assert "v2" in os.listdir(host.point / "grp/paint") and not early.exists(), "listed, and yet not there"
    host.call("refresh", host.point)
    assert early.read_text() == NEW


def expected(profile: str) -> dict[tuple[str, str], str]:
    """What the table of formats/mounts.md says: by what happened and what was done before, the cell."""
    text = MOUNTS_MD.read_text().partition("## 6.")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    column = rows[0].index(profile)
    return {(row[0], row[1]): row[column] for row in rows[2:] if row[column] != "-"}


def outcome(use: Callable[[], str]) -> str:
    try:
        return use()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def stat_and_open(path: Path, other: bool) -> str:
    """As the table has it. Of what was not recorded there is nothing old to be shown."""
    size = outcome(lambda: {len(OLD): "old" if other else "layer", len(NEW): "new"}[path.stat().st_size])
    content = outcome(lambda: {OLD: "old", NEW: "new"}[path.read_text()])
    return f"{size}, {content}"


def replace(path: Path) -> None:
    """Puts new content, a file or a directory of the same names, where old is."""
    new = path.with_name("new")
    if path.is_dir():
        shutil.copytree(path, new)
        for file in new.rglob("file"):
            file.write_text(NEW)
        path.rename(path.with_name("gone"))
        shutil.rmtree(path.with_name("gone"))
    else:
        new.write_text(NEW)
    new.rename(path)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


CHANGES: dict[str, Callable[[Path], object]] = {
    "removed": remove,
    "replaced": replace,
    "written into": lambda path: path.write_text(NEW),
}
USES: dict[str, Callable[[Path], object]] = {"open": Path.read_text, "stat": Path.stat, "never": lambda path: None}
THINGS = {  # what is changed, above the file that is looked at
    "recorded file": "grp/{}/v1/lib/file",
    "selected directory": "grp/{}/v1",
    "directory above it": "grp/{}",
    "other file": "other/{}/lib/file",
    "other directory": "other/{}/lib",
}


def test_things_removed_and_replaced_on_the_server(host: NfsHost, profile: str) -> None:
    cells = expected(profile)
    files = {}
    for number, row in enumerate(cells):
        files[row] = THINGS["other file" if row[0].startswith("other") else "recorded file"].format(number)
        path = host.served / files[row]
        path.parent.mkdir(parents=True)
        path.write_text(OLD)
    host.publish("grp/*/v*")
    host.activate("--profile", profile)
    for row, file in files.items():
        USES[row[1]](host.point / file)
    for number, (what, _) in enumerate(cells):
        thing, change = re.fullmatch(r"(.*) (removed|replaced|written into)", what).groups()  # type: ignore[union-attr]
        CHANGES[change](host.served / THINGS[thing].format(number))
    expire()

    def seen() -> dict[tuple[str, str], str]:
        return {row: stat_and_open(host.point / file, row[0].startswith("other")) for row, file in files.items()}

    first = seen()
    for row, file in files.items():
        if row[0].startswith(("recorded", "selected")):
            assert os.listdir((host.point / file).parent) == ["file"], "it is the layer's"
        elif row[0].startswith("other directory"):
            assert outcome(lambda file=file: str(os.listdir((host.point / file).parent))) == "ESTALE"  # type: ignore[misc]
    host.call("refresh", host.point)
    second = seen()
    assert {row: f"{first[row]}; {second[row]}" for row in cells} == cells


def test_what_is_held_open(host: NfsHost, version: str, profile: str) -> None:
    """A removed file is read on, or not, as on plain NFS; its directory cannot be forgotten before it is closed."""
    size = 8 << 20
    for directory in ("grp/paint/v1", "tools"):
        (host.served / directory).mkdir(parents=True)
        (host.served / directory / "big").write_bytes(os.urandom(size))
    held_by_layer = ("grp/paint/v1/big", *(() if profile == "data-only" else ("tools/big",)))
    host.publish("grp/*/v*")
    host.activate("--profile", profile)
    paths = [host.volume / held_by_layer[0], *(host.point / one for one in held_by_layer)]
    held = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        for fd in held:
            assert len(os.pread(fd, 4096, 0)) == 4096
        for directory in ("grp/paint/v1", "tools"):
            shutil.rmtree(host.served / directory)
        expire()
        expected = "4096" if version == "4.2" else "ESTALE"
        for _ in range(2):
            found = [outcome(lambda fd=fd: str(len(os.pread(fd, 4096, size // 2)))) for fd in held]  # type: ignore[misc]
            assert found == [expected] * len(held)
            host.call("refresh", host.point)
        if profile != "data-only":
            assert outcome(lambda: str(os.listdir(host.point / "tools"))) == "ESTALE", "in use"
    finally:
        for fd in held:
            os.close(fd)
    host.call("refresh", host.point)
    assert outcome(lambda: str(os.listdir(host.point / "tools"))) == "ENOENT"


@pytest.mark.parametrize("age", ["news", "settled"])
def test_following_a_pointer(host: NfsHost, version: str, age: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at a pointer that has not changed costs a GETATTR for each directory on the way; on NFS 3 one for it.

    For five minutes after news it is read as well, which on NFS 3 asks once more; NFS 4 has a delegation.
    """
    if age == "settled":
        monkeypatch.setattr(following, "_SETTLED_NS", -(10**12))
    host.release("v1", {"lib/one": OLD})
    host.publish()
    pointer = host.volume / ".mkmeta" / "sw.json"
    on_server = host.served / ".mkmeta" / "sw.json"
    on_server.parent.mkdir()
    host.call("publish", host.store, "--pointer", on_server)

    def follow() -> object:
        return host.activate("--follow", pointer, "--json", *GAP).messages[-1]["action"]

    assert follow() == "mounted"
    sent = []
    for _ in range(4):
        expire()
        with host.client.rpcs() as counter:
            assert follow() == "nothing"
        sent.append({name: count for name, count in counter.items() if count})
    expected = 2 if version == "4.2" else 3 + (age == "news")
    assert sent[1:] == [{"GETATTR": expected}] * 3, "the first look may be dearer"
    late = host.point / "grp/paint/v2/lib/two"
    assert not late.exists()
    (host.served / "tools").mkdir()
    host.call("publish", host.store, "--pointer", on_server)
    expire()
    assert follow() == "refreshed"
    host.release("v2", {"lib/two": NEW})
    host.publish()
    host.call("publish", host.store, "--pointer", on_server)
    expire()
    assert follow() == "switched"
    assert late.read_text() == NEW


def test_root_squash(connect: Connect, volume: Path, tmp_path: Path) -> None:
    """What root may not read on the server nobody reads through the mount; doctor names it."""
    private = "grp/paint/v1/lib/private"
    client = connect(export="root_squash")
    host = NfsHost(tmp_path / "host", client=client)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    host.release("v1", {"lib/one": OLD, "lib/private": "secret\n"})
    os.chown(volume / private, 1000, 1000)
    (volume / private).chmod(0o640)
    try:
        manifest = host.top / "sw.mkm"
        host.call("scan", volume, "--select", "grp/*/v*", "-o", manifest)
        host.call("build", manifest, "--store", host.store)
        host.activate("--other-root")
        assert as_user(1000, client.where / private).stdout == "secret\n", "its owner reads it on plain NFS"
        assert (host.point / private).stat().st_mode & 0o777 == 0o640
        assert outcome((host.point / private).read_text) == "EACCES"
        assert "Permission denied" in as_user(1000, host.point / private).stderr
        assert as_user(1000, host.point / "grp/paint/v1/lib/one").stdout == OLD
        (found,) = [one for one in doctor(host) if one["id"] == "lower-readable"]
        assert found["level"] == "warning" and "root_squash" in str(found["message"])
        assert str(found["path"]) == str(client.where / private)
    finally:
        host.unmount_all()


def doctor(host: NfsHost) -> list[dict[str, object]]:
    """The findings of `mkmeta doctor`."""
    return host.call("doctor", "--lower", host.volume, "--store", host.store, "--json").messages[:-1]


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        pytest.param("", {"nfs-cto": "note", "nfs-attribute-cache": "note"}, marks=pytest.mark.oldest),
        ("nocto,actimeo=3600", {"nfs-pointer": "note"}),
        ("noac", {"nfs-cto": "note", "nfs-attribute-cache": "warning"}),
        (
            "actimeo=2,lookupcache=none",
            {"nfs-cto": "note", "nfs-attribute-cache": "warning", "nfs-lookupcache": "warning"},
        ),
        (
            "soft,lookupcache=positive",
            {"nfs-cto": "note", "nfs-attribute-cache": "note", "nfs-soft": "warning", "nfs-lookupcache": "note"},
        ),
    ],
)
def test_doctor(
    connect: Connect, volume: Path, tmp_path: Path, version: str, options: str, levels: dict[str, str]
) -> None:
    """It understands what real clients write into the mount table."""
    host = NfsHost(tmp_path / "host", client=connect(options))
    host.release("v1", {"lib/one": OLD})
    found = doctor(host)
    of_nfs = {str(one["id"]): one for one in found if str(one["id"]).startswith("nfs-")}
    worse = {
        name: one["level"]
        for name, one in of_nfs.items()
        if one["level"] != "ok" and name not in ("nfs-version", "nfs-export")
    }
    assert worse == levels
    assert f"NFSv{version}" in str(of_nfs["nfs-version"]["message"])
    (mountable,) = [one for one in found if one["id"] == "lower-mount"]
    assert mountable["level"] == "ok"
    assert ("nested" in str(mountable["message"])) == (AUTO == "nested")
    assert not [one for one in found if one["level"] == "failure"]
