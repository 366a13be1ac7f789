"""`build --store` killed at any moment: the store is as formats/store.md says, and the next build just works."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.store.store import Store
from tests.store.processes import fork, run_killed, wait
from tests.store.stores import (
    LARGE,
    ONE,
    STORE_NAMES,
    TWO,
    check_current,
    check_interrupted,
    generations,
    id_of,
    manifest,
    names,
    new_store,
    put,
)

pytestmark = pytest.mark.needs("trusted xattrs")

MANY_STEPS = 1000  # more than any call has


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def check_next_build(path: Path, file: Path) -> None:
    """Asserts that a build works, and leaves nothing but what belongs there."""
    assert main(["build", "-q", str(file), "--store", str(path)]) == 0
    store = Store.open(os.fsencode(path))
    current = store.current()
    assert current is not None
    assert current == store.generations()[-1]
    assert current.about().id.hex() == id_of(file.read_bytes())
    assert set(names(path)) == STORE_NAMES
    assert generations(path) == [os.fsdecode(generation.name) for generation in store.generations()]
    check_current(store)


@pytest.mark.parametrize("first", [True, False], ids=["the first build", "a later one"])
def test_killed_before_each_step(path: Path, first: bool, capfd: pytest.CaptureFixture[str]) -> None:
    file = path.parent / "sw.mkm"
    file.write_bytes(TWO)
    stages = set()
    for step in range(MANY_STEPS):
        place = path / str(step)
        path.mkdir(exist_ok=True)
        if not first:
            put(new_store(place), ONE)
        killed = run_killed(lambda place=place: main(["build", "-q", str(file), "--store", str(place)]), step)  # type: ignore[misc]
        check_interrupted(place)
        if place.exists() and (place / "store.json").exists():
            store = Store.open(os.fsencode(place))
            complete = [generation.about().id.hex() for generation in store.generations()]
            assert complete in ([id_of(ONE)] * (not first), [id_of(ONE)] * (not first) + [id_of(TWO)])
            current = store.current()
            stages.add((len(complete) + first, current.number + first if current else 0, ".current" in names(place)))
            if not first:
                assert current is not None
        if not killed:
            break
        check_next_build(place, file)
        assert len(generations(place)) == 2 - first
    assert 40 < step < MANY_STEPS
    before = 0 if first else 1
    assert stages >= {(1, before, False), (1, before, True), (2, before, True), (2, 2, False)}


def test_killed_at_random(path: Path, tmp_path: Path) -> None:
    """Workers too, in the middle of a layer of thousands of entries."""
    chance = random.Random(1)
    started = time.monotonic()
    assert wait(fork(lambda: put(new_store(tmp_path / "measured"), LARGE).generation.number)) == 1
    takes = time.monotonic() - started
    at_work = 0
    for number in range(40):
        file = tmp_path / "sw.mkm"
        file.write_bytes(LARGE if number % 2 else manifest(number + 1))
        pid = fork(lambda file=file: main(["build", "-q", "-j", "2", str(file), "--store", str(path)]))  # type: ignore[misc]
        time.sleep(takes * chance.random())
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        check_interrupted(path)
        at_work += any(name.startswith(".new-") for name in generations(path)) if path.exists() else 0
        if number % 4 > 1:  # leftovers of several
            check_next_build(path, file)
    assert at_work > 3


@pytest.mark.slow
def test_processes_killed_at_random(path: Path, tmp_path: Path) -> None:
    """The same with the program as it is started by users, start included."""
    chance = random.Random(2)
    file = tmp_path / "sw.mkm"
    for number in range(100):
        file.write_bytes(LARGE if number % 2 else manifest(number + 1))
        command = [sys.executable, "-m", "mkmeta", "build", "-q", str(file), "--store", str(path)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(0.15 + 0.8 * chance.random())
        process.kill()
        process.wait()
        check_interrupted(path)
        check_next_build(path, file)
