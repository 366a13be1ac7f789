"""Real applications on real NFS: observed, suggested, scanned, predicted, activated without a hand in between.

What is predicted is compared with what is then sent, kind by kind, without a layer and for each way to mount one, with
and without contents. What a server hears does not always say what it is for: a LOOKUP that finds something is for a
file or on the way to one, so `stats` and `way` are compared together; NFS 3 opens files and directories with the same
three operations, so all that is neither miss nor read is.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from mkmeta.demand.mountstats import difference, parse
from tests.demand.applications import APPLICATIONS, Application
from tests.nfs.conftest import PROFILES, Connect
from tests.nfs.hosts import NfsHost
from tests.nfs.server import BACKGROUND, Client

pytestmark = [pytest.mark.nfs, pytest.mark.needs("NFS sandbox", "strace", "EROFS mounts")]

LEFT_MAX: Final = 45  # misses, as in tests/nfs/test_demand.py
SLACK: Final = 5  # requests, or one in a hundred
MOUNTS: Final = [name for name in PROFILES if name != "data-only"]
LAYERS: Final = {  # of the ways, all with one version, and with the other the one to want
    "3": [("directory", MOUNTS[-1]), ("erofs", MOUNTS[-1])],
    "4.2": [*(("directory", name) for name in MOUNTS), ("erofs", MOUNTS[-1])],
}
TOGETHER: Final = {
    "3": (("misses",), ("reads",), ("stats", "way", "opens", "listings")),
    "4.2": (("misses",), ("reads",), ("opens",), ("listings",), ("stats", "way")),
}


def measured(client: Client, command: Sequence[str], *, overlay: bool) -> list[int]:
    """The requests of a run with cold caches, as TOGETHER groups them."""
    for _ in range(2):
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    point, stats = bytes(client.where), Path("/proc/self/mountstats")
    before = parse(stats.read_bytes())[point]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = difference(before, parse(stats.read_bytes())[point])
    sent = Counter({name: count for name, (count, _) in after.items() if count and name not in BACKGROUND})
    print(f"       {dict(sent)}")
    failed = {name: after.get(name, (0, 0))[1] for name in ("LOOKUP", "OPEN")}
    misses, reads = sum(failed.values()), sent["READ"]
    if client.version == "3":
        return [misses, reads, sent.total() - misses - reads]
    opened = sent["OPEN"] - failed["OPEN"] + sent["OPEN_NOATTR"]
    opens = opened + sent["CLOSE"] + (opened if overlay else 0)  # which looks a file up before
    listings = sent["READDIR"] + sent["GETATTR"]
    return [misses, reads, opens, listings, sent.total() - misses - reads - opens - listings]


def compare(version: str, name: str, requests: Mapping[str, int], found: Sequence[int]) -> list[str]:
    """What was not as it was predicted."""
    wrong = []
    for kinds, count in zip(TOGETHER[version], found, strict=True):
        wanted = sum(requests[kind] for kind in kinds)
        print(f"   {version} {name} {'+'.join(kinds)}: {wanted} predicted, {count} sent")
        if abs(wanted - count) > max(SLACK, count // 100):
            wrong.append(f"{name}, {'+'.join(kinds)}: {wanted} predicted, {count} sent")
    return wrong


@pytest.mark.parametrize("kind", APPLICATIONS)
def test_an_application(connect: Connect, volume: Path, tmp_path: Path, version: str, kind: type[Application]) -> None:
    application = kind()
    application.make(volume)
    client = connect("actimeo=600")  # tracing takes longer than attributes are believed otherwise
    host = NfsHost(top=tmp_path / "host", client=client)
    observed, select = host.top / "sw.profile", host.top / "select"
    host.call("observe", client.where, "-o", observed, "--", *application.command(client.where))
    suggest = host.command("suggest", observed, "--root", client.where)
    select.write_bytes(subprocess.run(suggest, check=True, stdout=subprocess.PIPE).stdout)
    wrong = []
    for layer, profile in LAYERS[version]:
        manifest = host.top / f"{layer}.mkm"
        if not manifest.exists():
            inline = "1M" if layer == "erofs" else "0"
            host.call("scan", client.where, "--select-from", select, "-o", manifest, "--inline", inline)
            host.call("build", manifest, "--store", host.store, "--format", layer)
        told = host.call("predict", manifest, observed, "--json", "--nfs", version).messages
        if (layer, profile) == LAYERS[version][0]:
            client.remount()
            found = measured(client, application.command(client.where), overlay=False)
            wrong += compare(version, "plain", told[-1]["requests"], found)
        predictions = (one for one in told if one["message_type"] == "prediction")
        requests = {str(one["profile"]): one["requests"] for one in predictions}[profile]
        client.remount()
        host.activate("--profile", profile)
        found = measured(client, application.command(host.point), overlay=True)
        host.call("deactivate", host.point)
        assert found[0] <= LEFT_MAX
        wrong += compare(version, f"{layer} {profile}", requests, found)
    assert not wrong, json.dumps(wrong, indent=1)
