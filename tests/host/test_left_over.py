"""Inner mounts that have to stay when a layer goes, since somebody elsewhere still has it: said, and removed later."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from mkmeta.linux import mount as calls
from tests.host.hosts import Host

pytestmark = pytest.mark.needs("root", "overlay")


@pytest.fixture
def container(host: Host) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a mount namespace of its own that has a copy of the layer."""
    host.activate()
    program = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "100"])
    time.sleep(0.3)
    yield program
    program.kill()
    program.wait()


def _ended(program: subprocess.Popen[bytes]) -> None:
    program.kill()
    program.wait()
    time.sleep(0.1)


def _left(host: Host) -> list[dict[str, object]]:
    messages = host.call("status", "--json", check=None).messages
    return [one for one in messages if one["message_type"] == "left" and str(host.top) in str(one["inner"])]


def test_who_has_it_is_said(host: Host, container: subprocess.Popen[bytes]) -> None:
    inner = os.fsdecode(host.live().inner_path or b"")
    users = [{"process": container.pid, "command": "sleep"}]
    (summary,) = host.call("deactivate", host.point, "--json").messages
    assert summary["left"] == {"inner": inner, "short_id": summary["short_id"], "users": users, "copies": []}
    assert [(one["inner"], one["users"]) for one in _left(host)] == [(inner, users)]
    assert f"{container.pid} (sleep)" in host.call("status", host.point, check=20).err
    _ended(container)
    assert [(one["inner"], one["users"]) for one in _left(host)] == [(inner, [])]
    assert host.leftovers() == [inner]


@pytest.mark.parametrize("verb", ["gc", "activate", "deactivate"])
def test_when_it_is_free_something_removes_it(host: Host, container: subprocess.Popen[bytes], verb: str) -> None:
    assert "is still mounted: in the mount namespace" in host.call("deactivate", host.point).err
    calls_of = {
        "gc": (("gc", host.store), 0),
        "activate": (("activate", host.store, host.point, "--lower", host.volume), 0),
        "deactivate": (("deactivate", host.point), 20),
    }
    (name, *args), code = calls_of[verb]
    host.call(str(name), *args, check=None)
    assert len(_left(host)) == 1  # not before
    if verb == "activate":
        host.call("deactivate", host.point)
    _ended(container)
    host.call(str(name), *args, check=code)
    assert _left(host) == []
    assert host.leftovers() == []


def test_a_layer_that_was_unmounted_by_hand(host: Host) -> None:
    host.activate()
    calls.umount2(os.fsencode(host.point))
    assert len(_left(host)) == 1
    host.call("deactivate", host.point, check=20)
    assert (_left(host), host.leftovers()) == ([], [])


def test_gc_stands_in_nobodys_way(host: Host) -> None:
    """An inner mount is swept under the lock of its run directory, or not now."""
    host.activate()
    calls.umount2(os.fsencode(host.point))
    lock = os.open(host.run / "lock", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    host.call("gc", host.store)
    assert len(_left(host)) == 1
    os.close(lock)
    host.call("gc", host.store)
    assert _left(host) == []


def test_a_bind_mount_here_is_said_too(host: Host) -> None:
    container = host.top / "container"
    container.mkdir()
    host.activate()
    subprocess.run(["mount", "--bind", host.point, container], check=True)
    assert f"is still mounted: at {container}, by bind" in host.call("deactivate", host.point).err
    assert [one["copies"] for one in _left(host)] == [[{"path": str(container)}]]
    assert (container / "grp/paint/v1/lib/one").read_text() == "first\n"
    subprocess.run(["umount", container], check=True)
    host.call("gc", host.store)
    assert _left(host) == []
