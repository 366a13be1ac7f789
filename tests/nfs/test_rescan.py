"""Scanning again over NFS: the same ID as a full scan, and what the server gets to hear. `-rP` shows the figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.tree import make_tree
from tests.nfs.conftest import Connect
from tests.nfs.server import Client

pytestmark = [pytest.mark.nfs, pytest.mark.needs("NFS sandbox")]
SELECT = ("--select", "grp*/*", "-q")


def scan(client: Client, output: Path, *args: str | Path) -> tuple[str, int]:
    """A scan with nothing cached: the ID, and the RPCs sent."""
    client.remount()
    command = [sys.executable, "-m", "mkmeta", "scan", client.where, *SELECT, *args, "-o", output]
    with client.rpcs() as sent:
        done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
    print(" ".join(map(str, args)) or "full scan", sent.total(), dict(sent))
    return done.stdout.strip(), sent.total()


def test_rescans(connect: Connect, volume: Path, tmp_path: Path) -> None:
    make_tree(volume, 3000, 3000 * 100)
    client = connect()
    base, again = tmp_path / "base.mkm", tmp_path / "again.mkm"
    first, full = scan(client, base)
    release = volume / "grp000" / "new"
    make_tree(release, 60, 6000)
    only, asked = scan(client, again, "--base", base, "--only", "grp000/new")
    whole, everything = scan(client, tmp_path / "full.mkm")
    assert only == whole != first
    alone, release_alone = scan_alone(client, release, tmp_path / "alone.mkm")
    assert alone
    assert asked <= release_alone + 20, "the ancestors of the release, and nothing else"
    assert asked * 5 < everything <= full * 2
    unchanged, _ = scan(client, again, "--base", tmp_path / "full.mkm")
    assert unchanged == whole


def scan_alone(client: Client, release: Path, output: Path) -> tuple[str, int]:
    """A scan of the release and nothing above it."""
    client.remount()
    where = client.where / release.relative_to(client.root)
    command = [sys.executable, "-m", "mkmeta", "scan", where, "-q", "-o", output]
    with client.rpcs() as sent:
        done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
    print("that release alone", sent.total(), dict(sent))
    return done.stdout.strip(), sent.total()
