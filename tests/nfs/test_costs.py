"""What plain NFS costs, in RPCs by operation: the figures behind the advice on mount options.

A small file opened and read cold, again at once, and again after the
attribute timeout; and a name that is not there asked for thrice in the same way. `-rP` shows the table.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nfs.conftest import Connect
from tests.nfs.server import Client

pytestmark = [pytest.mark.nfs, pytest.mark.slow, pytest.mark.needs("NFS sandbox")]

OPTIONS = ("", "nocto", "actimeo=1", "noac", "actimeo=3600", "lookupcache=none", "lookupcache=positive")
# Seconds after which what was seen is asked for again: acregmin, 3, for files and acdirmin, 30, for directories
TIMEOUTS = {"actimeo=1": 1.5, "noac": 1.5, "actimeo=3600": 5.0}  # the last is beyond the patience of a test
DEFAULT_TIMEOUT = 32.0


def read(client: Client) -> None:
    (client.where / "one/file").read_bytes()


def miss(client: Client) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.stat(client.where / "other/no-such-name")


def count(client: Client, use: Callable[[Client], None]) -> Counter[str]:
    with client.rpcs() as sent:
        use(client)
    return sent


def cell(counter: Counter[str]) -> str:
    return " + ".join(f"{count} {name}" for name, count in sorted(counter.items()) if count) or "0"


@pytest.mark.parametrize("options", OPTIONS)
def test_costs(connect: Connect, volume: Path, options: str) -> None:
    for directory in ("one", "other"):
        (volume / directory).mkdir()
    (volume / "one/file").write_text("small")
    client = connect(options)
    for directory in ("one", "other"):
        os.stat(client.where / directory)  # the way there is known
    reads, misses = ([count(client, use), count(client, use)] for use in (read, miss))
    time.sleep(TIMEOUTS.get(options, DEFAULT_TIMEOUT))
    reads.append(count(client, read))
    misses.append(count(client, miss))
    columns = [*map(cell, reads), *map(cell, misses)]
    print(f"| {os.uname().release} | {client.version} | {options or 'default'} | {' | '.join(columns)} |")
    assert reads[0]["READ"] == 1 and reads[1]["READ"] == reads[2]["READ"] == 0, "the content is cached"
    assert misses[0]["LOOKUP"] >= 1
    forgets = options in ("lookupcache=none", "lookupcache=positive")
    assert (misses[1]["LOOKUP"] > 0) == (misses[2]["LOOKUP"] > 0) == forgets
