"""What a pass of `mkmeta watch` costs a file server: three requests for the root and each directory in it. And on the
server itself, what clients do is heard of from the kernel.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mkmeta.pattern import Patterns
from mkmeta.publisher.hearing import Events, Hearing, listen
from tests.nfs.conftest import Connect
from tests.nfs.server import call

pytestmark = [pytest.mark.nfs, pytest.mark.needs("NFS sandbox")]
FIRST, SECOND = 100, 10
MOUNTING = 25  # requests that making a mount and ending it takes, and the clock


def sent() -> int:
    """RPCs of all NFS mounts of this machine (/proc/net/rpc/nfs: calls)."""
    (line,) = (line for line in Path("/proc/net/rpc/nfs").read_text().splitlines() if line.startswith("rpc "))
    return int(line.split()[1])


def test_a_pass_is_three_requests_a_directory(connect: Connect, volume: Path, tmp_path: Path) -> None:
    for first in range(FIRST):
        for second in range(SECOND):
            (volume / f"a{first}" / f"b{second}" / "v1").mkdir(parents=True)
    call("date", "-s", "10 minutes")  # what was changed just now proves nothing, and is listed
    client = connect()
    config = tmp_path / "sw.toml"
    config.write_text(
        f'volume = "{client.where}"\nselect = ["*/*/v*"]\nmanifest = "{tmp_path}/sw.mkm"\n'
        f'pointer = "{tmp_path}/sw.json"\nquiet = 0\n'
    )
    command = [sys.executable, "-m", "mkmeta", "watch", "--once", "--json", "--config", str(config)]
    release = [sys.executable, "-m", "mkmeta", "release", "-q", "--config", str(config)]
    subprocess.run(release, check=True, capture_output=True)
    client.remount()
    os.stat(client.where)
    before = sent()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    asked = sent() - before
    summary = json.loads(done.stdout.splitlines()[-1])
    print(f"{summary}: {asked} requests, {asked / (FIRST + 1):.2f} per directory listed")
    assert summary["private"]
    assert summary["listed"] == FIRST + 1
    assert asked <= 3.1 * FIRST + MOUNTING
    (volume / "a7" / "b3" / "v2").mkdir()
    before = sent()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(f"one release taken: {sent() - before} requests; {done.stdout}")
    assert "a7/b3/v2" in done.stdout
    assert call("ls", client.where / "a7/b3") == "v1\nv2\n"


def heard(hearing: Hearing) -> dict[bytes, bool]:
    """Since it was last asked; nothing was lost."""
    found = hearing.collect(Patterns([b"*/*/v*"]))
    assert not found.everything
    return found.levels


def test_the_server_hears_what_its_clients_do(connect: Connect, volume: Path, tmp_path: Path) -> None:
    """The kernel's server changes directories by the same functions as a program does, and they tell of it."""
    (volume / "grp/paint/v1").mkdir(parents=True)
    (tmp_path / "aside").mkdir()
    client = connect("rw", export="no_root_squash,rw")
    hearing, how = listen(os.fsencode(volume), Events.AUTO)
    assert hearing is not None, how
    try:
        grp = client.where / "grp"
        (grp / "paint/v2").mkdir()
        assert heard(hearing) == {b"grp/paint": False}
        (grp / "brush").mkdir()
        (grp / "brush/v1").mkdir()
        assert heard(hearing) == {b"grp": False, b"grp/brush": False}
        os.rename(grp / "brush/v1", grp / "paint/v3")
        assert heard(hearing) == {b"grp/brush": False, b"grp/paint": True}
        (grp / "paint/v3/done").write_text("copied\n")
        assert heard(hearing) == {b"grp/paint": False}, "its marker"
        (grp / "paint/v3/done").unlink()
        (grp / "paint/v3").rmdir()
        assert heard(hearing) == {b"grp/paint": False}
        list(grp.rglob("*"))
        (grp / "paint/v2").chmod(0o700)
        assert heard(hearing) == {}, "names neither came nor went"
    finally:
        hearing.close()
