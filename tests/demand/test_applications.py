"""Real applications where there is no NFS: the loop without a hand in between, and what a layer then answers itself.

What would be asked of a server is found out by the kernel: a name that comes to be on the volume shows through the
layer where the layer asks the volume for it. On real NFS: tests/nfs/test_applications.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demand.applications import APPLICATIONS, Application
from tests.host.hosts import Host

pytestmark = pytest.mark.needs("root", "overlay", "strace")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.unmount_all()


def outcome(command: list[str]) -> tuple[int, bytes]:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.returncode, done.stdout


@pytest.mark.parametrize("kind", APPLICATIONS)
def test_without_a_hand_in_between(host: Host, kind: type[Application]) -> None:
    application = kind()
    application.make(host.volume)
    observed, select, manifest = host.top / "sw.profile", host.top / "select", host.top / "sw.mkm"
    plain = outcome(application.command(host.volume))
    host.call("observe", host.volume, "-o", observed, "--", *application.command(host.volume))
    suggested = subprocess.run(
        host.command("suggest", observed, "--root", host.volume), check=True, capture_output=True
    )
    select.write_bytes(suggested.stdout)
    host.call("scan", host.volume, "--select-from", select, "-o", manifest)
    told = host.call("predict", manifest, observed, "--json", "--min-gain", "misses=99%").messages
    predicted = {str(one["profile"]): one["requests"]["misses"] for one in told if one["message_type"] == "prediction"}
    host.call("build", manifest, "--store", host.store)
    rows = [json.loads(line) for line in observed.read_text().splitlines()[1:-1]]
    missed = {row["path"]: row.get("first_misses", row.get("misses", 0)) for row in rows if "path" in row}
    for profile in ("nested", "merge"):
        host.activate("--profile", profile)
        assert outcome(application.command(host.point)) == plain, "the program does what it did"
        left = 0
        for path, count in missed.items():
            there = path
            while not (host.volume / there).is_dir():
                there = os.path.dirname(there)
            if there != path:
                count = int(count > 0)
            late = host.volume / there / f"late-{profile}"
            late.touch()
            left += count if (host.point / there / late.name).exists() else 0
            late.unlink()
        host.call("deactivate", host.point)
        assert left == predicted[profile] <= 45
