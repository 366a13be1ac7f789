"""`mkmeta gc`: remove generations nobody uses."""

from __future__ import annotations

import argparse

from mkmeta.cli.arguments import filled
from mkmeta.cli.config_option import add_config
from mkmeta.cli.host_arguments import add_wait, notes, seconds
from mkmeta.cli.output import emit, note
from mkmeta.cli.progress import ProgressLine
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode
from mkmeta.host.collection import collect
from mkmeta.host.deactivation import sweep_all

_UNSEEN_SHOWN = 5
_KEEP_MAX = 1_000_000

_DESCRIPTION = """\
Removes old generations from a store. Kept are the current one, the newest, young ones, and whatever a mount in any
mount namespace or an open file of a running program still uses. What cannot be looked at may use anything: then all is
kept, and it says why. It can be interrupted at any time, and goes on where it was with the next call.
"""

_EPILOG = """\
examples:
  mkmeta gc /var/lib/mkmeta/sw
  mkmeta gc /var/lib/mkmeta/sw --keep 5 --min-age 2w --dry-run
  mkmeta gc --config /etc/mkmeta/sw.toml

exit codes:
  0    done
  1    something cannot be removed
  2    the command line is wrong
  14   another mkmeta is at it, for longer than --wait
  130  interrupted: call it again
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(verbs, "gc", summary="remove generations nobody uses", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("store", metavar="STORE", type=filled, help="a store, as `mkmeta build --store` makes them")
    parser.add_argument(
        "--keep", metavar="N", type=_count, default=3, help="of the newest generations (default: %(default)s)"
    )
    parser.add_argument(
        "--min-age",
        metavar="SPAN",
        type=seconds,
        default=seconds("2d"),
        help="keep what was built less than this ago: 90, 15m, 12h, 2d (default: 2d)",
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument(
        "--pace",
        metavar="SHARE",
        type=_share,
        default=0.5,
        help="share of the time spent removing, so that others can use the disk (default: %(default)s)",
    )
    add_wait(parser, default=60)
    add_config(parser, {"store": "store", "keep": "keep", "min_age": "min-age"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collects and reports."""
    if not args.dry_run:
        sweep_all(notes(args))
    with ProgressLine(args, "gc") as line:
        done = collect(
            args.store,
            keep=args.keep,
            min_age=args.min_age,
            pace=args.pace,
            dry_run=args.dry_run,
            wait=args.wait,
            note=notes(args),
            progress=line.update,
        )
    if args.json:
        for generation in done.removed:
            emit("removed", generation=generation.number, short_id=generation.short_id)
        for generation, why in done.kept:
            emit("kept", generation=generation.number, short_id=generation.short_id, reason=why)
        for unseen in done.unseen:
            emit("unseen", what=unseen.what, hint=unseen.way_out)
        emit("summary", removed=len(done.removed), kept=len(done.kept), dry_run=args.dry_run)
        return int(ExitCode.DONE)
    for generation in done.removed:
        print(generation.name.decode())
    for unseen in done.unseen[:_UNSEEN_SHOWN]:
        note(f"mkmeta: {unseen.what}: what nobody may be using is kept")
        note(f"  hint: {unseen.way_out}")
    if not args.quiet:
        for generation, why in done.kept:
            note(f"kept {generation.name.decode()}: {why}")
        verb = "would remove" if args.dry_run else "removed"
        note(f"{verb} {len(done.removed)} of {len(done.removed) + len(done.kept)} generations")
    return int(ExitCode.DONE)


def _count(text: str) -> int:
    if (
        not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= _KEEP_MAX
    ):  # the newest stays: its number must not come again
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of generations, from 1 to {_KEEP_MAX:,}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and up to 1")
    return value
