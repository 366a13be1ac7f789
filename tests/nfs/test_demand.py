"""The case that started this, on real NFS: a program that asks over 200 directories in vain, and nobody's hand.

69,456 misses of one start; observe, suggest, scan, predict, build, activate; and then at most 45 are left, as the
studio that told of it had left after it had chosen by hand. What is predicted is what is then measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mkmeta.demand.mountstats import difference, parse
from tests.demand.profiles import age
from tests.nfs.conftest import PROFILES, Connect
from tests.nfs.hosts import NfsHost
from tests.nfs.server import Client

pytestmark = [pytest.mark.nfs, pytest.mark.needs("NFS sandbox", "strace")]

SEARCHED = 200  # directories
MISSES = 69_456
LEFT_MAX = 45
PROGRAM = """
import os, sys
top, searched, misses = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
directories = [f"{top}/grp/lib{n:03}/v1/lib" for n in range(searched)]
for number in range(misses):
    try: os.stat(f"{directories[number % searched]}/none{number // searched}")
    except FileNotFoundError: pass
for directory in directories[:20]:
    os.stat(directory + "/one")
    with open(directory + "/two", "rb") as file:
        file.read()
try: os.stat(top + "/etc-of-nobody")
except FileNotFoundError: pass
"""


def make_volume(root: Path, searched: int) -> None:
    for number in range(searched):
        directory = root / f"grp/lib{number:03}/v1/lib"
        directory.mkdir(parents=True)
        for name in ("one", "two", "three"):
            (directory / name).write_bytes(b"x" * 500)
    age(root)


def failed(client: Client, before: bytes) -> tuple[int, Counter[str]]:
    """The LOOKUPs and OPENs that failed since, and all requests by operation."""
    point = bytes(client.where)
    after = Path("/proc/self/mountstats").read_bytes()
    sent = difference(parse(before)[point], parse(after)[point])
    return sum(sent.get(name, (0, 0))[1] for name in ("LOOKUP", "OPEN")), Counter({k: v[0] for k, v in sent.items()})


@pytest.mark.parametrize("mounted", [name for name in PROFILES if name != "data-only"])
def test_without_a_hand_in_between(connect: Connect, volume: Path, tmp_path: Path, version: str, mounted: str) -> None:
    inline = "4K" if version == "3" else "0"
    full = version == "4.2" and mounted == PROFILES[-1]
    searched, misses = (SEARCHED, MISSES) if full else (20, 400)
    make_volume(volume, searched)
    client = connect("actimeo=600")  # tracing takes longer than attributes are believed otherwise
    host = NfsHost(top=tmp_path / "host", client=client)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-S", str(program)]
    observed, select, manifest = host.top / "sw.profile", host.top / "select", host.top / "sw.mkm"

    def run(top: Path) -> list[str]:
        return [*command, str(top), str(searched), str(misses)]

    before = Path("/proc/self/mountstats").read_bytes()
    host.call("observe", client.where, "-o", observed, "--", *run(client.where))
    missed, plain = failed(client, before)
    assert missed == misses + 1, "the traced program asked what it was written to ask"
    rows = [json.loads(line) for line in observed.read_text().splitlines()[1:-1]]
    told = sum(row.get("first_misses", row.get("misses", 0)) for row in rows)
    assert abs(told - missed) <= missed // 1000, "names that were asked for before are known but for one in thousands"
    assert sum(row.get("misses", 0) for row in rows) == missed

    suggested = subprocess.run(
        host.command("suggest", observed, "--root", client.where), check=True, capture_output=True
    )
    select.write_bytes(suggested.stdout)
    assert [line for line in select.read_text().splitlines() if not line.startswith("#")] == ["grp/*/v*/lib"]
    host.call("scan", client.where, "--select-from", select, "-o", manifest, "--inline", inline)
    host.call("build", manifest, "--store", host.store)
    told_by = host.call("predict", manifest, observed, "--json", "--nfs", version, "--min-gain", "misses=99%").messages
    expected = {str(one["profile"]): one["requests"] for one in told_by if one["message_type"] == "prediction"}
    expected["plain"] = told_by[-1]["requests"]

    client.remount()
    host.activate("--profile", mounted)
    for _ in range(2):  # what activation looked at, first of the overlays, then of the volume below
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    before = Path("/proc/self/mountstats").read_bytes()
    subprocess.run(run(host.point), check=True)
    left, after = failed(client, before)
    host.call("deactivate", host.point)
    print(f"| {version} | {mounted} | inline {inline} | {missed} | {left} | {plain.total()} | {after.total()} |")
    print(f"|  expected | {expected['plain']} | {expected[mounted]} |\n|  sent | {dict(plain)} | {dict(after)} |")
    assert left <= LEFT_MAX
    for sent, name in ((plain, "plain"), (after, mounted)):
        requests = expected[name]
        assert isinstance(requests, dict)
        wanted = sum(requests.values())
        assert abs(sent.total() - wanted) <= max(5, wanted // 100), name
        reads, opens = requests["reads"], requests["opens"]
        assert sent["READ"] == reads
        if version == "4.2":
            assert sent["OPEN"] + sent["OPEN_NOATTR"] == sent["CLOSE"] == opens // (2 if name == "plain" else 3)
