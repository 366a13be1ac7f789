"""`mkmeta refresh`: make a mount forget stale names."""

from __future__ import annotations

import argparse

from mkmeta.cli.config_option import add_config
from mkmeta.cli.host_arguments import add_mount_point, add_run_dir, add_wait, notes, run_directory
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, printable
from mkmeta.host.activation import live_mount
from mkmeta.host.volume import look
from mkmeta.mounts.refresh import refresh
from mkmeta.store.lock import held

_SECONDS = 10.0  # for the volume to show that it is not dead

_DESCRIPTION = """\
A mounted layer remembers names that were asked for and not there, and files that the volume has meanwhile deleted or
replaced. This makes it forget them, without touching anything that is in use: a release published since shows up.
"""

_EPILOG = """\
examples:
  mkmeta refresh /sw

exit codes:
  0    done
  1    it cannot be refreshed
  2    the command line is wrong
  14   another mkmeta is at it, for longer than --wait
  20   no layer is mounted there
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs, "refresh", summary="make a mount forget stale names", description=_DESCRIPTION, epilog=_EPILOG
    )
    add_mount_point(parser)
    add_wait(parser, default=60)
    add_run_dir(parser)
    add_config(parser, {"point": "mount-point", "run_dir": "run-dir"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Refreshes and reports what it cost."""
    run = run_directory(args)
    look(live_mount(args.point, run).lower, _SECONDS)  # a server that is dead must not keep us while we hold the lock
    with held(run.lock, "refresh", wait=args.wait, note=notes(args)):
        live = live_mount(args.point, run)
        done = refresh(live)
    if args.json:
        emit("summary", **path_fields(live.point, "mountpoint"), seconds=round(done.seconds, 6), names=done.names)
    elif not args.quiet:
        remembers = f"; this host remembers {done.names} names less" if done.names is not None else ""
        note(f"{printable(live.point)}: refreshed in {done.seconds * 1000:.1f} ms{remembers}")
    return int(ExitCode.DONE)
