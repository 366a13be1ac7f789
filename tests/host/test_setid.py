"""What a manifest may say of set-ID bits and devices: it counts when somebody on this host answers for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.host.hosts import Host

pytestmark = pytest.mark.needs("root", "overlay", "setpriv")


@pytest.fixture
def host(host: Host) -> Host:
    """With a program that says who it runs as, set-user-ID root, and a device, on a volume that everybody can reach."""
    for directory in (host.top, *host.top.parents):
        if os.stat(directory).st_uid == 0 and len(directory.parts) > 2:
            directory.chmod(0o755)
    tool = host.volume / "grp/paint/v1/bin/whoami"
    shutil.copy("/usr/bin/id", tool)
    tool.chmod(0o4755)
    os.mknod(host.volume / "grp/paint/v1/zero", 0o020666, os.makedev(1, 5))
    host.publish()
    return host


def _runs_as(host: Host) -> str:
    """Whom an ordinary user becomes by the program."""
    program = str(host.point / "grp/paint/v1/bin/whoami")
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program, "-u"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _device_opens(host: Host) -> bool:
    try:
        os.close(os.open(host.point / "grp/paint/v1/zero", os.O_RDONLY))
    except PermissionError:
        return False
    return True


@pytest.mark.parametrize("profile", ["nested", "merge", "data-only", "upper"])
def test_by_default_they_have_no_effect(host: Host, profile: str) -> None:
    assert "nosuid,nodev" in host.activate("--profile", profile).err
    assert (_runs_as(host), _device_opens(host)) == ("65534", False)
    assert os.stat(host.point / "grp/paint/v1/bin/whoami").st_mode == 0o104755  # they show


def test_they_have_when_that_is_asked_for(host: Host) -> None:
    host.activate("--allow-setid")
    assert (_runs_as(host), _device_opens(host)) == ("0", True)
    assert host.activate("--allow-setid", "--json").messages[-1]["action"] == "unchanged"
    host.release("v2", {"lib/two": "second\n"})
    host.publish()
    host.activate("--allow-setid")
    host.call("rollback", host.point)
    assert _runs_as(host) == "0"  # as it was
    assert host.activate("--json").messages[-1]["action"] == "switched"
    assert _runs_as(host) == "65534"


def test_they_have_when_the_manifest_was_named(host: Host) -> None:
    """A new generation of the same manifest, as the one there is was built of whatever came."""
    identifier = host.publish()
    built = host.call("build", host.top / "sw.mkm", "--store", host.store, "--expect-id", identifier, "--json")
    assert built.messages[-1]["built"] is True
    host.activate()
    assert (_runs_as(host), _device_opens(host)) == ("0", True)
    again = host.call("build", host.top / "sw.mkm", "--store", host.store, "--json")
    assert again.messages[-1]["built"] is False


def test_the_id_of_a_pointer_is_nobodys_word(host: Host) -> None:
    pointer = host.volume / "sw.json"
    host.call("publish", host.store, "--pointer", pointer)
    client = host.top / "client"
    host.call("activate", client, host.point, "--lower", host.volume, "--follow", pointer)
    assert (_runs_as(host), _device_opens(host)) == ("65534", False)


def test_the_flags_of_the_volume_count_all_the_same(host: Host) -> None:
    subprocess.run(["mount", "--bind", host.volume, host.volume], check=True)
    subprocess.run(["mount", "-o", "remount,bind,nosuid,nodev", host.volume], check=True)
    host.activate("--allow-setid")
    assert (_runs_as(host), _device_opens(host)) == ("65534", False)


def test_generations_of_before_are_nobodys_word(host: Host, tmp_path: Path) -> None:
    record = max(host.store.glob("generations/*/generation.json"))
    assert '"vouched": false' in record.read_text()
    record.write_text(record.read_text().replace('"vouched": false, ', ""))
    host.activate()
    assert _runs_as(host) == "65534"
