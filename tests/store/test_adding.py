"""Adding generations: what becomes of them, when nothing is to be done, two at once, and no room."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mkmeta.build import BuildOptions
from mkmeta.digest import ObjectId, verity_digest
from mkmeta.errors import BuildError, FormatError, IdMismatchError, LockedError, StoreError
from mkmeta.manifest.object_file import ObjectFile
from mkmeta.model import DigestName, DirectoryKind, RegularFile
from mkmeta.plan import Plan
from mkmeta.sinks.directory import sink
from mkmeta.store import adding
from mkmeta.store.adding import add
from mkmeta.store.store import Store
from tests.conftest import Mount
from tests.layer.layers import open_reader, snapshot
from tests.layer.manifests import manifest_from
from tests.store.processes import fork, wait
from tests.store.stores import LARGE, ONE, STORE_NAMES, THREE, TWO, generations, id_of, ignore, names, new_store, put
from tests.vectors.trees import MTIME, Tree, regular, write_tree

pytestmark = pytest.mark.needs("trusted xattrs")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Store:
    return new_store(path)


def test_the_newest_manifest_is_not_built_twice(store: Store) -> None:
    first = put(store, ONE)
    assert first.result is not None
    assert first.result.manifest_id.hex() == id_of(ONE)
    again = put(store, ONE)
    assert (again.generation, again.result) == (first.generation, None)
    put(store, TWO)
    third = put(store, ONE)  # it is not the newest any more
    assert third.generation.number == 3
    assert [generation.number for generation in store.generations()] == [1, 2, 3]


def test_what_is_there_becomes_current_again(store: Store) -> None:
    first, second = put(store, ONE).generation, put(store, TWO).generation
    store.set_current(first)
    assert put(store, TWO, make_current=False).result is None
    assert store.current() == first
    assert put(store, TWO).result is None
    assert store.current() == second


@pytest.mark.parametrize(
    "plan", [Plan(prefix=b"below"), Plan(userxattr=True), Plan(verity=False)], ids=["prefix", "userxattr", "verity"]
)
def test_built_otherwise_is_not_alike(store: Store, plan: Plan) -> None:
    data = _with_verity()
    assert put(store, data).generation.about().verity
    assert put(store, data, BuildOptions(plan=plan)).generation.number == 2
    assert put(store, data, BuildOptions(plan=plan)).result is None
    if not plan.verity:  # and a manifest without digests is the same with and without
        assert put(store, ONE).generation.number == 3
        assert put(store, ONE, BuildOptions(plan=plan)).result is None


def _with_verity() -> bytes:
    file = RegularFile(mode=0o100644, uid=0, gid=0, mtime_ns=MTIME, size=1, verity=verity_digest(b"x"))
    stream = io.BytesIO()
    write_tree(stream, Tree(children={b"f": file}, kind=DirectoryKind.MERGE), digests=(DigestName.VERITY,))
    return stream.getvalue()


def test_what_was_written_to_is_built_again(store: Store) -> None:
    put(store, ONE).generation.mark_written()
    assert put(store, ONE).generation.number == 2


def test_numbers_grow_also_when_generations_are_gone(store: Store, path: Path) -> None:
    put(store, ONE)
    second = put(store, TWO).generation
    shutil.rmtree(second.path)
    with pytest.raises(StoreError):
        store.current()
    assert put(store, THREE).generation.number == 3
    assert store.current() == store.generation(3)
    (path / "current").unlink()
    (path / "current").symlink_to("odd")
    assert put(store, ONE).generation.number == 4


def test_numbers_end(store: Store) -> None:
    assert put(store, ONE, number=2**53 - 1).generation.number == 2**53 - 1
    for number in (None, 0, 2**53):
        with pytest.raises(StoreError, match="generation numbers end at 9007199254740991"):
            put(store, TWO, number=number)
    assert len(generations(store.path)) == 1


def test_the_number_of_a_pointer(store: Store) -> None:
    assert put(store, TWO, number=7).generation.number == 7
    again = put(store, TWO, number=7)
    assert (again.generation.number, again.result) == (7, None)
    older = put(store, ONE, number=5)  # the publisher went back
    assert older.generation.number == 5
    assert store.current() == older.generation
    assert put(store, TWO, number=7).result is None
    assert put(store, TWO, number=8).generation.number == 8  # the same tree, published anew
    with pytest.raises(
        StoreError, match=f"generation 7 is manifest {id_of(TWO)[:12]}, not {id_of(THREE)[:12]}"
    ) as caught:
        put(store, THREE, number=7)
    assert "store and pointer disagree" in caught.value.message
    assert caught.value.hint
    with pytest.raises(StoreError, match="generation 7 was built with other options"):
        put(store, TWO, BuildOptions(plan=Plan(userxattr=True)), number=7)
    store.generation(7).mark_written()
    with pytest.raises(StoreError, match="generation 7 was mounted writable"):
        put(store, TWO, number=7)
    assert [generation.number for generation in store.generations()] == [5, 7, 8]


def test_another_manifest_is_refused_before_anything_is_written(store: Store, path: Path) -> None:
    before = snapshot(path)
    with pytest.raises(IdMismatchError):
        put(store, ONE, BuildOptions(expect_id=ObjectId(bytes(32))))
    assert snapshot(path) == before
    put(store, ONE)
    with pytest.raises(IdMismatchError):  # also when there is nothing to build
        put(store, ONE, BuildOptions(expect_id=ObjectId(bytes(32))))
    assert put(store, ONE, BuildOptions(expect_id=ObjectId(bytes.fromhex(id_of(ONE))))).result is None


def test_a_manifest_that_changes_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is what was built, whatever becomes of the file that was read."""

    def other(_self: ObjectFile, out: object) -> None:
        out.write(TWO)  # type: ignore[attr-defined]

    def cut(_self: ObjectFile, out: object) -> None:
        out.write(ONE[:-1])  # type: ignore[attr-defined]

    before = snapshot(Path(os.fsdecode(store.path)) / "generations")
    monkeypatch.setattr(ObjectFile, "copy_to", other)
    with pytest.raises(IdMismatchError):
        put(store, ONE)
    monkeypatch.setattr(ObjectFile, "copy_to", cut)
    with pytest.raises(FormatError):
        put(store, ONE)
    assert snapshot(Path(os.fsdecode(store.path)) / "generations").keys() == before.keys()


def test_leftovers(store: Store, path: Path) -> None:
    """Those of killed builds go, those of living ones and what only looks alike stay."""
    alive, dead = path / "generations/.new-00000001", path / "generations/.new-00000002"
    foreign = [path / "generations" / name for name in (".new-1", ".new-0000000g", ".new", "new-00000001")]
    for directory in (alive, dead, *foreign):
        (directory / "layer/sub").mkdir(parents=True)
        (directory / "layer/link").symlink_to(path)
    (path / "generations/.new-00000003").write_text("a file")
    fd = os.open(alive, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    added = put(store, ONE)
    os.close(fd)
    there = {
        alive.name,
        *(directory.name for directory in foreign),
        ".new-00000003",
        os.fsdecode(added.generation.name),
    }
    assert set(generations(path)) == there
    assert added.leftovers == (os.fsencode(path / "generations/.new-00000003"),)
    assert set(names(path)) == STORE_NAMES


def test_a_mode_of_the_store_does_not_reach_the_layer(store: Store, path: Path) -> None:
    os.chmod(path / "generations", 0o2775)
    generation = put(store, ONE).generation
    assert os.stat(generation.path).st_mode == 0o040755
    assert os.stat(generation.layer).st_mode == 0o040755


# --- two at once ---


def slow_build(store: Store, data: bytes) -> tuple[int, Callable[[], None]]:
    """A process that builds, halfway, and the function that lets it go on to its end."""
    ready, theirs = os.pipe()
    goes_on, ours = os.pipe()

    def progress(_done: int, _total: int) -> None:
        os.write(theirs, b"x")
        os.read(goes_on, 1)

    def run() -> int:
        with open_reader(data) as reader:
            add(
                store,
                reader,
                BuildOptions(),
                number=None,
                make_current=True,
                wait=0,
                note=ignore,
                progress=progress,
            )
        return 0

    pid = fork(run)
    os.close(theirs)
    assert os.read(ready, 1) == b"x"

    def release() -> None:
        os.write(ours, bytes(100))  # more often than progress is reported
        assert wait(pid) == 0
        for fd in (ready, goes_on, ours):
            os.close(fd)

    return pid, release


@pytest.mark.parametrize(("data", "number"), [(ONE, 1), (TWO, 2)], ids=["the same manifest", "another one"])
def test_a_second_builder_waits(store: Store, data: bytes, number: int) -> None:
    pid, release = slow_build(store, ONE)
    notes, theirs = os.pipe()

    def run() -> int:
        with open_reader(data) as reader:
            added = add(
                store,
                reader,
                BuildOptions(),
                number=None,
                make_current=True,
                wait=60,
                note=lambda text: ignore(os.write(theirs, text.encode())),
            )
        return 0 if added.generation.number == number and (added.result is None) == (number == 1) else 1

    second = fork(run)
    os.close(theirs)
    with open(notes, "rb", buffering=0) as stream:
        assert stream.read(100) == f"waiting for process {pid} (mkmeta build)".encode()
        release()
        assert wait(second) == 0
        assert stream.read() == b""
    assert [generation.number for generation in store.generations()] == list(range(1, number + 1))
    assert store.current() == store.generation(number)


def test_a_second_builder_gives_up(store: Store) -> None:
    pid, release = slow_build(store, ONE)
    with pytest.raises(LockedError, match=rf"in use by process {pid} \(mkmeta build\)"):
        put(store, TWO)
    with store.lock("activate", wait=0, note=ignore):  # the build does not hold this one
        pass
    release()
    assert len(generations(store.path)) == 1


def test_a_build_that_is_done_waits_for_whoever_mounts(store: Store) -> None:
    """Its own --wait was for another build; giving up now would waste this one."""
    with store.lock("activate", wait=0, note=ignore):
        pid = fork(lambda: put(store, ONE, wait=0).generation.number)
        while not list(Path(os.fsdecode(store.path)).glob("generations/.new-*/generation.json")):
            time.sleep(0.001)
        time.sleep(0.1)
        assert store.generations() == []
    assert wait(pid) == 1
    assert store.current() == store.generation(1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_clean_up(path: Path, number: signal.Signals) -> None:
    (path.parent / "manifest").write_bytes(LARGE)
    command = [sys.executable, "-m", "mkmeta", "build", f"{path.parent}/manifest", "--store", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and not any(map(names, (path / "generations").glob(".new-*"))):
        time.sleep(0.001)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else 128 + number), errors
    assert generations(path) == []
    assert names(path) == ["build.lock", "generations", "store.json"]
    assert b"Traceback" not in errors


# --- no room ---


@pytest.mark.needs("root")
@pytest.mark.parametrize("resource", ["inodes", "pages"])
def test_whatever_room_there_is_the_store_is_as_before_or_has_a_generation(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, resource: str
) -> None:
    """Each amount of room that is just too small, one by one."""
    monkeypatch.setattr(sink, "_check_room", lambda *_: None)
    place = mount("tmpfs", "nr_inodes=200,size=256k")
    store = new_store(place / "store")
    put(store, ONE)
    filler = place / "filler"
    filler.mkdir()
    outcomes = []
    page = os.statvfs(place).f_bsize
    data = manifest_from(Tree(children={b"f%d" % number: regular(number) for number in range(5)}))
    for room in range(30):
        counts = os.statvfs(place)
        if resource == "inodes":
            for number in range(counts.f_ffree - room):
                (filler / str(number)).touch()
        else:
            (filler / "pages").write_bytes(bytes((counts.f_bfree - room) * page))
        before = tree(place / "store")
        try:
            put(store, data)
        except (BuildError, StoreError) as error:
            assert "no space left on device" in str(error)
            assert b".new-" not in (error.path or b"")
            assert tree(place / "store") == before
            outcomes.append(False)
        else:
            assert generations(store.path) == sorted([*before[1], os.fsdecode(store.generation(2).name)])
            assert store.current() == store.generation(2)
            outcomes.append(True)
        for path in filler.iterdir():
            path.unlink()
        if outcomes[-1]:
            break
    assert outcomes.count(True) == 1
    assert len(outcomes) > 3


def tree(path: Path) -> tuple[list[str], list[str], str]:
    """What must not change: names, and `current`."""
    return names(path), generations(path), os.readlink(path / "current")


@pytest.mark.needs("root")
def test_a_store_that_cannot_be_made_leaves_nothing(mount: Mount) -> None:
    place = mount("tmpfs", "nr_inodes=3")
    with pytest.raises(StoreError, match="cannot be made: no space left on device"):
        new_store(place / "store")
    assert names(place) == []


@pytest.mark.needs("root")
def test_a_read_only_store(mount: Mount, path: Path) -> None:
    put(new_store(path), ONE)
    place = mount("none", "bind", path)
    os.sync()
    subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
    store = Store.open(os.fsencode(place))
    with store.lock("status", wait=0, note=ignore):
        assert store.current() == store.generation(1)
    assert put(store, ONE).result is None
    with pytest.raises(StoreError, match="cannot be added to: read-only file system"):
        put(store, TWO)


def test_a_failed_rename_leaves_the_store_as_it_was(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **_fds: object) -> None:
        raise OSError(5, "Input/output error")

    put(store, ONE)
    before = tree(Path(os.fsdecode(store.path)))
    monkeypatch.setattr(adding, "renameat2", refuse)
    with pytest.raises(StoreError, match="cannot be added to: input/output error"):
        put(store, TWO)
    assert tree(Path(os.fsdecode(store.path))) == before
    assert Store.open(store.path).current() == store.generation(1)
