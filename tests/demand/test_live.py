"""What the kernel's files say, and that nothing of ours stays in tracefs. On a real tracefs: tests/vm."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.demand import histograms, live
from mkmeta.demand.histograms import Found, NoHistogramsError, parse, sweep
from mkmeta.demand.inodes import paths_of
from mkmeta.demand.mountstats import difference
from mkmeta.demand.mountstats import parse as parse_mountstats
from mkmeta.demand.profile import ProfileReader
from mkmeta.demand.tally import MISS, OPEN, STAT
from mkmeta.manifest.reader import ManifestReader

# As Linux 6.12 prints it, of one event with two triggers
HISTOGRAM = """\
# event histogram
#
# trigger info: hist:keys=dev,dir:vals=hitcount:sort=hitcount:size=65536 if fileid==0 [active]
#

{ dev:         49, dir:     131073 } hitcount:        700
{ dev:    8388609, dir:         12 } hitcount:          1

Totals:
    Hits: 701
    Entries: 2
    Dropped: 3


# event histogram
#
# trigger info: hist:keys=dev,dir:vals=hitcount:sort=hitcount:size=65536 if fileid!=0 [active]
#

{ dev:         49, dir:     131073 } hitcount:         20

Totals:
    Hits: 20
    Entries: 1
    Dropped: 0
"""
MOUNTSTATS = b"""\
device proc mounted on /proc with fstype proc
device 10.0.0.1:/sw mounted on /mnt/my\\040sw with fstype nfs4 statvers=1.1
\topts:\tro,vers=4.2
\tper-op statistics
\t        NULL: 1 1 0 44 24 0 0 0 0
\t      LOOKUP: 1283 1283 0 200000 300000 10 200 210 1200
\t        OPEN: 5 5 0 900 900 0 1 1
device 10.0.0.2:/b mounted on /b with fstype nfs statvers=1.1
\tper-op statistics
\t     GETATTR: 7 7 0 44 24 0 0 0 2
"""


def test_a_histogram() -> None:
    found = Found()
    parse(HISTOGRAM, {"fileid==0": MISS, "fileid!=0": STAT}, found)
    assert found.counts == {
        (os.makedev(0, 49), 131073): Counter({MISS: 700, STAT: 20}),
        (os.makedev(8, 1), 12): Counter({MISS: 1}),
    }
    assert found.dropped == 3


def test_mountstats() -> None:
    found = parse_mountstats(MOUNTSTATS)
    assert found == {
        b"/mnt/my sw": {"NULL": (1, 0), "LOOKUP": (1283, 1200), "OPEN": (5, 0)},
        b"/b": {"GETATTR": (7, 2)},
    }
    later = {**found[b"/mnt/my sw"], "LOOKUP": (1300, 1210), "OPEN": (2, 1)}
    assert difference(found[b"/mnt/my sw"], later) == {"LOOKUP": (17, 10), "OPEN": (2, 1)}, "and a mount made anew"
    again = {"LOOKUP": (2000, 3), "OPEN": (6, 0), "NULL": (1, 0)}
    assert difference(found[b"/mnt/my sw"], again) == {"LOOKUP": (2000, 3), "OPEN": (1, 0)}, "no total is negative"


@pytest.fixture
def tracefs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What of tracefs is asked for. The kernel fills a new instance; here, the one who makes it does."""
    top = tmp_path / "tracing"
    (top / "instances").mkdir(parents=True)
    make, remove = Path.mkdir, Path.rmdir

    def mkdir(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        make(self, mode, parents, exist_ok)
        if self.parent == top / "instances":
            for event in ("nfs_lookup_exit", "nfs_atomic_open_exit"):
                make(self / "events/nfs" / event, parents=True)
                (self / "events/nfs" / event / "trigger").touch()
                (self / "events/nfs" / event / "hist").write_text(HISTOGRAM if "lookup" in event else "")

    def rmdir(self: Path) -> None:
        for directory, below, files in os.walk(self, topdown=False):
            for name in files:
                os.unlink(f"{directory}/{name}")
            for name in below:
                os.rmdir(f"{directory}/{name}")
        remove(self)

    monkeypatch.setattr(histograms, "_REMOVE", "rm -r")  # what holds files is no directory that rmdir removes
    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", rmdir)
    return top


def test_an_instance_goes_with_its_block(tracefs: Path) -> None:
    foreign = tracefs / "instances" / "somebody"
    foreign.mkdir()
    with histograms.histograms(tracefs) as counting:
        (instance,) = (tracefs / "instances").glob("mkmeta-*")
        trigger = instance / "events/nfs/nfs_atomic_open_exit/trigger"
        wanted = [f"hist:keys=dev,dir:size=65536 if error=={number}" for number in (2, 0)]
        assert trigger.read_text() == "".join(wanted), "the kernel removes all triggers of a file that is truncated"
        sweep(tracefs)
        assert instance.exists(), "of a living process"
        assert counting.read().dropped == 3
    with pytest.raises(KeyError), histograms.histograms(tracefs):
        raise KeyError
    assert list((tracefs / "instances").iterdir()) == [foreign]


def test_an_instance_somebody_reads_in_goes_when_they_end(
    tracefs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = tmp_path / "read"
    remove = tmp_path / "remove"
    remove.write_text(f'#!/bin/sh\n[ ! -e "{read}" ] && exec rm -r "$1"\n')
    remove.chmod(0o755)
    monkeypatch.setattr(histograms, "_REMOVE", f"'{remove}'")
    read.touch()
    with histograms.histograms(tracefs):
        pass
    assert list((tracefs / "instances").iterdir()), "and nobody waits for it"
    read.unlink()
    while list((tracefs / "instances").iterdir()):
        time.sleep(0.05)


def test_instances_of_the_dead_are_swept(tracefs: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in (f"mkmeta-{ended.pid}-77", f"mkmeta-{os.getpid()}-1", "mkmeta-x-1"):
        (tracefs / "instances" / name).mkdir()
    sweep(tracefs)
    assert [path.name for path in (tracefs / "instances").iterdir()] == ["mkmeta-x-1"]


def test_an_instance_in_use_is_no_error(tracefs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for number in (1, 2):
        (tracefs / "instances" / f"mkmeta-{ended.pid}-{number}").mkdir()
    remove = Path.rmdir

    def rmdir(self: Path) -> None:
        if self.name.endswith("-1"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self))
        remove(self)

    monkeypatch.setattr(Path, "rmdir", rmdir)
    sweep(tracefs)
    assert [path.name for path in (tracefs / "instances").iterdir()] == [f"mkmeta-{ended.pid}-1"]


def test_a_kernel_without_histograms_leaves_nothing(tracefs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histograms, "_TRIGGERS", (("no_such_event", "fileid==0", MISS),))
    with pytest.raises(NoHistogramsError, match="no such event"), histograms.histograms(tracefs):
        pass
    assert not list((tracefs / "instances").iterdir())
    with pytest.raises(NoHistogramsError), histograms.histograms(tracefs / "none"):
        pass


def test_paths_of_inode_numbers(tmp_path: Path) -> None:
    volume = tmp_path / "sw"
    for name in ("a/v1/lib", "a/v1/bin", "b/deep/er"):
        (volume / name).mkdir(parents=True)
    inodes = {path: (volume / os.fsdecode(path)).stat().st_ino for path in (b"", b"a/v1/lib", b"b/deep/er")}
    wanted = set(inodes.values()) | {2**60}
    assert paths_of(bytes(volume), wanted, None) == {inode: path for path, inode in inodes.items()}
    manifest = str(tmp_path / "m.mkm")
    assert main(["scan", str(volume), "--select", "a", "-o", manifest]) == 0
    (volume / "a/v1/lib").rename(volume / "a/v1/moved")
    with ManifestReader.open(manifest) as base:
        found = paths_of(bytes(volume), set(inodes.values()), base)
    assert found[inodes[b"a/v1/lib"]] == b"a/v1/moved", "what the manifest says was asked once more"


def test_a_whole_observation(
    tracefs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = tmp_path / "sw"
    (volume / "a").mkdir(parents=True)
    status = (volume / "a").stat()
    device = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
    text = HISTOGRAM.replace("dev:         49", f"dev: {device}").replace("dir:     131073", f"dir: {status.st_ino}")
    monkeypatch.setattr(sys.modules[__name__], "HISTOGRAM", text)
    monkeypatch.setattr(histograms, "TRACEFS", tracefs)
    monkeypatch.setattr(live, "RUN", tmp_path / "run")
    told = iter([{bytes(volume): {"LOOKUP": (n, n)}} for n in (0, 0, 720)])
    monkeypatch.setattr(live, "read_totals", lambda: next(told))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    profile = tmp_path / "p"
    assert main(["observe", str(volume), "--seconds", "0", "-o", str(profile)]) == 0
    assert "lost: 3 calls for which a table of the kernel had no room" in capsys.readouterr().err
    with profile.open("rb") as stream:
        reader = ProfileReader(stream, b"p")
        (row,) = reader.rows()
    assert (row.path, row.misses, row.stats, row.opens) == (b"a", 700, 20, 0) and OPEN
    assert reader.header.mounts[0].totals == {"LOOKUP": (720, 720)} and reader.header.source == "nfs"


def test_what_is_no_nfs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", str(tmp_path), "--seconds", "1", "-o", str(tmp_path / "p")]) == 1
    assert "is no mount point of NFS" in capsys.readouterr().err
