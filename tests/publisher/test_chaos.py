"""Publishers and watchers that are killed, in each other's way, without room, without a server and with wrong clocks.

In the end, what is published is what a scan of everything gives; at any time, the pointer names a whole manifest.
MKMETA_CHAOS_ROUNDS makes it longer; MKMETA_CHAOS_SEED, which each run prints (`-rP`), brings back the same things.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.errors import ExitCode
from mkmeta.linux.mount import MNT_DETACH, umount2
from tests.conftest import Mount
from tests.host.served import Served, needs_fuse
from tests.publisher.sites import Site
from tests.store.processes import fork, run_killed, wait

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("MKMETA_CHAOS_ROUNDS", "50"))
SEED = int(os.environ.get("MKMETA_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
AHEAD_NS = 300 * 10**9  # a clock five minutes ahead
FILLED = 64 << 10  # bytes left of the filesystem when it is full: less than a call needs, with its manifests


@dataclass
class ServedSite(Site):
    """What is published is seen through a server that can stop; whoever copies releases is on the server."""

    @property
    def seen(self) -> Path:
        return self.top / "seen"

    def configure(self, more: str = "", select: str = "grp/*/v*/lib") -> None:
        super().configure(more, select)
        self.seen.mkdir(exist_ok=True)
        text = self.config.read_text()
        self.config.write_text(text.replace(f'volume = "{self.volume}"', f'volume = "{self.seen}"'))


class Chaos:
    """One site, and what happens to it."""

    def __init__(self, site: Site, server: Served, seed: int) -> None:
        self.site = site
        self.server = server
        self.chance = random.Random(seed)
        self.number = 0
        self.named = ""  # the release that the last call was for
        self.there = ["paint/v1"]
        self.ends: Counter[str] = Counter()  # how calls ended, by round

    def new(self) -> str:
        """A release, copied to the volume."""
        self.number += 1
        name = f"p{self.chance.randrange(4)}/v{self.number}"
        self.site.make(name, files=self.chance.randrange(1, 6))
        self.there.append(name)
        return name

    def some(self) -> str:
        """A path for a publisher: new, gone, written anew in its place, or known already."""
        match self.chance.randrange(5):
            case 0 if len(self.there) > 2:
                name = self.there.pop(self.chance.randrange(len(self.there)))
                self.site.remove(name)
                return name
            case 1:
                name = self.chance.choice(self.there)
                file = self.site.volume / "grp" / name / "lib/m0.py"
                file.write_bytes(self.chance.randbytes(len(file.read_bytes())))
                return name
            case 2:
                return self.chance.choice(self.there)
            case _:
                return self.new()

    def call(self, *args: str, ahead: bool = False) -> Callable[[], int]:
        """One of the two programs, with little to say."""

        def run() -> int:
            if ahead:
                now = time.time_ns
                time.time_ns = lambda: now() + AHEAD_NS
            with open(os.devnull, "w") as silent:
                os.dup2(silent.fileno(), 2)
                os.dup2(silent.fileno(), 1)
            return main([args[0], "-q", "--config", str(self.site.config), *args[1:]])

        return run

    def release(self, *, ahead: bool = False) -> Callable[[], int]:
        self.named = self.some()
        return self.call("release", f"grp/{self.named}", ahead=ahead)

    def watch(self, *, ahead: bool = False) -> Callable[[], int]:
        return self.call("watch", "--once", ahead=ahead)

    def any(self) -> Callable[[], int]:
        self.named = ""
        ahead = self.chance.random() < 0.3
        return self.watch(ahead=ahead) if self.chance.random() < 0.4 else self.release(ahead=ahead)

    # --- what happens ---

    def killed(self) -> None:
        """At a step, any of those that it has."""
        run = self.any()
        self.ends[f"killed {run_killed(lambda: lenient(run()), self.chance.randrange(260))}"] += 1

    def at_once(self) -> None:
        """Two or three, one of which may be killed at any moment."""
        running, named = [], {}
        for _ in range(self.chance.randrange(2, 4)):
            running.append(fork(self.any()))
            named[running[-1]] = self.named
        if self.chance.random() < 0.5:
            time.sleep(self.chance.random() / 5)
            os.kill(running[0], 9)
        published = {named[pid] for pid in self.end("at once", running)} & set(self.there)
        assert self.site.names() >= published, "what a call said is published, no other call takes back"

    def written_meanwhile(self) -> None:
        """A release is copied, and one is written anew in its place, while a watcher and a publisher look."""
        running = [fork(self.watch()), fork(self.release())]
        name = self.chance.choice(self.there)
        for number in range(5):
            (self.site.volume / "grp" / name / f"lib/m{number}.py").write_bytes(self.chance.randbytes(9))
        self.new()
        self.end("written", running)

    def without_room(self) -> None:
        """What fails for want of room has changed nothing; with room it goes on."""
        filler = self.site.top / "filler"
        with filler.open("wb", buffering=0) as stream:
            try:
                while True:
                    stream.write(bytes(1 << 16))
            except OSError:
                pass
            stream.truncate(max(0, stream.tell() - self.chance.randrange(0, FILLED, 4096)))
        before = self.site.pointer.serial
        for run in (self.watch(), self.call("release", f"grp/{self.chance.choice(self.there)}")):
            self.end("full", [fork(run)])
        assert self.site.pointer.serial >= before
        self.check()
        filler.unlink()

    def without_server(self) -> None:
        """It stops in the middle of it, for a while: then they wait, one may be killed, and all goes on after."""
        running = [fork(self.watch()), fork(self.release())]
        time.sleep(self.chance.random() / 3)
        self.server.hang()
        time.sleep(self.chance.random() / 3)
        if self.chance.random() < 0.5:
            os.kill(running[self.chance.randrange(2)], signal.SIGKILL)
        self.check()
        self.server.resume()
        self.end("stopped", running)

    def with_errors(self) -> None:
        """It answers with errors, from some moment on, for a while. Nothing is taken for gone."""
        before = self.site.names()
        running = [fork(self.watch())]
        time.sleep(self.chance.random() / 3)
        self.server.fail(self.chance.choice((errno.EIO, errno.EACCES, errno.ESTALE)))
        running.append(fork(self.call("release", f"grp/{self.chance.choice(self.there)}")))
        self.end("errors", running)
        self.end("errors", [fork(self.watch())])
        assert self.site.names() >= before & set(self.there)
        self.server.resume()

    def end(self, word: str, running: list[int]) -> list[int]:
        """Waits, and counts. Returns those that ended with 0."""
        done = []
        for pid in running:
            code = wait(pid)
            assert code in FINE, (word, code)
            self.ends[f"{word} {code}"] += 1
            done += [pid] if code == 0 else []
        return done

    def step(self) -> None:
        """One round."""
        rounds = (
            *(self.killed, self.killed, self.at_once, self.written_meanwhile, self.without_room),
            *(self.without_server, self.with_errors),
        )
        self.chance.choice(rounds)()
        self.check()

    def check(self) -> None:
        """The pointer names a whole manifest; reading it checks all of it."""
        assert self.site.names()


# published, or refused for a reason; never a traceback, which ends with 99 in `fork`
FINE = {
    *(
        ExitCode.DONE,
        ExitCode.FAILED,
        ExitCode.USAGE,
        ExitCode.INCOMPLETE,
        ExitCode.DIFFERENT,
        ExitCode.NOTHING_SELECTED,
    ),
    *(ExitCode.LEFT_OUT, ExitCode.LOCKED, ExitCode.UNFINISHED, -9),
}


def lenient(code: int) -> int:
    """For `run_killed`: what may be refused need not succeed."""
    return 0 if code in FINE else code


@pytest.mark.needs("root")
@pytest.mark.skipif(not needs_fuse(), reason="no FUSE")
def test_what_is_published_in_the_end_is_what_a_full_scan_gives(mount: Mount) -> None:
    site = ServedSite(mount("tmpfs", "size=8m") / "site")
    site.configure("quiet = 0\n")
    try:
        with Served(site.volume, site.seen) as server:
            chaos = Chaos(site, server, SEED)
            print(f"MKMETA_CHAOS_SEED={SEED}")  # noqa: T201 - pytest shows it with a failure
            site.call("release", "-q")
            for number in range(1, ROUNDS + 1):
                chaos.step()
                if number % 20 == 0 or number == ROUNDS:
                    settle(chaos)
    finally:
        umount2(os.fsencode(site.seen), MNT_DETACH)
    print(ROUNDS, dict(sorted(chaos.ends.items())))  # noqa: T201 - by -rP
    if ROUNDS >= 100:  # it was chaos, and they were publishing nevertheless
        ends = chaos.ends
        assert min(ends["killed True"], ends["at once 0"], ends["full 1"], ends["stopped 0"], ends["errors 1"]) > 0, (
            ends
        )


def settle(chaos: Chaos) -> None:
    """Peace: a watcher takes what is new and gone, whoever wrote in place says so, and nothing is left to publish."""
    site = chaos.site
    site.call("watch", "--once", "-q", check=None)
    rewritten = [f"grp/{name}" for name in chaos.there]
    site.call("release", "-q", *rewritten)
    assert site.names() == set(chaos.there)
    assert site.full_scan() == site.pointer.id.hex()
    before = site.pointer
    time.sleep(0.02)
    site.call("watch", "--once", "-q")
    site.call("release", "-q")
    assert (site.pointer.id, site.names()) == (before.id, set(chaos.there))
    there = os.listdir(site.top) + os.listdir(site.pointer_path.parent)
    left = [name for name in there if ".mkmeta-" in name or name.startswith("mkmeta-")]
    assert left == [], "no rubbish of those that were killed"
    for manifest in site.pointer_path.parent.glob("*.mkm"):
        os.utime(manifest, (0, 0))  # days have passed, so that publishing removes what is not named any more
    while len(chaos.there) > 6:  # as volumes are tidied up
        name = chaos.there.pop(0)
        shutil.rmtree(site.volume / "grp" / name)
        site.call("release", "-q", f"grp/{name}")
