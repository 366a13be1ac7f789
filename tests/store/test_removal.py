"""Removing generations: retired, then removed at leisure, by several and by killed processes."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from mkmeta.errors import StoreError
from mkmeta.store.removal import remove_gone, remove_unfinished, retire
from mkmeta.store.store import Store
from tests.conftest import Mount
from tests.store.processes import fork, run_killed, wait
from tests.store.stores import LARGE, ONE, THREE, TWO, generations, ignore, new_store, put

pytestmark = pytest.mark.needs("trusted xattrs")

LARGE_ENTRIES = 60 * 51


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


def gone(store: Store, data: bytes, number: int) -> bytes:
    """Adds a generation and retires it."""
    generation = put(store, data, number=number, make_current=False).generation
    with store.lock("gc", wait=0, note=ignore):
        return retire(store, generation)


def count_below(top: Path) -> int:
    return sum(len(directories) + len(files) for _, directories, files in os.walk(top))


def test_retire(store: Store) -> None:
    first, second = put(store, ONE).generation, put(store, TWO).generation
    with pytest.raises(StoreError, match="generation 2 is current"):
        retire(store, second)
    name = retire(store, first)
    assert name.startswith(b".gone-" + first.name + b"-")
    assert generations(store.path) == sorted([os.fsdecode(name), os.fsdecode(second.name)])
    assert store.generations() == [second]
    with pytest.raises(StoreError, match="cannot be removed: no such file"):
        retire(store, first)


def test_what_is_gone_is_removed_and_nothing_else(store: Store, tmp_path: Path) -> None:
    kept = put(store, ONE).generation
    gone(store, LARGE, 7)
    gone(store, TWO, 8)
    place = tmp_path / "store/generations"
    foreign = [".gone", ".gone-000001-0123456789ab", ".gone-notes", ".new-00000001"]
    for name in foreign:
        (place / name).mkdir()
    seen: list[int] = []
    remove_gone(store, pace=1, progress=seen.append)
    assert generations(store.path) == sorted([*foreign, os.fsdecode(kept.name)])
    assert seen[0] == 1000
    assert seen == sorted(seen)
    assert seen[-1] == LARGE_ENTRIES + 3 + 2 * 5  # five for each generation, and the small layer's three
    remove_gone(store, pace=0.5, progress=seen.append)  # nothing left
    assert seen[-1] == 0
    assert remove_unfinished(store) == []
    assert generations(store.path) == sorted([*foreign[:-1], os.fsdecode(kept.name)])


def test_pace(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    gone(store, LARGE, 1)
    now = [0.0]
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    def progress(_entries: int) -> None:
        now[0] += 2  # the work of a thousand entries

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    remove_gone(store, pace=0.25, progress=progress)
    assert slept == [6, 6, 6]


@pytest.mark.parametrize("pace", [0, -1, 1.1, float("nan")])
def test_a_pace_that_means_nothing(store: Store, pace: float) -> None:
    with pytest.raises(ValueError, match="pace"):
        remove_gone(store, pace=pace, progress=ignore)


def test_killed_before_each_step(store: Store) -> None:
    put(store, TWO)
    for step in range(200):
        gone(store, ONE, 100 + step)

        def run() -> int:
            remove_gone(store, pace=1, progress=ignore)
            return 0

        killed = run_killed(run, step)
        assert [generation.number for generation in store.generations()] == [1]
        if not killed:
            break
    assert 10 < step < 199
    assert len(generations(store.path)) == 1


def test_each_call_goes_on_where_a_killed_one_was(store: Store) -> None:
    name = os.fsdecode(gone(store, LARGE, 1))
    top = Path(os.fsdecode(store.path)) / "generations" / name

    def run() -> int:
        remove_gone(store, pace=0.01, progress=ignore)
        return 0

    left = [count_below(top)]
    for _ in range(2):  # each removes a thousand entries, then sleeps for long
        pid = fork(run)
        while count_below(top) > left[-1] - 1000:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        left.append(count_below(top))
    remove_gone(store, pace=1, progress=ignore)
    assert generations(store.path) == []
    assert left == sorted(left, reverse=True)


def test_several_at_once(store: Store) -> None:
    for number in range(1, 7):
        gone(store, LARGE if number % 2 else ONE, number)

    def run() -> int:
        remove_gone(store, pace=0.9, progress=ignore)
        return 0

    assert [wait(pid) for pid in [fork(run) for _ in range(4)]] == [0] * 4
    remove_gone(store, pace=1, progress=ignore)
    assert generations(store.path) == []


def test_what_another_removes_is_left_to_it(store: Store) -> None:
    name = gone(store, ONE, 1)
    fd = os.open(os.path.join(store.path, b"generations", name, b"private"), os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    remove_gone(store, pace=1, progress=ignore)
    assert generations(store.path) == [os.fsdecode(name)]
    os.close(fd)
    fd = os.open(os.path.join(store.path, b"generations", name), os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)  # any user of the host can
    remove_gone(store, pace=1, progress=ignore)
    assert generations(store.path) == []
    os.close(fd)


def test_a_removal_takes_no_lock_of_the_store(store: Store) -> None:
    gone(store, LARGE, 1)

    def progress(_entries: int) -> None:
        put(store, THREE)
        with store.lock("activate", wait=0, note=ignore):
            pass

    remove_gone(store, pace=1, progress=progress)
    assert [generation.number for generation in store.generations()] == [1]


@pytest.mark.needs("root")
def test_what_cannot_be_removed_is_named_after_all_else_is_gone(store: Store, mount: Mount) -> None:
    names = [gone(store, data, number) for number, data in enumerate((ONE, TWO, THREE), 1)]
    place = Path(os.fsdecode(store.path)) / "generations" / os.fsdecode(names[1])
    mount("tmpfs", at=place / "private/layer")
    (place / "private/layer/precious").touch()
    with pytest.raises(StoreError, match="cannot be removed: invalid cross-device link") as caught:
        remove_gone(store, pace=1, progress=ignore)
    assert caught.value.path == os.fsencode(place)
    assert caught.value.hint
    assert generations(store.path) == [os.fsdecode(names[1])]
    assert (place / "private/layer/precious").exists()


def test_a_store_without_generations(store: Store) -> None:
    shutil.rmtree(os.path.join(store.path, b"generations"))
    remove_gone(store, pace=1, progress=ignore)
    assert remove_unfinished(store) == []
