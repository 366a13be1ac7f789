"""What an NFS server hears, by directory, on kernels that count it: the sums are those of mountstats, exactly."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mkmeta.__main__ import main
from mkmeta.demand import histograms
from mkmeta.demand.mountstats import difference, parse
from tests.demand.tracing import bpftrace
from tests.nfs.conftest import Connect
from tests.nfs.server import Client

pytestmark = [pytest.mark.histograms, pytest.mark.needs("NFS sandbox", "histogram triggers")]

INSTANCES = histograms.TRACEFS / "instances"
ONCE = pytest.mark.parametrize("version", ["4.2"])
DIRECTORIES, FILES, CALLS = 20, 8, 400

ASK_ONCE = """
import os, sys
top, *directories = sys.argv[1:]
for directory in directories:
    for number in range(20):
        try: os.stat(f"{top}/{directory}/none{number}") if number % 2 else open(f"{top}/{directory}/none{number}")
        except FileNotFoundError: pass
    os.stat(f"{top}/{directory}/file0")
"""


@dataclass
class Observed:
    """A profile, taken apart."""

    misses: Counter[str]
    stats: Counter[str]
    opens: Counter[str]
    totals: dict[str, list[int]]  # by operation: sent, failed
    lost: dict[str, int]

    def failed(self) -> int:
        return sum(self.totals.get(name, [0, 0])[1] for name in ("LOOKUP", "OPEN"))


def read_profile(path: Path) -> Observed:
    header, *rows, _ = map(json.loads, path.read_text().splitlines())
    assert header["source"] == "nfs"
    counts: dict[str, Counter[str]] = {}
    for kind in ("misses", "stats", "opens"):
        counts[kind] = Counter({row["path"]: row[kind] for row in rows if kind in row})
    return Observed(totals=header["mounts"][0]["totals"], lost=header["lost"], **counts)


def observed(
    monkeypatch: pytest.MonkeyPatch, where: Path, output: Path, ask: Callable[[], Any], entries: int = 1024
) -> Observed:
    """Observes while `ask` runs, instead of for a time; in small tables, which an emulated processor makes sooner."""
    with monkeypatch.context() as patch:
        patch.setattr(histograms, "_ENTRIES", entries)
        patch.setattr("mkmeta.demand.live.time", SimpleNamespace(sleep=lambda _: ask()))
        assert main(["observe", str(where), "--seconds", "1", "-o", str(output)]) == 0
    return read_profile(output)


def make_volume(root: Path) -> list[str]:
    names = [f"grp{number % 3}/lib{number:03}/v1" for number in range(DIRECTORIES)]
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(FILES):
            (root / name / f"file{number}").write_bytes(b"x")
    return names


def stat(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.stat()


def read(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.read_bytes()


def test_attributed_misses_are_those_of_mountstats(
    connect: Connect, volume: Path, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = make_volume(volume)
    where = connect("actimeo=600").where
    choose = random.Random(version)
    misses, found = Counter[str](), Counter[str]()
    opened = Counter[str]()
    known: set[str] = set()

    def ask() -> None:
        for _ in range(CALLS):
            directory = choose.choice([*names, names[0], "grp0"])
            name = choose.choice([f"file{choose.randrange(FILES)}", f"none{choose.randrange(30)}", f"no/{directory}"])
            call = choose.choice([stat, read])
            call(where / directory / name)
            path = f"{directory}/{name.partition('/')[0]}"  # where nothing is, nothing below is asked for
            if path not in known:
                known.add(path)
                there = (volume / path).exists()
                (misses if not there else opened if call is read and version == "4.2" else found)[directory] += 1

    told = observed(monkeypatch, where, tmp_path / "profile", ask)
    assert told.misses == misses and told.misses.total() == told.failed() > CALLS // 4
    assert told.opens == opened and bool(opened) == (version == "4.2")
    assert {name: count for name, count in told.stats.items() if "/" in name and name in names} == found
    sent, failed = told.totals["LOOKUP"]
    assert told.stats.total() == sent - failed > DIRECTORIES, "names that are there are told apart"
    assert not any(told.lost.values())


def test_what_changes_meanwhile(
    connect: Connect, volume: Path, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names come and go on the server, and the client believes nothing for any time: it asks anew, and that counts.

    With NFS 3 one failed LOOKUP has no directory: that by which a client finds out that a name it knows is gone.
    """
    names = make_volume(volume)[:5]
    where = connect("actimeo=0").where

    def ask() -> None:
        for directory in names:
            for _ in range(2):
                for name in ("known", "gone", "none", "comes"):
                    stat(where / directory / name)
                (volume / directory / "comes").write_bytes(b"")
                (volume / directory / "gone").unlink(missing_ok=True)

    for directory in names:
        (volume / directory / "known").write_bytes(b"")
        (volume / directory / "gone").write_bytes(b"")
    told = observed(monkeypatch, where, tmp_path / "profile", ask)
    finding_out = 1 if version == "3" else 0
    assert told.misses == dict.fromkeys(names, len(("none", "comes", "gone", "gone", "none")) - finding_out)
    assert told.failed() - told.misses.total() == len(names) * finding_out


def test_a_full_table_is_seen_and_said(
    connect: Connect,
    volume: Path,
    tmp_path: Path,
    version: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in range(200):
        (volume / f"d{number}").mkdir()
    where = connect("actimeo=600").where

    def ask() -> None:
        for number in range(200):
            stat(where / f"d{number}/none")
            read(where / f"d{number}/neither")

    told = observed(monkeypatch, where, tmp_path / "profile", ask, entries=128)  # the fewest the kernel makes
    joined = version == "3" and "fileid" not in (histograms.TRACEFS / "events/nfs/nfs_lookup_exit/format").read_text()
    # Where what is there is not counted, but all, a call has two tables to be left out of
    assert told.failed() == 400 and 0 <= told.misses.total() + told.lost["drops"] - 400 <= (2 if joined else 0)
    assert len(told.misses) >= 128 and told.lost["drops"] > 0
    assert f"lost: {told.lost['drops']} calls for which a table of the kernel had no room" in capsys.readouterr().err


@contextlib.contextmanager
def observing(client: Client, output: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that observes, once it does; and its trace instance."""
    command = [sys.executable, "-m", "mkmeta", "observe", str(client.where), "--seconds", "1d", "-o", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        instance = until(lambda: next(INSTANCES.glob(f"mkmeta-{process.pid}-*"), None))
        event = "nfs_lookup_exit" if client.version == "3" else "nfs_atomic_open_exit"
        last = instance / "events/nfs" / event / "trigger"
        until(last.exists)  # older kernels fill an instance while it is seen already
        until(lambda: {"fileid!=0", "error==0"} & set(re.findall(r"if (\w+[!=]=0)", last.read_text())))
        yield process, instance
    finally:
        process.kill()
        process.communicate()


def until(look: Callable[[], Any]) -> Any:
    """Waits for something that is to come, however long that takes here."""
    while not (seen := look()):
        time.sleep(0.05)
    return seen


def left() -> list[Path]:
    """What is not the kernel's."""
    return [*INSTANCES.iterdir(), *(histograms.TRACEFS / "events").glob("synthetic/mkmeta*")]


def test_nothing_stays_in_tracefs(connect: Connect, tmp_path: Path, version: str) -> None:
    with observing(connect(), tmp_path / "profile") as (process, _):
        process.send_signal(signal.SIGKILL if version == "3" else signal.SIGTERM)
        process.wait()
        until(lambda: not left())
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("version", ["3"])
def test_what_was_killed_whole_is_cleared_by_the_next(
    connect: Connect, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_volume(volume)
    client = connect()
    foreign = INSTANCES / "somebody"
    foreign.mkdir()
    try:
        with observing(client, tmp_path / "profile") as (process, instance):
            (guard,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(guard), signal.SIGKILL)
            process.kill()
            process.wait()
        assert instance.exists()
        told = observed(monkeypatch, client.where, tmp_path / "profile", lambda: stat(client.where / "grp0/none"))
        assert told.misses == {"grp0": 1} and told.failed() == 1
        assert left() == [foreign], "what others trace is theirs"
    finally:
        foreign.rmdir()


@ONCE
def test_one_at_a_time_on_a_host(connect: Connect, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = connect()
    with observing(client, tmp_path / "profile") as (process, instance):
        assert main(["observe", str(client.where), "--seconds", "1", "-o", str(tmp_path / "second")]) == 14
        assert "one at a time" in capsys.readouterr().err
        assert process.poll() is None and list(INSTANCES.iterdir()) == [instance]
    assert not (tmp_path / "second").exists()


@ONCE
@pytest.mark.needs("bpftrace")
def test_the_calls_that_bpftrace_counts_are_what_the_server_hears(
    connect: Connect, volume: Path, tmp_path: Path
) -> None:
    """Of names that are asked for once each: examples/observe.bt, for kernels without histograms."""
    names = make_volume(volume)
    where = connect("actimeo=600").where
    before = parse(Path("/proc/self/mountstats").read_bytes())[bytes(where)]
    bpftrace(tmp_path / "maps", ASK_ONCE, where, *names)
    sent = difference(before, parse(Path("/proc/self/mountstats").read_bytes())[bytes(where)])
    profile = tmp_path / "profile"
    assert main(["observe", "--from", "bpftrace", f"{tmp_path}/maps", "--root", f"{where}", "-o", f"{profile}"]) == 0
    _, *rows, _ = map(json.loads, profile.read_text().splitlines())
    misses = {row["path"]: row["misses"] for row in rows if "misses" in row}
    assert misses == dict.fromkeys(names, 20)
    assert sum(misses.values()) == sum(sent[name][1] for name in ("LOOKUP", "OPEN"))
