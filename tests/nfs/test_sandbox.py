"""The fixtures do what the tests on them rely on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.nfs.conftest import Connect
from tests.nfs.server import ROUND_TRIP, latency, round_trip

pytestmark = [pytest.mark.nfs, pytest.mark.needs("NFS sandbox")]


def test_version_and_options_are_those_asked_for(connect: Connect, version: str) -> None:
    client = connect("actimeo=7")
    (line,) = (line for line in Path("/proc/self/mounts").read_text().splitlines() if str(client.where) in line)
    options = line.split()[3].split(",")
    assert {"ro", f"vers={version}", "acregmin=7", "sec=sys"} <= set(options)


def test_rpcs_are_counted_by_operation(connect: Connect, volume: Path, version: str) -> None:
    (volume / "file").write_text("content")
    client = connect()
    with client.rpcs() as cold:
        assert (client.where / "file").read_text() == "content"
    with client.rpcs() as warm:
        os.stat(client.where / "file")
    client.remount()
    with client.rpcs() as cold_again:
        assert (client.where / "file").read_text() == "content"
    assert cold["READ"] == 1 and cold["LOOKUP" if version == "3" else "OPEN"] == 1
    assert warm["READ"] == warm["LOOKUP"] == warm["OPEN"] == 0 and warm.total() <= 1
    assert cold_again == cold


def test_latency(connect: Connect) -> None:
    client = connect()
    assert round_trip(client) < ROUND_TRIP / 2
    with latency():
        assert ROUND_TRIP <= round_trip(client) < 3 * ROUND_TRIP
    assert round_trip(client) < ROUND_TRIP / 2
