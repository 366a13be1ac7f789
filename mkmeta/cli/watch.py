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
from mkmeta.config import ConfigError, LayerConfig, read_config
from mkmeta.errors import ExitCode, MkmetaError, UsageError, printable
from mkmeta.host.prometheus import Family, write_metrics
from mkmeta.linux.systemd import sd_notify
from mkmeta.publisher.hearing import Events, Hearing, listen
from mkmeta.publisher.levels import REQUESTS_PER_LISTING, Barren
from mkmeta.publisher.schedule import Schedule
from mkmeta.publisher.site import Site
from mkmeta.publisher.watch import Pass, carry_over, watch_once

_QUIET: Final = 60.0  # seconds; longer than copying a large file takes between two changes of it
_EVERY: Final = 600.0  # seconds, as hosts look at the pointer
_WAIT: Final = 600

_DESCRIPTION = """\
Looks at the directories in which releases appear, and publishes what is new and complete, as mkmeta release does; what
is gone is taken out of the layer. One such service is enough for a site, and two do no harm. What changed although it
was published is named, and left as it is. What is there at first, mkmeta release publishes, when nobody is copying.

On NFS it looks through a mount of its own, made anew for each pass, and takes the attributes that come with listings:
three requests for the root and each directory in it. For that it needs root.

On the file server itself the kernel tells root of changes (fanotify): a release is taken within seconds, and what does
not change is looked at once an hour. It says at its start which it is.
"""

_EPILOG = """\
A release is complete when nothing in it has changed for the time that 'quiet' says in the layer file (default: 1m), and
as 'marker' and 'staging' say. docs/release.md has the whole page.

examples:
  mkmeta watch --config /etc/mkmeta/sw.toml
  mkmeta watch --config /etc/mkmeta/sw.toml --once
  mkmeta watch --config /etc/mkmeta/sw.toml --events always
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
        "--events",
        choices=[str(choice) for choice in Events],
        default=str(Events.AUTO),
        help="whether the kernel tells of changes: where all changes are its own, on any filesystem, or not (default: "
        "auto)",
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
    site = _site(args, args.config)
    sd_notify("READY=1")
    told: set[str] = set()
    if args.once:
        started = time.monotonic()
        done = watch_once(site, max_rate=args.max_rate, dry_run=args.dry_run, say=notes(args))
        _report(done, time.monotonic() - started, told, args)
        return int(_code(done))
    listening = _Listening(site.root, args)
    schedule, barren, before = Schedule(args.every, listening.listen), Barren(), Pass()
    while True:
        part = schedule.next()
        started = time.monotonic()
        try:
            site = _site(args, read_config(args.config.path))  # it may say another thing by now
            if site.root != args.config.volume:
                raise UsageError("names another volume now", path=args.config.path, hint="start mkmeta watch anew")
            done = watch_once(
                site, part=part, barren=barren, max_rate=args.max_rate, dry_run=args.dry_run, say=notes(args)
            )
        except MkmetaError as error:
            if isinstance(error, UsageError) and not isinstance(error, ConfigError):  # no later pass is better
                raise
            note(f"mkmeta: {error}; the next pass tries again" + (f"; hint: {error.hint}" if error.hint else ""))
            schedule.ended(part, None)
        else:
            schedule.ended(part, done)
            if part is not None:
                carry_over(before, done)
            told = _report(done, time.monotonic() - started, told, args)
            before = done
        sd_notify("WATCHDOG=1")


def _site(args: argparse.Namespace, config: LayerConfig) -> Site:
    quiet = _QUIET if config.quiet is None else config.quiet
    return Site.of(config, manifest_only=args.manifest_only, quiet=quiet, wait=args.wait, note=notes(args))


class _Listening:
    """Listens for events, and says how the volume is watched when that is another way than before."""

    def __init__(self, root: bytes, args: argparse.Namespace) -> None:
        self._root = root
        self._args = args
        self._said = ""

    def listen(self) -> Hearing | None:
        """Raises MkmetaError when there must be events, and are none."""
        hearing, text = listen(self._root, Events(self._args.events))
        if text != self._said:
            self._said = text
            if self._args.json:
                emit("watching", **path_fields(self._root), events=hearing is not None, text=text)
            elif not self._args.quiet:
                note(f"{printable(self._root)}: {text}")
        return hearing


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
    elif not args.quiet and done.looked.listed:
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
