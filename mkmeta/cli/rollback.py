"""`mkmeta rollback`: go back to an earlier generation."""

from __future__ import annotations

import argparse

from mkmeta.cli.activate import report
from mkmeta.cli.config_option import add_config
from mkmeta.cli.host_arguments import add_allow_gap, add_mount_point, add_run_dir, add_wait, notes, run_directory
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode
from mkmeta.host.activation import rollback

_DESCRIPTION = """\
Switches a mount to the generation before the one that is mounted, under running programs, and makes it the store's
current one: `mkmeta activate` then keeps it, until a newer generation is added.
"""

_EPILOG = """\
examples:
  mkmeta rollback /sw
  mkmeta rollback /sw --to 5

exit codes:
  0    the earlier generation is mounted
  1    it cannot be mounted; what was mounted still is
  2    the command line is wrong
  14   another mkmeta is at it, for longer than --wait
  15   there is no such generation, or none before this one
  16   refused: it would show wrong data
  17   this kernel would leave a gap, and there is no --allow-gap
  20   no layer is mounted there
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs, "rollback", summary="switch back to an earlier generation", description=_DESCRIPTION, epilog=_EPILOG
    )
    add_mount_point(parser)
    parser.add_argument("--to", metavar="N", type=int, help="go to this one (default: the next lower number there is)")
    add_allow_gap(parser)
    add_wait(parser, default=60)
    add_run_dir(parser)
    add_config(parser, {"point": "mount-point", "run_dir": "run-dir", "allow_gap": "allow-gap"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Goes back and reports."""
    done = rollback(args.point, run_directory(args), notes(args), to=args.to, allow_gap=args.allow_gap, wait=args.wait)
    report(done, args)
    return int(ExitCode.DONE)
