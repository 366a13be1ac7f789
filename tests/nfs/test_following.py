"""What a host asks the server to stay up to date: a look at the pointer, a new release, a report (docs/figures.md)."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from mkmeta.linux.mount import MNT_DETACH, umount2
from tests.calling import call as mkmeta
from tests.nfs.farm import CACHED, NO_GAP, farm
from tests.nfs.server import Client, Server, call

pytestmark = [pytest.mark.nfs, pytest.mark.needs("NFS sandbox")]

FILES = 300
LOOK = 3  # a GETATTR of each directory on the way, and of the pointer: NFS 4 saves that where it is delegated
NEWS_AT_MOST = 50
REPORT_AT_MOST = 22  # that says something new; on Linux 6.1, NFS 4 asks for the lock as well
SAME_AT_MOST = 9  # as the last one: 6 or 7, and more where attributes expire meanwhile


def test_what_a_host_asks(
    server: Server, volume: Path, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mkmeta.fleet.report.utc_now", lambda: "2026-01-31T12:00:00Z")  # no other day begins
    for module in ("mkmeta.host.status", "mkmeta.cli.status"):
        monkeypatch.setattr(f"{module}.SECONDS", 60.0)  # a busy machine is no dead server
    with farm(server, volume, tmp_path, version) as site:
        release(volume, "zlib-1")
        site.mkmeta("release", "-q")
        client = Client(version, volume, tmp_path / "on-host", f"rw,actimeo={CACHED},nosharecache")
        client.where.mkdir()
        client.mount()
        config = tmp_path / "host.toml"
        config.write_text(
            f'volume = "{client.where}"\npointer = "{client.where}/.mkmeta/sw.json"\nstore = "{tmp_path}/store"\n'
            f'mount-point = "{site.point}"\nrun-dir = "{tmp_path}/run"\nother-root = true\n'
            + ("" if NO_GAP else "allow-gap = true\n")
        )
        follow = ["activate", "--config", str(config), "--json"]
        report = ["status", "-q", "--config", str(config), "--report", str(client.where / ".mkmeta/reports")]
        try:
            counted = {}
            for name, arguments, action in (
                ("mounted", follow, "mounted"),
                ("a look soon after", follow, "nothing"),
                ("the first report", report, None),
                ("the same report", report, None),
                ("settled", follow, "nothing"),
                ("a look", follow, "nothing"),
                ("news", follow, "switched"),
                ("a report", report, None),
            ):
                if name == "settled":
                    call("date", "-s", "10 minutes")  # what was written just now is read again
                if name == "news":
                    release(volume, "zlib-2")
                    site.mkmeta("release", "-q", "spack/zlib-2")
                if name in ("the same report", "a look", "news", "a report"):
                    time.sleep(CACHED + 0.5)  # what it knows is old then, as ten minutes later
                with client.rpcs() as sent:
                    done = mkmeta(arguments)
                assert action is None or done.messages[-1]["action"] == action, done
                counted[name] = Counter(+sent)
                print(f"NFS {version}, {name}: {sent.total()}: {dict(+sent)}")
            assert set(counted["a look"]) == {"GETATTR"}
            assert counted["a look"].total() <= LOOK
            assert counted["news"].total() <= NEWS_AT_MOST
            assert counted["a report"].total() <= REPORT_AT_MOST
            assert counted["the same report"].total() <= SAME_AT_MOST
            assert set(counted["the same report"]) <= {"GETATTR", "SETATTR", "FSSTAT", "STATFS"}
            assert counted["the same report"]["SETATTR"] == 1
            assert not [name for name in counted["a report"] if name.startswith("READDIR")]
            assert (site.point / "spack/zlib-2/f7").read_text() == "7"
        finally:
            mkmeta(["deactivate", "--config", str(config)])
            umount2(os.fsencode(client.where), MNT_DETACH)


def release(volume: Path, name: str) -> None:
    (volume / "spack" / name).mkdir(parents=True)
    for number in range(FILES):
        (volume / "spack" / name / f"f{number}").write_text(str(number))
