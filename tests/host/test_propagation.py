"""What a container sees of a switch on the host: what docs/clients.md advises is a belief about the kernel."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.host.hosts import Host

pytestmark = pytest.mark.needs("root", "overlay", "trusted xattrs", "unshare")

# A container's mount namespace: the host's mounts go in and none come out.
_CONTAINER = """
mount --make-rslave /
mount --bind "$1/sites/sw" "$1/itself"; mount --make-rslave "$1/itself"
mount --rbind "$1/sites" "$1/above"; mount --make-rslave "$1/above"
echo ready; read answer
echo itself $(ls "$1/itself/grp/paint"); echo above $(ls "$1/above/sw/grp/paint")
"""


def test_a_container_follows_only_the_directory_above(mount: Mount, tmp_path: Path) -> None:
    shared = mount("tmpfs")
    subprocess.run(["mount", "--make-shared", shared], check=True)
    for name in ("itself", "above", "sites"):
        (shared / name).mkdir()
    host = Host(tmp_path / "host")
    point = shared / "sites" / "sw"
    point.mkdir()
    activate = ("activate", host.store, point, "--lower", host.volume)
    host.release("v1", {"tool": "x"})
    host.publish("grp")
    host.call(*activate)
    try:
        with subprocess.Popen(
            ["unshare", "--mount", "--propagation", "unchanged", "sh", "-ec", _CONTAINER, "sh", shared],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as container:
            assert container.stdout is not None
            assert container.stdout.readline() == "ready\n"
            host.release("v2", {"tool": "x"})
            host.publish("grp")
            host.call(*activate)
            seen, _ = container.communicate("go\n", timeout=60)
    finally:
        host.call("deactivate", point, "--detach")
    assert seen == "itself v1\nabove v1 v2\n"
