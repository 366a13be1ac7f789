"""What a cold walk costs the server, beside find(1): requests, not seconds, which `tests.bench.distance` measures."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.bench.tree import make_tree
from tests.nfs.conftest import Connect
from tests.nfs.server import Client

pytestmark = [pytest.mark.nfs, pytest.mark.slow, pytest.mark.needs("NFS sandbox")]

FILES = 4_550  # with their directories, about 5,000 entries
SLACK = 5  # requests about the root and the filesystem


def _cold(client: Client, command: str) -> Counter[str]:
    """The requests of a command on a mount with nothing cached."""
    client.remount()
    with client.rpcs() as sent:
        subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL)
    print(f"{command}: {sent.total()} RPCs: {dict(sent)}", flush=True)
    return sent


def test_walk(connect: Connect, volume: Path, tmp_path: Path) -> None:
    """No more than find: on 4.2 a GETATTR more for each directory, and the extended attributes of each entry."""
    make_tree(volume, FILES, FILES * 100)
    client = connect()
    root = shlex.quote(str(client.where))
    scan = f"{shlex.quote(sys.executable)} -m mkmeta scan {root} --digest none -q -o {tmp_path}/sw.mkm"
    find = _cold(client, rf"find {root} -printf '%p %s %m %T@\n'").total()
    bare, whole = _cold(client, f"{scan} --drop-xattr '*'"), _cold(client, scan)
    directories = sum(1 for _ in os.walk(volume))
    more = 0 if client.version == "3" else directories
    assert bare.total() <= find + more + SLACK
    assert whole.total() - whole["LISTXATTRS"] <= find + more + SLACK
    assert whole["LISTXATTRS"] <= FILES + directories
