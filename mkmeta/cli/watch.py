"""`mkmeta watch`: publish what no pipeline told of."""

from __future__ import annotations

import argparse
import time
from typing import Final

from mkmeta.cli.arguments import filled
from mkmeta.cli.config_option import add_config
from mkmeta.cli.host_arguments import add_wait, notes, seconds
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.release import KEYS
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, MkmetaError, UsageError, printable
from mkmeta.host.prometheus import Family, write_metrics
from mkmeta.linux.systemd import sd_notify
from mkmeta.publisher.levels import REQUESTS_PER_LISTING
from mkmeta.publisher.site import Site
from mkmeta.publisher.watch import Pass, watch_once

_QUIET: Final = 60.0  # seconds; longer than copying a large file takes between two changes of it
_EVERY: Final = 600.0  # seconds, as hosts look at the pointer
_WAIT: Final = 600

_DESCRIPTION = """\
Looks at the directories in which releases appear, and publishes what is new and complete, as mkmeta release does; what
is gone is taken out of the layer. One such service is enough for a site, and two do no harm. What changed although it
was published is named, and left as it is. What is there at first, mkmeta release publishes, when nobody is copying.

On NFS it looks through a mount of its own, made anew for each pass, and takes the attributes that come with listings:
three requests for the root and each directory in it. For that it needs root.
"""

_EPILOG = """\
A release is complete when nothing in it has changed for the time that 'quiet' says in the layer file (default: 1m), and
as 'marker' and 'staging' say. docs/release.md has the whole page.

examples:
  mkmeta watch --config /etc/mkmeta/sw.toml
  mkmeta watch --config /etc/mkmeta/sw.toml --once
  mkmeta watch --config /etc/mkmeta/sw.toml --every 5m --max-rate 100 --metrics /var/lib/node-exporter/watch.prom

exit codes:
  0    (--once) all is published, but for what is not complete yet
  1    it cannot be looked at, or something could not be published
  2    the command line is wrong
  4    (--once) something changed that was published
  10   the manifest is not a valid one
  14   others were publishing for longer than --wait
  130  interrupted; what is published is whole
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs, "watch", summary="publish what no pipeline told of", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("--once", action="store_true", help="one pass, then end: for a timer")
    parser.add_argument(
        "--every", metavar="TIME", type=seconds, default=_EVERY, help="from pass to pass (default: 10m)"
    )
    parser.add_argument(
        "--max-rate", metavar="N", type=_rate, help="at most so many requests per second to the server (default: any)"
    )
    parser.add_argument(
        "--metrics", metavar="FILE", type=filled, help="also write FILE for node_exporter's textfile collector"
    )
    parser.add_argument("--dry-run", action="store_true", help="look, and publish nothing")
    parser.add_argument("--manifest-only", action="store_true", help="build no layer here")
    add_wait(parser, default=_WAIT)
    add_config(parser, {**{key: key for key in KEYS}, "quiet_for": "quiet"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Looks, once or for ever."""
    if args.config is None:
        raise UsageError("watch needs the layer file", hint="--config FILE; mkmeta init writes one")
    quiet = _QUIET if args.config.quiet is None else args.config.quiet
    site = Site.of(args.config, manifest_only=args.manifest_only, quiet=quiet, wait=args.wait, note=notes(args))
    sd_notify("READY=1")
    told: set[str] = set()
    while True:
        started = time.monotonic()
        try:
            done = watch_once(site, max_rate=args.max_rate, dry_run=args.dry_run, say=notes(args))
        except MkmetaError as error:
            if args.once or isinstance(error, UsageError):  # no later pass is better
                raise
            note(f"mkmeta: {error}; the next pass tries again")
        else:
            took = time.monotonic() - started
            told = _report(done, took, told, args)
            if args.once:
                return int(_code(done))
        sd_notify("WATCHDOG=1")
        time.sleep(max(1.0, args.every - (time.monotonic() - started)))


def _code(done: Pass) -> ExitCode:
    if done.failed or done.looked.unreadable:
        return ExitCode.FAILED
    return ExitCode.DIFFERENT if done.looked.changed else ExitCode.DONE


def _report(done: Pass, took: float, told: set[str], args: argparse.Namespace) -> set[str]:
    """Says what is news since the last pass. Returns all that is to be said now."""
    now: set[str] = set()
    rows = (
        ("changed", done.looked.changed),
        ("failed", [*done.failed, *done.looked.unreadable]),
        ("waiting", done.waiting),
        ("taken", [(path, "published") for path in done.taken]),
    )
    for word, found in rows:
        for path, text in found:
            key = f"{word}: {printable(path)}: {text if word == 'failed' else ''}"
            now.add(key)
            if key in told:
                continue
            if args.json:
                emit("path", **path_fields(path), state=word, text=text)
            elif word in ("changed", "failed") or not args.quiet:
                note(f"{word}: {printable(path)}: {text}")
    if args.json:
        emit(
            "summary",
            listed=done.looked.listed,
            private=done.private,
            taken=len(done.taken),
            waiting=len(done.waiting),
            failed=len(done.failed) + len(done.looked.unreadable),
            changed=len(done.looked.changed),
            published=done.published,
            seconds=round(took, 3),
        )
    elif not args.quiet:
        requests = f", about {REQUESTS_PER_LISTING * done.looked.listed} requests" if done.private else ""
        note(f"looked at {done.looked.listed} directories in {took:.1f} s{requests}; {len(done.taken)} published")
    if args.metrics is not None:
        write_metrics(args.metrics, _metrics(done, took))
    sd_notify(f"STATUS={done.looked.listed} directories in {took:.1f} s, {len(done.looked.changed)} changed")
    return now


def _metrics(done: Pass, took: float) -> list[Family]:
    found = []
    for name, help_text, value in (
        ("last_pass_timestamp_seconds", "When the last pass ended.", time.time()),
        ("pass_seconds", "How long it took.", took),
        ("listed_directories", "Directories it listed.", done.looked.listed),
        ("taken", "Releases it published, or took out.", len(done.taken)),
        ("waiting", "Releases that are not complete yet.", len(done.waiting)),
        ("failed", "Releases that could not be published.", len(done.failed) + len(done.looked.unreadable)),
        ("changed", "What changed although it was published.", len(done.looked.changed)),
    ):
        family = Family(f"mkmeta_watch_{name}", "gauge", help_text)
        family.add(value)
        found.append(family)
    return found


def _rate(text: str) -> float:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of requests per second")
    return float(text)
