"""The units of examples/systemd under a living systemd: boot, a volume that is late or absent, a switch by timer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.machine import TARGET, TOP, Machine

pytestmark = pytest.mark.needs("root", "overlay", "loop mounts", "EROFS mounts", "trusted xattrs", "living systemd")

EXAMPLES = TOP / "examples" / "systemd"
MKMETA = "/opt/mkmeta/bin/mkmeta"
VOLUME, LAYER, TIMER = "mnt-sw.mount", "mkmeta-activate@sw.service", "mkmeta-refresh@sw.timer"
SYSTEM = "etc/systemd/system"
LATE = """\
[Unit]
Before={volume}
DefaultDependencies=no
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -c 'sleep 2; ! test -e /etc/volume-is-away'
"""
MOUNT = """\
[Unit]
Requires=late.service
After=late.service
[Mount]
What=/srv/volume.img
Where=/mnt/sw
Type=ext4
Options=loop,_netdev
"""
OFTEN = "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/2\nRandomizedDelaySec=0\n"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A client as README describes one, its volume on an image; nothing of mkmeta's is enabled yet."""
    stores = tmp_path / "stores"
    stores.mkdir()
    with Machine(tmp_path / "machine", {stores: "/var/lib/mkmeta"}) as made:
        made.write(MKMETA[1:], f"#!/bin/sh\nPYTHONPATH='{TOP}' exec '{sys.executable}' -m mkmeta \"$@\"\n", 0o755)
        for unit in EXAMPLES.rglob("*"):
            if unit.is_file():
                where = "etc/mkmeta" if unit.suffix == ".toml" else SYSTEM
                made.write(f"{where}/{unit.relative_to(EXAMPLES)}", unit.read_text())
        made.write(f"{SYSTEM}/late.service", LATE.format(volume=VOLUME))
        made.write(f"{SYSTEM}/{VOLUME}", MOUNT)
        made.write(f"{SYSTEM}/{TIMER}.d/often.conf", OFTEN)
        made.write("sw/.keep", "")
        os.unlink(made.disk / "sw/.keep")
        made.write("srv/volume.img", "")
        os.truncate(made.disk / "srv/volume.img", 64 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(made.disk / "srv/volume.img")], check=True)
        yield made


def publish(machine: Machine, release: str) -> None:
    """Writes a release to the mounted volume, and announces it."""
    machine.run("mkdir", "-p", f"/mnt/sw/grp/{release}", "/mnt/sw/.mkmeta")
    machine.run("sh", "-c", f"echo {release} >/mnt/sw/grp/{release}/tool")
    machine.run(MKMETA, "scan", "/mnt/sw", "--select", "grp/*", "-q", "-o", "/var/lib/mkmeta/sw.mkm")
    machine.run(MKMETA, "build", "/var/lib/mkmeta/sw.mkm", "--store", "/var/lib/mkmeta/publisher", "-q")
    machine.run(MKMETA, "publish", "/var/lib/mkmeta/publisher", "--pointer", "/mnt/sw/.mkmeta/sw.json", "-q")


def generation(machine: Machine) -> int | None:
    """Which one is mounted."""
    printed = machine.run(MKMETA, "status", "/sw", "--json", check=False)
    found = [json.loads(line) for line in printed.splitlines()]
    return next((line["generation"] for line in found if line.get("mountpoint") == "/sw"), None)


def at(machine: Machine, unit: str, event: str) -> int:
    """When something happened, in µs since the boot."""
    return int(machine.run("systemctl", "show", unit, "-p", f"{event}TimestampMonotonic", "--value"))


def test_a_client_from_boot_to_boot(machine: Machine) -> None:
    machine.boot()
    machine.run("systemctl", "start", VOLUME)
    publish(machine, "v1")
    machine.run("systemctl", "add-wants", TARGET, LAYER)
    machine.run("systemctl", "enable", "-q", TIMER)
    machine.shut_down()

    machine.boot()
    machine.wait_for(LAYER, "active")
    assert machine.run("cat", "/sw/grp/v1/tool") == "v1"
    assert machine.run("findmnt", "-no", "FSTYPE", "/sw") == "overlay"
    assert generation(machine) == 1
    assert at(machine, "late.service", "ExecMainExit") <= at(machine, VOLUME, "ActiveEnter")
    assert at(machine, VOLUME, "ActiveEnter") <= at(machine, LAYER, "ExecMainStart")

    machine.wait_for(TIMER, "active")
    publish(machine, "v2")
    machine.wait_until(lambda: generation(machine) == 2, "no switch by the timer")
    assert machine.run("cat", "/sw/grp/v2/tool") == "v2"
    assert machine.run("systemctl", "is-failed", "mkmeta-refresh@sw.service", check=False) != "failed"

    machine.run("systemctl", "start", "mkmeta-gc@sw.service")
    assert VOLUME in machine.run("systemctl", "show", "-P", "After", LAYER).split(), (
        "which is what orders stopping, too"
    )
    machine.shut_down()
    assert "target is busy" not in machine.log()
    header = subprocess.run(
        ["dumpe2fs", "-h", str(machine.disk / "srv/volume.img")], capture_output=True, text=True, check=True
    ).stdout
    assert "needs_recovery" not in header, "the volume was not unmounted"

    machine.boot()
    machine.wait_for(LAYER, "active")
    assert generation(machine) == 2
    assert machine.run("cat", "/sw/grp/v2/tool") == "v2"
    machine.run("sh", "-c", "echo 'format = \"erofs\"' >>/etc/mkmeta/sw.toml")  # from now on, layers are images
    publish(machine, "v3")
    machine.wait_until(lambda: generation(machine) == 3, "no switch by the timer")
    assert machine.run("findmnt", "-t", "erofs", "-no", "FSTYPE") == "erofs"
    assert machine.run("cat", "/sw/grp/v3/tool") == "v3"
    machine.shut_down()


def test_a_volume_that_is_away_at_boot(machine: Machine) -> None:
    """The layer is not mounted over the empty directory, and is when the volume has come and the unit is started."""
    machine.boot()
    machine.run("systemctl", "start", VOLUME)
    publish(machine, "v1")
    machine.run("systemctl", "add-wants", TARGET, LAYER)
    machine.run("touch", "/etc/volume-is-away")
    machine.shut_down()

    machine.boot()
    machine.wait_for("late.service", "failed")
    machine.wait_until(
        lambda: machine.run("systemctl", "is-system-running", check=False) in ("degraded", "running"), "still booting"
    )
    assert machine.run("systemctl", "is-active", LAYER, check=False) != "active"
    assert machine.run("findmnt", "-no", "FSTYPE", "/sw", check=False) == ""
    machine.run("rm", "/etc/volume-is-away")
    machine.run("systemctl", "start", LAYER)
    assert machine.run("cat", "/sw/grp/v1/tool") == "v1"
    machine.run("systemctl", "stop", LAYER)
    assert machine.run("findmnt", "-no", "FSTYPE", "/sw", check=False) == ""
    machine.run("systemctl", "stop", VOLUME)
    machine.shut_down()
