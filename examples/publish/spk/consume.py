"""Publishes what SPK tells of: events as JSON, one a line, on standard input, from any Kafka client (README.md)."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Final

LINE_MAX: Final = 1 << 16  # bytes; an event has a few hundred
IDENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(?:/[A-Za-z0-9][A-Za-z0-9._+-]*){1,2}")  # name/version[/build]
EVENTS: Final = ("publish", "modify", "delete")
AGAIN: Final = (1, 4, 14, 24)  # exit codes of what may be better a little later


def path_of(line: bytes, repo: str, prefix: str) -> str | None:
    """Which release an event is about; None: none of ours. Raises ValueError for what is no event."""
    if len(line) > LINE_MAX:
        raise ValueError(f"is longer than {LINE_MAX} bytes")
    try:
        event = json.loads(line)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(event, dict) or not all(isinstance(event.get(key), str) for key in ("event", "repo", "package")):
        raise ValueError("has no event, repo and package")
    if event["repo"] != repo or event["event"] not in EVENTS:
        return None
    if not IDENT.fullmatch(event["package"]):
        raise ValueError("has a package that is no name/version")
    return "/".join([prefix.rstrip("/"), *event["package"].split("/")[:2]])


def publish(path: str, config: str, program: str, tries: int, pause: float) -> bool:
    """Calls `mkmeta release` until it succeeds, or there is no hope. What was deleted is named the same way."""
    for left in reversed(range(tries)):
        code = subprocess.run([program, "release", "--config", config, "--", path], check=False).returncode
        if code == 0:
            return True
        if code not in AGAIN:
            break
        if left:
            time.sleep(pause)
    print(f"{path}: not published (exit code {code})", file=sys.stderr)
    return False


def lines(stream: Iterable[bytes]) -> Iterable[bytes]:
    """That are not empty."""
    return (line.strip() for line in stream if line.strip())


def main() -> int:
    """Reads events until they end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", required=True, help="the events of this repository, as they name it")
    parser.add_argument("--prefix", required=True, help="where on the volume its packages are, by name and version")
    parser.add_argument("--config", default="/etc/mkmeta/sw.toml")
    parser.add_argument("--program", default="mkmeta")
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--pause", type=float, default=30.0, help="seconds from try to try")
    args = parser.parse_args()
    failed = False
    for line in lines(iter(lambda: sys.stdin.buffer.readline(LINE_MAX + 2), b"")):
        try:
            path = path_of(line, args.repo, args.prefix)
        except ValueError as error:
            print(f"an event {error}: passed over", file=sys.stderr)
            failed = True
            continue
        if path is not None:
            failed |= not publish(path, args.config, args.program, max(args.tries, 1), args.pause)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
