"""Publishers whose file server stops in the middle of it: they wait, or die, and in the end all is published."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mkmeta.store.pointer import read_pointer
from tests.calling import call as mkmeta
from tests.nfs.conftest import Connect
from tests.nfs.server import Server, silence

pytestmark = [pytest.mark.nfs, pytest.mark.needs("NFS sandbox")]
ROUNDS = 4
FINE = {0, 1, 4, 14, 24, -9}  # published, or refused: changed meanwhile, locked, not complete; killed


def test_a_server_that_stops_in_the_middle(
    connect: Connect, server: Server, volume: Path, tmp_path: Path, version: str
) -> None:
    chance = random.Random(version)
    client = connect("actimeo=0")  # what was asked for before it was there is not the question here
    config, pointer = tmp_path / "sw.toml", tmp_path / "sw.json"
    config.write_text(
        f'volume = "{client.where}"\nselect = ["grp/*/v*"]\nmanifest = "{tmp_path}/sw.mkm"\n'
        f'pointer = "{pointer}"\nquiet = 0\n'
    )

    def started(verb: str, *args: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "mkmeta", verb, "-q", "--config", str(config), *args])

    def copied(name: str) -> str:
        lib = volume / "grp" / name / "lib"
        lib.mkdir(parents=True)
        for number in range(20):
            (lib / f"m{number}.py").write_text(f"{name} {number}\n")
        return f"grp/{name}"

    copied("paint/v0")
    mkmeta(["release", "-q", "--config", str(config)])
    for number in range(1, ROUNDS + 1):
        copied(f"brush/v{number}")
        running = [started("release", copied(f"paint/v{number}")), started("watch", "--once")]
        time.sleep(0.5 + chance.random() * 1.5)
        if number % 2:
            with silence():
                time.sleep(chance.random())
                running[chance.randrange(2)].kill()
        else:
            server.stop()
            time.sleep(chance.random())
            server.resume()
        codes = [process.wait(100) for process in running]
        assert set(codes) <= FINE, codes
        assert read_pointer(str(pointer).encode()).serial >= 1
    mkmeta(["watch", "-q", "--once", "--config", str(config)])
    full = mkmeta(["scan", "-q", "--config", str(config), "-o", str(tmp_path / "full.mkm")]).out.strip()
    assert read_pointer(str(pointer).encode()).id.hex() == full
