"""Three layers for minutes: everything at once, killed at any moment, and nobody notices; nothing is left over.

MKMETA_SOAK_SECONDS says how long (60).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mkmeta.linux.mountinfo import mounts
from tests.host.hosts import Host

pytestmark = [pytest.mark.needs("root", "overlay", "unshare"), pytest.mark.slow]

SECONDS = float(os.environ.get("MKMETA_SOAK_SECONDS", "60"))

# Reads a layer as of one opened root: that is one mount, whatever happens to the mount point. Its listing is that of
# one generation, `n0` to `nK`, and every file can be read. With `always`, the path is never without a layer either.
_READER = """
import os, sys
point, stop, always = sys.argv[1], sys.argv[2], sys.argv[3] == "always"
rounds = 0
while not os.path.exists(stop):
    root = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if "grp" not in os.listdir(root):
            assert not always, "no layer"
            continue
        found = set(os.listdir(os.open("grp/paint/v1/lib", os.O_RDONLY, dir_fd=root)))
        assert found == {f"n{number}" for number in range(len(found))}, found
        for name in found:
            with open(os.open(f"grp/paint/v1/lib/{name}", os.O_RDONLY, dir_fd=root)) as file:
                assert file.read() == f"this is {name}\\n", name
        if always:
            os.stat(point + "/grp/paint/v1/lib/n0")
        rounds += 1
    finally:
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2:
                try:
                    os.close(int(name))
                except OSError:
                    pass
print(rounds)
"""


class SoakHost(Host):
    """Layers of one host: one run directory for all."""

    @property
    def run(self) -> Path:
        return self.top.parent / "run"

    def __post_init__(self) -> None:
        for directory in (self.volume, self.point):
            directory.mkdir(parents=True)
        self.run.mkdir(exist_ok=True)
        self.files = 0

    def publish_more(self) -> None:
        """Another generation, with one more file."""
        self.release("v1", {f"lib/n{self.files}": f"this is n{self.files}\n"})
        self.files += 1
        self.kind = ["directory", "erofs"][self.files // 2 % 2]
        self.publish()


def _step(host: SoakHost, chance: random.Random, *, may_go: bool) -> list[str]:
    """What is done next to a layer."""
    activate = ("activate", host.store, host.point, "--lower", host.volume, "--wait", "60")
    verbs: list[tuple[str | Path, ...]] = [
        activate,
        activate,
        (*activate, "--profile", chance.choice(["nested", "merge", "data-only"])),
        ("rollback", host.point),
        ("refresh", host.point),
        ("gc", host.store, "--keep", "1", "--min-age", "0"),
        ("status", host.point),
    ]
    if may_go:
        verbs += [("deactivate", host.point), ("deactivate", host.point, "--detach")]
    verb, *args = chance.choice(verbs)
    return host.command(str(verb), *args)


@pytest.mark.timeout(SECONDS * 3 + 300)
def test_soak(tmp_path: Path) -> None:
    chance = random.Random(10)
    hosts = [SoakHost(tmp_path / f"layer{number}") for number in range(3)]
    stop = tmp_path / "stop"
    readers: list[subprocess.Popen[str]] = []
    apart: list[subprocess.Popen[bytes]] = []
    codes: dict[tuple[str, int], int] = {}
    try:
        for host in hosts:
            host.publish_more()
            host.publish_more()
            host.activate()
        for host in (*hosts, hosts[-1]):
            command = [sys.executable, "-c", _READER, str(host.point), str(stop)]
            command.append("always" if host is hosts[-1] else "sometimes")
            readers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            assert all(reader.poll() is None for reader in readers), [
                one.communicate() for one in readers if one.poll()
            ]
            host = chance.choice(hosts)
            if chance.random() < 0.15 and host.files < 40:
                host.publish_more()
            if chance.random() < 0.3:
                command = ["unshare", "--mount", "--propagation", "private", "sleep", f"{chance.uniform(0.2, 4):.1f}"]
                apart.append(subprocess.Popen(command))
            _together(hosts, chance, codes)
        stop.touch()
        for reader in readers:
            out, err = reader.communicate(timeout=60)
            assert (reader.returncode, err) == (0, "")
            assert int(out) > SECONDS / 10
        for program in apart:
            program.wait()
        killed = {-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM}
        assert {code for _verb, code in codes} <= {0, 1, 15, 20, 21, 22, *killed}, codes
        _nothing_is_left(hosts)
    finally:
        stop.touch()
        _end(readers)
        _end(apart)
        for host in hosts:
            host.unmount_all()
            Host.unmount_all(host)


def _end(programs: list[subprocess.Popen[str]] | list[subprocess.Popen[bytes]]) -> None:
    for program in programs:
        program.kill()
        program.wait()


def _together(hosts: list[SoakHost], chance: random.Random, codes: dict[tuple[str, int], int]) -> None:
    """A few calls at once; some are ended at any moment."""
    steps = [_step(host, chance, may_go=host is not hosts[-1]) for host in chance.sample(hosts, chance.randint(1, 3))]
    calls = [subprocess.Popen(step, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for step in steps]
    for call in calls:
        if chance.random() < 0.3:
            time.sleep(chance.uniform(0.05, 0.6))
            call.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
    for step, call in zip(steps, calls, strict=True):
        _out, err = call.communicate(timeout=120)
        assert "Traceback" not in err, (step, err)
        key = (step[3], call.returncode)
        codes[key] = codes.get(key, 0) + 1


def _nothing_is_left(hosts: list[SoakHost]) -> None:
    """Once everything is over and each layer was put in order once more."""
    for host in hosts:
        host.activate()
        assert len(host.stack()) == 1
        host.call("status", host.point)
        host.call("deactivate", host.point)
        host.call("gc", host.store, "--keep", "1", "--min-age", "0")
        names = sorted(path.name for path in (host.store / "generations").iterdir())
        assert all(name[0] != "." for name in names), names
        assert len(names) <= 2, names  # the newest, and where `current` is
    run = hosts[0].run
    assert (os.listdir(run / "inner"), os.listdir(run / "mounts")) == ([], [])
    top = os.fsencode(run.parent) + b"/"
    assert [one.point for one in mounts() if one.point.startswith(top)] == []
