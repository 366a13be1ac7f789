"""The pointer: what it says, what publishing refuses and removes, and what a reader makes of hostile bytes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mkmeta.errors import LockedError, MkmetaError, StoreError, UsageError
from mkmeta.manifest.reader import ManifestReader
from mkmeta.store import pointer as pointer_module
from mkmeta.store.lock import held
from mkmeta.store.pointer import Pointer, Published, publish, read_pointer
from mkmeta.store.store import Store
from tests.store.processes import fork, run_killed, wait
from tests.store.stores import LARGE, ONE, THREE, TWO, id_of, ignore, new_store, put

pytestmark = pytest.mark.needs("trusted xattrs")

PAGE = Path(__file__).parents[2] / "formats" / "store.md"
NAMES = {
    number: f"sw.json-{number:06}-{id_of(data)[:12]}.mkm" for number, data in enumerate((ONE, TWO, THREE, LARGE), 1)
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with four generations; the fourth is current."""
    store = new_store(tmp_path / "store")
    for data in (ONE, TWO, THREE, LARGE):
        put(store, data)
    return store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume" / "sw.json"


def announce(store: Store, path: Path, number: int, *, rollback: bool = False) -> Pointer:
    """Publishes a generation, when what is there was published two hours ago."""
    for manifest in path.parent.glob("*.mkm"):
        if manifest.is_file() and not manifest.is_symlink():
            os.utime(manifest, (time.time() - 7200,) * 2)
    return publish_to(store, path, number, rollback=rollback).pointer


def publish_to(store: Store, path: Path | bytes, number: int, *, rollback: bool = False, wait: float = 60) -> Published:
    """Publishes a generation."""
    return publish(
        store, os.fsencode(path), store.generation(number), rollback=rollback, wait=wait, note=lambda _: None
    )


def names(directory: Path) -> list[str]:
    """What is in a pointer's directory, but for the lock of publishers."""
    return sorted(path.name for path in directory.iterdir() if not path.name.endswith(".lock"))


def test_the_file_is_that_of_the_page(store: Store, path: Path) -> None:
    pointer = announce(store, path, 1)
    found = json.loads(path.read_text())
    table = PAGE.read_text().partition("## 5")[2].partition("## Changes")[0]
    keys = {key for row in table.splitlines() if row.startswith("| `") for key in row.split("|")[1].split("`")[1::2]}
    assert set(found) == keys
    assert re.fullmatch(r"[0-9a-f]{16}", found.pop("nonce"))
    published = found.pop("published")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", published)
    assert found == {
        "format": "mkmeta-pointer",
        "version": 1,
        "serial": 1,
        "generation": 1,
        "id": id_of(ONE),
        "manifest": NAMES[1],
        "rollback": False,
    }
    assert read_pointer(os.fsencode(path)) == pointer
    assert (path.parent / NAMES[1]).read_bytes() == ONE
    assert names(path.parent) == ["sw.json", NAMES[1]]


def test_a_name_that_is_not_text(store: Store, path: Path) -> None:
    odd = path.parent / "sw\udcff\n"
    pointer = announce(store, odd, 1)
    assert pointer.manifest == b"sw\xff\n-" + NAMES[1].encode().removeprefix(b"sw.json-")
    assert read_pointer(os.fsencode(odd)) == pointer
    assert Path(os.fsdecode(os.path.join(os.fsencode(path.parent), pointer.manifest))).read_bytes() == ONE
    announce(store, odd, 2)
    announce(store, odd, 3)
    assert len(names(path.parent)) == 3


def test_serial_grows_and_old_manifests_go(store: Store, path: Path) -> None:
    foreign = ["other.json-000001-0123456789ab.mkm", "sw.json-1-0123456789ab.mkm", "sw.json-000001-0123456789ab.txt"]
    for name in foreign:
        (path.parent / name).touch()
    there = []
    for serial, number in enumerate((1, 2, 2, 3, 4), 1):
        assert announce(store, path, number).serial == serial
        there.append(sorted(set(names(path.parent)) - {"sw.json", *foreign}))
    assert there == [
        [NAMES[1]],
        [NAMES[1], NAMES[2]],
        [NAMES[2]],
        [NAMES[2], NAMES[3]],
        [NAMES[3], NAMES[4]],
    ]
    assert set(foreign) <= set(names(path.parent))


def test_a_manifest_that_is_there_stays_and_a_damaged_one_does_not(store: Store, path: Path) -> None:
    announce(store, path, 1)
    copy = path.parent / NAMES[1]
    before = copy.stat().st_ino
    announce(store, path, 1)
    assert copy.stat().st_ino == before
    for damage in (ONE[:-1], ONE[:-1] + b"x", ONE + b"x"):
        copy.write_bytes(damage)
        announce(store, path, 1)
        assert copy.read_bytes() == ONE


def test_going_back_takes_a_word(store: Store, path: Path) -> None:
    announce(store, path, 3)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="names generation 3, which is newer than 2") as caught:
        announce(store, path, 2)
    assert "--rollback" in (caught.value.hint or "")
    assert path.read_bytes() == before
    assert announce(store, path, 2, rollback=True).rollback


def test_going_back_is_said_until_the_newest_is_published(store: Store, path: Path) -> None:
    """A client that was asleep on generation 4 must find out whenever it looks."""
    announce(store, path, 4)
    said = [announce(store, path, number, rollback=number == 2).rollback for number in (2, 2, 3, 3, 4)]
    assert said == [True, True, True, True, False]
    assert not announce(store, path, put(store, ONE).generation.number).rollback


def test_one_number_is_one_manifest(store: Store, path: Path, tmp_path: Path) -> None:
    announce(store, path, 2)
    other = new_store(tmp_path / "other")
    put(other, THREE, number=2)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"names another manifest as generation 2, {id_of(TWO)[:12]}") as caught:
        announce(other, path, 2, rollback=True)
    assert caught.value.hint
    assert path.read_bytes() == before
    assert names(path.parent) == ["sw.json", NAMES[2]]


def test_a_store_that_is_damaged_is_not_published(store: Store, path: Path) -> None:
    Path(os.fsdecode(store.generation(1).manifest)).write_bytes(TWO)
    with pytest.raises(StoreError, match="is not the manifest of this generation"):
        announce(store, path, 1)
    assert names(path.parent) == []


def test_the_directory_of_a_pointer_is_made_on_a_volume_that_is_there(store: Store, path: Path) -> None:
    """Where a volume is not mounted just now, its mount point is an empty directory."""
    volume = path.parent / "volume"
    volume.mkdir()
    with pytest.raises(StoreError, match="new directory of an empty one"):
        publish_to(store, volume / ".mkmeta" / "sw.json", 1)
    assert names(volume) == []
    (volume / "grp").mkdir()
    publish_to(store, volume / ".mkmeta" / "sw.json", 1)
    assert read_pointer(os.fsencode(volume / ".mkmeta" / "sw.json")).generation == 1


def test_places_for_a_pointer(store: Store, path: Path) -> None:
    path.symlink_to("elsewhere")
    for where, kind, message in (
        (path, StoreError, "is a symbolic link"),
        (path.parent, UsageError, "is a directory"),
        (path.parent / "absent" / "absent" / "sw.json", StoreError, "the directory it goes into does not exist"),
        (path.parent / ("x" * 161), UsageError, "at most 160 bytes"),
    ):
        with pytest.raises(kind, match=message) as caught:
            publish_to(store, where, 1)
        assert caught.value.path == os.fsencode(where)
    longest = path.parent / ("x" * 160)
    publish_to(store, longest, 1)
    assert read_pointer(os.fsencode(longest)).generation == 1


def test_a_pointer_without_a_directory(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    publish_to(store, b"sw.json", 1)
    assert names(path.parent) == ["sw.json", NAMES[1]]


def test_readable_at_every_instant(store: Store, path: Path) -> None:
    """And the manifest it names is there, as long as no second publish came between."""
    announce(store, path, 1)

    def run() -> int:
        for number in range(200):
            announce(store, path, 1 + number % 3, rollback=True)
        return 0

    pid = fork(run)
    seen = [0]
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        pointer = read_pointer(os.fsencode(path))
        assert pointer.serial >= seen[-1]
        seen.append(pointer.serial)
        try:
            with ManifestReader.open(os.path.join(os.fsencode(path.parent), pointer.manifest)) as reader:
                assert reader.id == pointer.id
        except MkmetaError:
            assert read_pointer(os.fsencode(path)).serial > pointer.serial + 1
    assert len(set(seen)) > 10
    assert read_pointer(os.fsencode(path)).serial == 201


def test_killed_before_each_step(store: Store, path: Path) -> None:
    announce(store, path, 1)
    announce(store, path, 2)
    for step in range(500):

        def run() -> int:
            announce(store, path, 3, rollback=True)
            return 0

        killed = run_killed(run, step)
        pointer = read_pointer(os.fsencode(path))
        with ManifestReader.open(os.path.join(os.fsencode(path.parent), pointer.manifest)) as reader:
            assert reader.id == pointer.id
        if not killed:
            break
        announce(store, path, 2, rollback=True)
        announce(store, path, 2)
        assert names(path.parent) == ["sw.json", NAMES[2]]
    assert 15 < step < 499


def test_a_manifest_being_written_stays(store: Store, path: Path) -> None:
    """By another publisher, from another host: its lock says so."""
    announce(store, path, 1)
    unfinished = path.parent / f".{NAMES[2]}.mkmeta-01234567"
    ready, theirs = os.pipe()

    def run() -> int:
        with unfinished.open("wb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            os.write(theirs, b"x")
            time.sleep(60)
        return 0

    pid = fork(run)
    os.read(ready, 1)
    announce(store, path, 1)
    assert unfinished.exists()
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    announce(store, path, 1)
    assert not unfinished.exists()
    os.close(ready)
    os.close(theirs)


# --- reading ---

GOOD: dict[str, object] = {
    "format": "mkmeta-pointer",
    "version": 1,
    "serial": 3,
    "generation": 7,
    "id": "ab" * 32,
    "published": "2026-01-31T12:00:00Z",
    "manifest": "sw.json-000007-abababababab.mkm",
    "rollback": False,
}
TEXT = json.dumps(GOOD)


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in GOOD.items() if name != key}


NO_SERIALS: list[object] = [0, -1, 2**53, 1.0, True, "3", None, [3]]
NO_FLAGS: list[object] = [0, 1, "true", None]
NO_IDS: list[object] = ["", "AB" * 32, "ab" * 31, "ab" * 32 + "\n", 5, None]
NO_NUMBERS: list[object] = [0, 2**53, 10**30, False, {}]
NO_TIMES: list[object] = ["", 5, "2026-02-30T12:00:00Z", "2026-01-31T12:00:00Z\n", "٢٠٢٦-01-31T12:00:00Z"]
NO_NAMES = ["", ".", "..", "/etc/passwd", "../x", "a/b", "x/", "x" * 256, "é" * 128]
NO_PATHS: list[object] = [5, None, [], "a\0b", "\ud800"]

HOSTILE: list[tuple[object, str]] = [
    (b"", "not the JSON it should be"),
    (b"\xff\xfe", "not the JSON it should be"),
    (TEXT.encode("utf-16"), "not the JSON it should be"),
    (b"\xef\xbb\xbf" + TEXT.encode(), "not the JSON it should be"),
    (TEXT.encode()[:-1], "not the JSON it should be"),
    (TEXT.encode() * 2, "not the JSON it should be"),
    (TEXT.encode().replace(b"serial", b"ser\xc3ial"), "not the JSON it should be"),
    (TEXT.replace('"serial": 3', '"serial": 3, "serial": 4').encode(), "'serial' occurs twice"),
    (TEXT.replace('"serial": 3', '"x": {"y": 1, "y": 1}, "serial": 3').encode(), "'y' occurs twice"),
    (TEXT.replace('"serial": 3', '"\\ud800": 1, "\\ud800": 1').encode(), "occurs twice"),
    (TEXT.replace("7,", "NaN,").encode(), "NaN is not JSON"),
    (TEXT.replace("7,", "9" * 5000 + ",").encode(), "not the JSON it should be"),
    (b"[" * 60000, "not the JSON it should be"),
    (b'{"a":' * 10000, "not the JSON it should be"),
    (b"[1]", "not a JSON object"),
    (b"null", "not a JSON object"),
    (TEXT.encode() + b" " * (64 << 10), "more than 65536 bytes"),
    (GOOD | {"format": "mkmeta-store"}, "is no mkmeta-pointer file"),
    (without("format"), "is no mkmeta-pointer file"),
    (GOOD | {"version": 2}, "has version 2"),
    (GOOD | {"version": 0}, "'version' is not an integer"),
    (GOOD | {"version": "1"}, "'version' is not an integer"),
    *((GOOD | {"serial": value}, "'serial' is not an integer") for value in NO_SERIALS),
    *((GOOD | {"generation": value}, "'generation' is not an integer") for value in NO_NUMBERS),
    *((GOOD | {"id": value}, "'id' is not an ID") for value in NO_IDS),
    *((GOOD | {"published": value}, "'published' is not a time") for value in NO_TIMES),
    *((GOOD | {"manifest": value}, "'manifest' is not the name of a file") for value in NO_NAMES),
    *((GOOD | {"manifest": value}, "'manifest' is not a path") for value in NO_PATHS),
    (GOOD | {"manifest_b64": "Li4="}, "'manifest' is not the name of a file"),  # ..
    (GOOD | {"manifest_b64": "L2V0Yw=="}, "'manifest' is not the name of a file"),  # /etc
    (GOOD | {"manifest_b64": "*"}, "'manifest' is not a path"),
    (GOOD | {"manifest_b64": None}, "'manifest' is not a path"),
    *((GOOD | {"rollback": value}, "'rollback' is neither true nor false") for value in NO_FLAGS),
    *((without(key), f"'{key}' is missing") for key in GOOD if key not in ("format",)),
]


@pytest.mark.parametrize(("content", "message"), HOSTILE)
def test_hostile_bytes(path: Path, content: object, message: str) -> None:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(StoreError, match=message) as caught:
        read_pointer(os.fsencode(path))
    assert caught.value.path == os.fsencode(path)
    assert caught.value.hint
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_good_bytes(path: Path) -> None:
    path.write_text(json.dumps(GOOD | {"later": {"deep": [1.5, None]}, "manifest_b64": "/w=="}))
    assert read_pointer(os.fsencode(path)) == Pointer(
        serial=3,
        generation=7,
        id=read_pointer(os.fsencode(path)).id,
        published="2026-01-31T12:00:00Z",
        manifest=b"\xff",
        rollback=False,
    )


def absent(_path: Path) -> None:
    pass


def loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (absent, "there is no such pointer"),
        (Path.mkdir, "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (loop, "not a regular file"),
    ],
)
def test_what_is_no_file(path: Path, make: Callable[[Path], None], message: str) -> None:
    make(path)
    with pytest.raises(StoreError, match=message) as caught:
        read_pointer(os.fsencode(path))
    assert caught.value.path == os.fsencode(path)


def test_a_damaged_pointer_is_not_replaced(store: Store, path: Path) -> None:
    """Its serial would be lost; a person decides."""
    path.write_text("{")
    with pytest.raises(StoreError, match="damaged") as caught:
        announce(store, path, 1)
    assert "remove it" in (caught.value.hint or "")
    assert names(path.parent) == ["sw.json"]


def test_a_manifest_that_cannot_be_removed_is_named(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(store, path, 1)
    announce(store, path, 2)

    def refuse(_path: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "unlink", refuse)
    os.utime(path.parent / NAMES[1], (time.time() - 7200,) * 2)
    assert publish_to(store, path, 3).stubborn == ((NAMES[1].encode(), "permission denied"),)
    monkeypatch.undo()
    assert read_pointer(os.fsencode(path)).generation == 3


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
@pytest.mark.parametrize("at", ["pointer", "manifest"])
def test_nothing_that_stands_beside_it_is_written_through(store: Store, path: Path, kind: str, at: str) -> None:
    """Whoever can write to the directory must not make the publisher write elsewhere, or wait for ever."""
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.write_text("precious")
    place = path if at == "pointer" else path.parent / NAMES[1]
    if kind == "link":
        place.symlink_to(elsewhere)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    if at == "pointer" or kind == "directory":
        with pytest.raises(MkmetaError):
            announce(store, path, 1)
        assert place.is_symlink() or not place.is_file()
    else:
        announce(store, path, 1)
        assert id_of(place.read_bytes()) == id_of(ONE)
        assert not place.is_symlink()
    assert elsewhere.read_text() == "precious"
    assert [name for name in names(path.parent) if name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "device", "huge"])
def test_what_others_put_beside_it_is_neither_opened_nor_removed(store: Store, path: Path, kind: str) -> None:
    """At the name of an old manifest: a link to what is precious; what hangs, or does something when it is opened."""
    announce(store, path, 1)
    place = path.parent / NAMES[2]
    if kind == "link":
        place.symlink_to("/etc/passwd")
    elif kind == "directory":
        place.mkdir()
    elif kind == "huge":
        place.touch()
        os.truncate(place, 1 << 40)
        os.utime(place, (0, 0))
    elif kind == "device" and os.geteuid() == 0:
        os.mknod(place, 0o020600, os.makedev(10, 1))
    else:
        os.mkfifo(place)
    done = publish_to(store, path, 3)
    assert done.pointer.serial == 2
    assert done.stubborn == (() if kind == "huge" else ((NAMES[2].encode(), "not a regular file"),))
    assert os.path.lexists(place) == (kind != "huge")


def test_a_manifest_that_another_publisher_is_about_to_announce_stays(store: Store, path: Path) -> None:
    """Where the filesystem has no locks: it is young, or has just been made so."""
    announce(store, path, 1)
    (path.parent / NAMES[2]).write_bytes(TWO)
    publish_to(store, path, 3)
    assert (path.parent / NAMES[2]).exists()
    os.utime(path.parent / NAMES[1], (0, 0))
    publish_to(store, path, 1, rollback=True)
    assert (path.parent / NAMES[1]).stat().st_mtime > 0


def test_two_publishers_with_stores_of_their_own(store: Store, path: Path, tmp_path: Path) -> None:
    """The second waits, and then finds that the number is taken."""
    other = new_store(tmp_path / "other")
    for data in (ONE, THREE):
        put(other, data)
    announce(store, path, 1)
    lock = held(os.fsencode(path.parent / ".sw.json.lock"), "publish", wait=0, note=ignore)
    with lock, pytest.raises(LockedError, match="mkmeta publish"):
        publish_to(store, path, 2, wait=0)
    publish_to(store, path, 2)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="names another manifest as generation 2"):
        publish_to(other, path, 2)
    assert path.read_bytes() == before


def test_a_pointer_that_changes_while_one_publishes(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks: somebody else was faster, and what he said stays."""
    announce(store, path, 1)

    @contextlib.contextmanager
    def no_locks(*_: object, **__: object) -> Iterator[int]:
        raise StoreError("cannot be locked")
        yield 0

    real = pointer_module._copy_manifest

    def copy(found: pointer_module._Manifest, where: bytes) -> None:
        real(found, where)
        if found.number == 2:
            publish_to(store, path, 3)

    monkeypatch.setattr(pointer_module, "held", no_locks)
    monkeypatch.setattr(pointer_module, "_copy_manifest", copy)
    with pytest.raises(StoreError, match="somebody else published meanwhile"):
        publish_to(store, path, 2)
    assert read_pointer(os.fsencode(path)).generation == 3
    assert names(path.parent) == ["sw.json", *sorted(NAMES[number] for number in (1, 2, 3))]


def test_no_two_pointers_are_alike(store: Store, path: Path) -> None:
    """Removed and published again, in the same second: clients must see that."""
    found = set()
    for _ in range(5):
        announce(store, path, 1)
        found.add(path.read_bytes())
        path.unlink()
    assert len(found) == 5


def test_a_reader_follows_no_link(store: Store, path: Path) -> None:
    announce(store, path, 1)
    (path.parent / "link").symlink_to(path)
    with pytest.raises(StoreError, match="not a regular file"):
        read_pointer(os.fsencode(path.parent / "link"))
