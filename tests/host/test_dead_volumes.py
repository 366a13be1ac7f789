"""Servers that are dead: nobody hangs with them, and it is said what they are."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mkmeta.cli import refresh
from mkmeta.host import activation, checks, following
from mkmeta.mounts import switch
from tests.host.hosts import Host
from tests.host.served import Served, needs_fuse

pytestmark = [pytest.mark.needs("root", "overlay"), pytest.mark.skipif(not needs_fuse(), reason="no FUSE")]

SECONDS = 100.0  # after which a call hangs: whoever asks a dead server without a deadline waits for ever


class ServedHost(Host):
    """A host whose volume is on a server."""

    @property
    def served(self) -> Path:
        return self.top / "server"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[ServedHost, Served]]:
    host = ServedHost(tmp_path / "host")
    host.release("v1", {"lib/one": "first\n", "lib/empty": ""})
    (host.served / "notes").write_text("not selected\n")
    try:
        with Served(host.served, host.volume) as server:
            host.publish()
            yield host, server
    finally:
        host.unmount_all()


def ended(host: Host, verb: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """A call, as a program whose output is read to its end: no child may keep that open either."""
    done = subprocess.run(host.command(verb, *args), capture_output=True, text=True, check=False, timeout=SECONDS)
    assert "Traceback" not in done.stderr
    return done


def test_status_says_that_its_volume_does_not_answer(served: tuple[ServedHost, Served]) -> None:
    host, server = served
    host.activate()
    server.hang()
    done = ended(host, "status", host.point)
    assert (done.returncode, "the volume does not answer" in done.stderr) == (22, True), done
    server.resume()
    assert ended(host, "status", host.point).returncode == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN])
def test_errors_of_a_volume_are_said_as_they_are(served: tuple[ServedHost, Served], number: int) -> None:
    host, server = served
    host.activate()
    server.fail(number)
    words = os.strerror(number).lower()
    assert words in ended(host, "status", host.point).stderr.lower()
    assert host.call("status", host.point, check=22)
    refused = host.activate(check=1)
    assert words in refused.err.lower()
    server.resume()
    host.activate()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_doctor_calls_a_volume_that_fails_a_failure(served: tuple[ServedHost, Served], number: int) -> None:
    """And no doubt of its own: what cannot be listed has no layer over it."""
    host, server = served
    server.fail(number)
    done = ended(host, "doctor", "--json", "--lower", host.volume)
    assert (done.returncode, os.strerror(number).lower() in done.stdout.lower()) == (23, True), done


def test_a_server_that_was_killed(served: tuple[ServedHost, Served]) -> None:
    host, server = served
    host.activate()
    server.kill()
    assert "not connected" in host.call("status", host.point, check=22).err
    assert "not connected" in host.activate(check=1).err
    host.call("deactivate", host.point)
    assert "not connected" in host.activate(check=1).err
    assert (host.stack(), host.leftovers()) == ([], [])


@pytest.mark.parametrize("remembered", [True, False])
def test_a_server_that_was_started_again(served: tuple[ServedHost, Served], remembered: bool) -> None:
    """Where nothing is known of how it was mounted, the layer itself does not answer."""
    host, server = served
    host.activate()
    if not remembered:
        shutil.rmtree(host.run / "mounts")
    server.kill()
    subprocess.run(["umount", "-l", host.volume], check=True)
    server.start()
    words = "mounted anew" if remembered else "not connected"
    assert words in host.call("status", host.point, check=22).err
    assert host.activate("--json").messages[-1]["action"] == "switched"
    assert (host.point / "grp/paint/v1/lib/one").read_text() == "first\n"
    host.call("status", host.point)


def test_who_waits_for_a_dead_server_is_in_nobodys_way(served: tuple[ServedHost, Served]) -> None:
    host, server = served
    other = Host(host.top / "other")
    other.release("v1", {"lib/one": "other\n"})
    other.publish()
    host.activate()
    server.hang()
    waiting = subprocess.Popen(host.command("activate", host.store, host.point), stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(1.0)
        with_run = ("--wait", "1", "--run-dir", host.run)
        done = ended(other, "activate", other.store, other.point, "--lower", other.volume, *with_run)
        assert done.returncode == 0, done
        assert ended(host, "deactivate", host.point, "--detach", "--wait", "1").returncode == 0
        assert waiting.poll() is None
        waiting.terminate()
        assert waiting.wait(SECONDS) == 128 + signal.SIGTERM
    finally:
        waiting.kill()
        waiting.communicate()
        other.unmount_all()
    assert host.stack() == []


def test_detaching_asks_the_server_nothing(served: tuple[ServedHost, Served]) -> None:
    host, server = served
    host.activate()
    assert (host.point / "notes").read_text() == "not selected\n"
    server.hang()
    assert ended(host, "deactivate", host.point, "--detach").returncode == 0
    assert (host.stack(), host.leftovers()) == ([], [])


def test_refreshing_a_dead_volume_gives_up(served: tuple[ServedHost, Served], monkeypatch: pytest.MonkeyPatch) -> None:
    host, server = served
    host.activate()
    server.hang()
    monkeypatch.setattr(refresh, "_SECONDS", 1.0)
    assert "does not answer" in host.call("refresh", host.point, check=1).err


@pytest.mark.parametrize("mounted", [True, False])
def test_following_a_pointer_on_a_dead_server_gives_up(
    served: tuple[ServedHost, Served], monkeypatch: pytest.MonkeyPatch, mounted: bool
) -> None:
    """A timer that starts it again finds out when the server is back; one that waits for it never would."""
    host, server = served
    host.call("publish", host.store, "--pointer", host.served / "sw.json")
    followed: list[str | Path] = [
        host.top / "client",
        host.point,
        "--lower",
        host.volume,
        "--follow",
        host.volume / "sw.json",
    ]
    if mounted:
        host.call("activate", *followed)
    before = host.stack()
    server.hang()
    monkeypatch.setattr(following, "SECONDS", 1.0)
    assert "does not answer" in host.call("activate", *followed, check=1).err
    assert host.stack() == before
    server.resume()
    host.call("activate", *followed)
    assert (host.point / "grp/paint/v1/lib/one").read_text() == "first\n"


@pytest.mark.parametrize("profile", ["nested", "merge", "data-only"])
def test_a_volume_that_dies_while_it_is_mounted(
    served: tuple[ServedHost, Served], monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    """After it was asked, under the lock: then the lock is held for a while, and nothing has changed."""
    host, server = served
    host.activate("--profile", profile)
    before = host.stack()
    host.release("v2", {"lib/two": "second\n"})
    host.publish()

    def then_dies(*_args: object, **_kwargs: object) -> None:
        server.hang()

    monkeypatch.setattr(activation, "check_is_the_one", then_dies)
    monkeypatch.setattr(switch, "SECONDS", 1.0)
    done = host.activate("--profile", profile, check=None)
    server.resume()
    if done.code:  # where the kernel asks nothing of the volume when it mounts, it is mounted
        assert (done.code, "does not answer" in done.err, host.stack()) == (1, True, before)
    monkeypatch.undo()
    host.activate("--profile", profile)
    assert (host.point / "grp/paint/v2/lib/two").read_text() == "second\n"
    assert host.leftovers() == []


def test_the_name_a_manifest_was_made_under_may_be_on_a_dead_server(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_side, dead = tmp_path / "server", tmp_path / "dead"
    shutil.copytree(host.volume, server_side)
    dead.mkdir()
    monkeypatch.setattr(checks, "_SECONDS", 1.0)
    with Served(server_side, dead) as server:
        host.call("scan", dead / "grp", "--select", "paint/v*", "-o", host.top / "sw.mkm")
        host.call("build", host.top / "sw.mkm", "--store", host.store)
        server.hang()
        refused = host.call("activate", host.store, host.point, "--lower", host.volume / "grp", check=16)
        assert "--other-root" in refused.err
        host.call("activate", host.store, host.point, "--lower", host.volume / "grp", "--other-root")
    assert (host.point / "paint/v1/lib/one").read_text() == "first\n"
    subprocess.run(["umount", "-l", dead], check=True)


def test_somebody_elses_dead_filesystem(host: Host, tmp_path: Path) -> None:
    """Mounted beside, with a file that a program has open: none of our business."""
    source, dead = tmp_path / "source", tmp_path / "dead"
    source.mkdir()
    (source / "file").write_text("x")
    dead.mkdir()
    host.activate()
    host.release("v2", {"lib/two": "second\n"})
    host.publish()
    with Served(source, dead) as server:
        program = subprocess.Popen(["sh", "-c", "exec sleep 100 <file"], cwd=dead)
        reader = subprocess.Popen(["sleep", "100"], cwd=host.point)
        try:
            time.sleep(0.2)
            server.hang()
            assert ended(host, "status", host.point).returncode == 21
            done = ended(host, "activate", host.store, host.point)
            assert done.returncode == 0, done
            assert ended(host, "status", host.point).returncode == 0
            busy = subprocess.Popen(["sleep", "100"], cwd=host.point)
            time.sleep(0.2)
            assert ended(host, "deactivate", host.point).returncode == 1
            busy.kill()
            busy.wait()
            assert ended(host, "refresh", host.point).returncode == 0
            assert ended(host, "rollback", host.point).returncode == 0
            assert ended(host, "deactivate", host.point).returncode == 0
        finally:
            server.resume()
            for one in (program, reader):
                one.kill()
                one.wait()
    subprocess.run(["umount", "-l", dead], check=True)


def test_a_dead_filesystem_below_the_layer_comes_along(host: Host, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (host.volume / "local").mkdir()
    host.activate()
    with Served(source, host.point / "local") as server:
        server.hang()
        host.release("v2", {"lib/two": "second\n"})
        host.publish()
        done = ended(host, "activate", host.store, host.point)
        server.resume()
        assert done.returncode == 0, done
        assert os.path.ismount(host.point / "local")
