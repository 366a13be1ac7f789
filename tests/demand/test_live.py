"""What the kernel's files say, and that nothing of ours stays in tracefs. On a real tracefs: tests/vm."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.demand import histograms, live
from mkmeta.demand.histograms import NoHistogramsError, parse, sweep
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
# trigger info: hist:keys=dev,dir:vals=hitcount:sort=hitcount:size=65536 if fileid==0&&(dev==49||dev==8388609) [active]
#

{ dev:         49, dir:     131073 } hitcount:        700
{ dev:    8388609, dir:         12 } hitcount:          1

Totals:
    Hits: 701
    Entries: 2
    Dropped: 3


# event histogram
#
# trigger info: hist:keys=dev,dir:vals=hitcount:sort=hitcount:size=65536 if fileid!=0&&(dev==49||dev==8388609) [active]
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
    dev = "(dev==49||dev==8388609)"
    assert list(parse(HISTOGRAM)) == [
        (f"fileid==0&&{dev}", {(os.makedev(0, 49), 131073): 700, (os.makedev(8, 1), 12): 1}, 3),
        (f"fileid!=0&&{dev}", {(os.makedev(0, 49), 131073): 20}, 0),
    ]


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


FORMAT = "field:u64 dir; field:u64 fileid;"
EVENTS = ("nfs/nfs_lookup_exit", "nfs/nfs_atomic_open_exit", "nfs/nfs_xdr_status", "nfs4/nfs4_lookup")


@pytest.fixture
def tracefs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What of tracefs is asked for. The kernel fills a new instance; here, the one who makes it does."""
    top = tmp_path / "tracing"
    (top / "instances").mkdir(parents=True)
    (top / "events/synthetic").mkdir(parents=True)
    (top / "synthetic_events").touch()
    make = Path.mkdir

    def mkdir(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        make(self, mode, parents, exist_ok)
        if self.parent == top / "instances":
            for event in (*EVENTS, f"synthetic/{self.name.replace('-', '_')}"):
                make(self / "events" / event, parents=True)
                (self / "events" / event / "trigger").touch()
                (self / "events" / event / "hist").write_text(HISTOGRAM if event == EVENTS[0] else "")
            (self / "events" / EVENTS[0] / "format").write_text(FORMAT)

    monkeypatch.setattr(histograms, "_RMDIR", "rm -r")  # what holds files is no directory that rmdir removes
    monkeypatch.setattr(Path, "mkdir", mkdir)
    return top


THREE, FOUR = {os.makedev(0, 49): b"nfs", os.makedev(8, 1): b"nfs"}, {os.makedev(0, 50): b"nfs4"}


def test_an_instance_goes_with_its_block(tracefs: Path) -> None:
    foreign = tracefs / "instances" / "somebody"
    foreign.mkdir()
    with histograms.histograms({**THREE, **FOUR}, tracefs) as counting:
        (instance,) = (tracefs / "instances").glob("mkmeta-*")
        trigger = instance / "events/nfs/nfs_atomic_open_exit/trigger"
        wanted = [f"hist:keys=dev,dir:size=65536 if error=={number}&&(dev==50)" for number in (2, 0)]
        assert trigger.read_text() == "".join(wanted), "the kernel removes all triggers of a file that is truncated"
        sweep(tracefs)
        assert instance.exists(), "of a living process"
        found = counting.read()
        assert found.counts == {
            (os.makedev(0, 49), 131073): Counter({MISS: 700, STAT: 20}),
            (os.makedev(8, 1), 12): Counter({MISS: 1}),
        }
        assert found.dropped == 3
    with pytest.raises(KeyError), histograms.histograms(FOUR, tracefs):
        raise KeyError
    assert list((tracefs / "instances").iterdir()) == [foreign]


def test_what_one_event_does_not_say_two_do(tracefs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux 6.1 prints it: what is there is what did not fail, and a call that had no room twice is lost once."""
    text = {
        "synthetic": ("hist:keys=dev,dir:vals=hitcount if (dev==49)", "{ dev: 49, dir: 12 } hitcount: 5", 4),
        "nfs_xdr_status": ("hist:keys=common_pid:told=error if error==2", "{ common_pid: 130 } hitcount: 7", 2),
        "nfs_lookup_exit": ("hist:keys=common_pid:taken=$told*1:trace(mkmeta,dev,dir)", "{ common_pid: 130 }", 0),
    }
    whole = ("hist:keys=dev,dir:vals=hitcount if error==0&&(dev==49)", "{ dev: 49, dir: 12 } hitcount: 8", 5)

    def printed(told: str, row: str, dropped: int) -> str:
        return f"# trigger info: {told} [active]\n#\n\n{row}\n\nTotals:\n    Dropped: {dropped}\n\n"

    monkeypatch.setattr(sys.modules[__name__], "FORMAT", "field:u64 dir;")
    with histograms.histograms({os.makedev(0, 49): b"nfs"}, tracefs) as counting:
        (instance,) = (tracefs / "instances").iterdir()
        assert (tracefs / "synthetic_events").read_text() == f"{instance.name.replace('-', '_')} u32 dev; u64 dir"
        for hist in (instance / "events").glob("*/*/hist"):
            for name, block in text.items():
                if name in str(hist):
                    hist.write_text(printed(*block) + (printed(*whole) if name == "nfs_lookup_exit" else ""))
        found = counting.read()
    assert found.counts == {(os.makedev(0, 49), 12): Counter({MISS: 5, STAT: 3})} and found.dropped == 6


def test_an_instance_somebody_reads_in_goes_when_they_end(
    tracefs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = tmp_path / "read"
    remove = tmp_path / "remove"
    remove.write_text(f'#!/bin/sh\n[ ! -e "{read}" ] && exec rm -r "$1"\n')
    remove.chmod(0o755)
    monkeypatch.setattr(histograms, "_RMDIR", f"'{remove}'")
    read.touch()
    with histograms.histograms(FOUR, tracefs):
        pass
    sweep(tracefs)
    assert list((tracefs / "instances").iterdir()), "and nobody waits for it"
    read.unlink()
    while list((tracefs / "instances").iterdir()):
        time.sleep(0.05)


def test_instances_of_the_dead_are_swept(tracefs: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in (f"mkmeta-{ended.pid}-77", f"mkmeta-{os.getpid()}-1", "mkmeta-x-1"):
        (tracefs / "instances" / name).mkdir()
    (tracefs / f"events/synthetic/mkmeta_{ended.pid}_77").mkdir()
    (tracefs / f"events/synthetic/mkmeta_{ended.pid}_78").mkdir()
    sweep(tracefs)
    assert [path.name for path in (tracefs / "instances").iterdir()] == ["mkmeta-x-1"]
    asked = set((tracefs / "synthetic_events").read_text().split())
    assert asked == {f"!mkmeta_{ended.pid}_{number}" for number in (77, 78)}


def test_a_kernel_without_histograms_leaves_nothing(tracefs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histograms, "_LOOKUP_4", "nfs4/no_such_event")
    with pytest.raises(NoHistogramsError, match="no such event"), histograms.histograms(FOUR, tracefs):
        pass
    assert not list((tracefs / "instances").iterdir())
    with pytest.raises(NoHistogramsError), histograms.histograms(FOUR, tracefs / "none"):
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
    text = text.replace("(dev==49||dev==8388609)", f"(dev=={device})")
    monkeypatch.setattr(sys.modules[__name__], "HISTOGRAM", text)
    monkeypatch.setattr(live, "_devices", lambda points: dict.fromkeys(points, (status.st_dev, b"nfs")))
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


def test_mounts_that_share_a_filesystem_and_one_that_goes(
    tracefs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each directory counts below one mount point, and of what was unmounted nothing is said."""
    points = [tmp_path / name for name in ("a", "b", "c")]
    for point in points:
        (point / "lib").mkdir(parents=True)
    device, status = 49, (points[1] / "lib").stat()
    text = HISTOGRAM.replace("dir:     131073", f"dir: {status.st_ino}").replace("dev==49||dev==8388609", "dev==49")
    monkeypatch.setattr(sys.modules[__name__], "HISTOGRAM", text.replace("dev==49", "dev==49||dev==77"))
    monkeypatch.setattr(histograms, "TRACEFS", tracefs)
    monkeypatch.setattr(live, "RUN", tmp_path / "run")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    names = [os.fsencode(point) for point in points]
    seen = iter([names, names[:2], names[:2], []])
    kinds = dict(zip(names, (device, device, 77), strict=True))
    monkeypatch.setattr(live, "_devices", lambda _: {name: (kinds[name], b"nfs") for name in next(seen)})
    monkeypatch.setattr(live, "read_totals", lambda: {name: {"LOOKUP": (1, 1)} for name in names})
    profile = tmp_path / "p"
    command = ["observe", *map(str, points), "--seconds", "0", "-o", str(profile)]
    assert main(command) == 0
    assert f"{points[2]}: was unmounted meanwhile" in capsys.readouterr().err
    with profile.open("rb") as stream:
        reader = ProfileReader(stream, b"p")
        (row,) = reader.rows()
    assert (row.mount, row.path, row.misses, row.stats) == (1, b"lib", 700, 20)
    assert main(command) == 1
    assert f"{points[0]}: was unmounted meanwhile" in capsys.readouterr().err


def test_what_is_no_nfs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["observe", str(tmp_path), "--seconds", "1", "-o", str(tmp_path / "p")]) == 1
    assert "is no mount point of NFS" in capsys.readouterr().err
