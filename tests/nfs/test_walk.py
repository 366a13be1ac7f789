"""A cold walk of a volume a millisecond away, beside find: seconds and RPCs. Printed, `-rP` shows them; not judged."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.bench.tree import make_tree
from tests.nfs.conftest import Connect
from tests.nfs.server import Client, latency, round_trip

pytestmark = [pytest.mark.nfs, pytest.mark.slow, pytest.mark.needs("NFS sandbox")]

FILES = 45_500  # with their directories, about 50,000 entries


def cold(client: Client, command: str) -> tuple[float, Counter[str]]:
    """Seconds and RPCs of a command on a mount with nothing cached."""
    client.remount()
    with client.rpcs() as sent:
        started = time.perf_counter()
        subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
    return seconds, sent


@pytest.mark.timeout(900)
def test_walk(connect: Connect, volume: Path, tmp_path: Path) -> None:
    make_tree(volume, FILES, FILES * 100)
    client = connect()
    root = shlex.quote(str(client.where))
    find = rf"find {root} -printf '%p %s %m %T@\n'"
    scan = f"{shlex.quote(sys.executable)} -m mkmeta scan {root} --digest none -q -o {tmp_path}/sw.mkm"
    for network in (contextlib.nullcontext, latency):
        with network():
            print(f"NFS {client.version}, Linux {os.uname().release}, round trip {round_trip(client) * 1000:.2f} ms")
            sent = {}
            commands = (("find", find), ("scan", scan), ("scan --drop-xattr '*'", f"{scan} --drop-xattr '*'"))
            for name, command in commands:
                seconds, sent[name] = cold(client, command)
                print(f"{name}: {seconds:.1f} s, {sent[name].total()} RPCs: {dict(sent[name])}", flush=True)
