"""`mkmeta doctor`: what this host can do, and what would hurt."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator

from mkmeta.cli.arguments import filled
from mkmeta.cli.config_option import Flag, add_config
from mkmeta.cli.host_arguments import add_run_dir, runtime_directory
from mkmeta.cli.output import emit, path_fields
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, printable
from mkmeta.host.doctor import Patient, diagnose
from mkmeta.host.finding import Finding, Level

_WIDTH_MAX = 120  # characters; longer lines are hard to read
_PLURALS = {Level.FAILURE: "failures", Level.WARNING: "warnings", Level.NOTE: "notes", Level.OK: "ok"}

_DESCRIPTION = """\
Says what this host can do with layers and what would hurt: which mounts the kernel can make (by making them, in a
mount namespace that goes away), what the volume's mount and its NFS options cost, whether a store's filesystem is fit.
Changes nothing, looks at a few hundred entries of the volume at most, and gives up on a server that does not answer
in 30 seconds.
"""

_EPILOG = """\
examples:
  mkmeta doctor                                             the kernel and this process only
  mkmeta doctor --lower /mnt/sw --store /var/lib/mkmeta/sw
  mkmeta doctor --lower /mnt/sw --json | jq -r 'select(.level == "warning").message'
  unshare --user --map-root-user --mount mkmeta doctor --userxattr

exit codes:
  0   no failure; there may be warnings
  2   the command line is wrong
  23  something does not work
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "doctor",
        summary="say what this host can do and what would hurt",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("--lower", metavar="DIR", type=filled, help="the volume, where it is mounted")
    parser.add_argument("--store", metavar="DIR", type=filled, help="a store, or where one shall be made")
    parser.add_argument("--userxattr", action=Flag, help="for layers built with --userxattr")
    add_run_dir(parser)
    keys = {"lower": "volume", "store": "store", "userxattr": "userxattr", "run_dir": "run-dir"}
    add_config(parser, keys)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Looks, and reports."""
    patient = Patient(
        lower=args.lower,
        store=args.store,
        run_dir=args.run_dir,
        runtime_dir=runtime_directory(),
        userxattr=args.userxattr,
    )
    found = []
    for finding in diagnose(patient):
        found.append(finding)
        if args.json:
            where = path_fields(finding.path) if finding.path is not None else {}
            emit("check", id=finding.id, level=finding.level, message=finding.message, hint=finding.hint, **where)
    counts = Counter(finding.level for finding in found)
    if args.json:
        emit("summary", **{_PLURALS[level]: counts[level] for level in Level})
    else:
        for line in _page(found, counts, quiet=args.quiet, verbose=args.verbose):
            print(line)
    return int(ExitCode.UNFIT if counts[Level.FAILURE] else ExitCode.DONE)


def _page(found: list[Finding], counts: Counter[Level], *, quiet: bool, verbose: bool) -> Iterator[str]:
    """The worst first; what is well in short, and last."""
    width = min(shutil.get_terminal_size().columns, _WIDTH_MAX)
    for finding in sorted(found, key=lambda finding: -finding.level.rank):
        if finding.level is Level.OK and not verbose:
            break
        if quiet and finding.level not in (Level.FAILURE, Level.WARNING):
            break
        yield from _paragraph(finding, width)
    if quiet:
        return
    well = [finding.id for finding in found if finding.level is Level.OK]
    if well and not verbose:
        yield from _wrapped(f"{Level.OK:<9}", ", ".join(dict.fromkeys(well)), width)
    parts = [
        f"{counts[level]} {level if counts[level] == 1 else _PLURALS[level]}"
        for level in reversed(Level)
        if counts[level]
    ]
    yield ", ".join(parts)


def _paragraph(finding: Finding, width: int) -> Iterator[str]:
    where = f"{printable(finding.path)}: " if finding.path is not None else ""
    yield from _wrapped(f"{finding.level:<9}", f"{finding.id}: {where}{finding.message}", width)
    if finding.hint:
        yield from _wrapped(f"{'':<9}-> ", finding.hint, width)


def _wrapped(start: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )
