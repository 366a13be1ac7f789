"""What runs on a host of tests/nfs/farm.py all the time, in namespaces of its own; stands alone, like a boot of it.

    python -m tests.nfs.host_agent JOB.json

Two loops until a file `stop` appears beside the job: what the shipped timers do (`mkmeta activate`, `mkmeta status
--report`), and programs that start, of all releases that were announced and of the newest that the listing shows. Both
write down what came of it, one JSON object a line.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

PAUSE: Final = 0.4  # seconds between starts
PROGRAM: Final = "bin/run"  # of each release


def main() -> int:
    """Runs until it is told to stop."""
    job = json.loads(Path(sys.argv[1]).read_text())
    stop = Path(sys.argv[1]).with_name("stop")
    polls = threading.Thread(target=poll, args=(job, stop))
    polls.start()
    start_programs(job, stop)
    polls.join()
    return 0


@contextlib.contextmanager
def log(path: str) -> Iterator[IO[str]]:
    """A file that others read while it is written."""
    with open(path, "a", buffering=1) as stream:
        yield stream


def verb(arguments: list[str]) -> tuple[int, str]:
    """Runs mkmeta in a process of its own, which has its modules already: starting Python takes a second here."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        said = io.StringIO()
        code = 70
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                from mkmeta.__main__ import main as mkmeta

                code = mkmeta(arguments)
            except BaseException:
                traceback.print_exc()
        os.write(writing, said.getvalue().encode("utf-8", "backslashreplace")[-4000:])
        os._exit(code)
    os.close(writing)
    with open(reading, "rb") as stream:
        text = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text.decode()


def poll(job: dict[str, Any], stop: Path) -> None:
    """Looks at the pointer and reports, every so many seconds."""
    with log(job["polls"]) as out:
        while True:
            last = stop.exists()
            begun = time.monotonic()
            code, text = verb(["activate", "--config", job["config"], "--json"])
            ended = time.monotonic()
            status, said = verb(["status", "-q", "--config", job["config"], "--report", job["reports"]])
            row = {"begun": begun, "ended": ended, "code": code, "text": text, "status": status, "said": said}
            out.write(json.dumps(row) + "\n")
            if last:
                return
            time.sleep(max(0.0, job["every"] - (time.monotonic() - begun)))


def start_programs(job: dict[str, Any], stop: Path) -> None:
    """Starts the program of each announced release in turn, and that of the newest one of a package."""
    with log(job["starts"]) as out:
        while not stop.exists():
            for release in announced(Path(job["announced"])):
                out.write(json.dumps(start(job["point"], release)) + "\n")
                time.sleep(PAUSE)
            out.write(json.dumps(start_newest(job["point"], job["package"])) + "\n")
            time.sleep(PAUSE)


def announced(path: Path) -> list[str]:
    """The releases that programs are to be started of: those announced and not yet retired."""
    events = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    gone = {event["release"] for event in events if event["event"] == "retired"}
    return list(dict.fromkeys(event["release"] for event in events if event["release"] not in gone))


def start(point: str, release: str) -> dict[str, Any]:
    """Starts the program of a release; says when, and what came of it."""
    begun = time.monotonic()
    command = ["/bin/sh", f"{point}/{release}/{PROGRAM}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"LC_ALL": "C", "PATH": "/bin"})
    row = {"release": release, "begun": begun, "ended": time.monotonic(), "code": done.returncode}
    return row | {"out": done.stdout, "err": done.stderr}


def start_newest(point: str, package: str) -> dict[str, Any]:
    """Starts the program of the newest version whose `package.py` is there, as rez finds it."""
    begun = time.monotonic()
    row: dict[str, Any] = {"release": None, "begun": begun, "code": 1, "out": ""}
    try:
        for version in sorted(os.listdir(f"{point}/{package}"), reverse=True):
            if os.path.exists(f"{point}/{package}/{version}/package.py"):
                return start(point, f"{package}/{version}") | {"begun": begun, "newest": True}
        row["err"] = "No such file or directory: a package.py"
    except OSError as error:
        row["err"] = str(error)
    return row | {"ended": time.monotonic(), "newest": True}


if __name__ == "__main__":
    sys.exit(main())
