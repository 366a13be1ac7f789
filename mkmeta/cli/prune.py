"""`mkmeta prune`: a manifest without some of its subtrees."""

from __future__ import annotations

import argparse
import os
import time

from mkmeta.cli.arguments import filled
from mkmeta.cli.manifest_argument import add_manifest_argument, open_manifest
from mkmeta.cli.manifest_output import add_output_argument, print_id, write_manifest
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, legible
from mkmeta.pattern import remark
from mkmeta.trees.prune import PruneReport, prune
from mkmeta.trees.recorded import Source

_DESCRIPTION = """\
Takes what matches out of a manifest, with everything below it: through a layer of the result it shows from the volume,
or is gone when it is deleted there. For retiring a release before it is deleted on the server.

A directory that loses something was recorded completely and is no longer: it and those above it become directories
through which the rest of the volume shows. Everything that stays in them is still answered locally, but no longer is a
name that they do not have. One that loses everything goes as well. The ID is that of a scan which selects what stays,
piece by piece: where whole subtrees are dropped, of a scan that does not select them.
"""

_EPILOG = """\
Patterns are those of mkmeta scan. A later scan with the same selection records again what is still on the volume.

examples:
  mkmeta prune sw.mkm --drop 'grp/pixel/v41' -o next.mkm
  mkmeta prune sw.mkm --drop 'grp/*/v1*' --drop 'tools/old' -o - | mkmeta build - --store /var/lib/mkmeta/sw

exit codes:
  0   done
  1   nothing would be left, or something cannot be read; nothing was written
  2   wrong arguments
  10  the file is not a valid manifest
  12  no pattern matched
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs, "prune", summary="take subtrees out of a manifest", description=_DESCRIPTION, epilog=_EPILOG
    )
    add_manifest_argument(parser)
    parser.add_argument(
        "--drop",
        metavar="PATTERN",
        type=filled,
        action="append",
        required=True,
        help="take out what matches; may be given many times",
    )
    add_output_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prunes."""
    started = time.monotonic()
    with open_manifest(args.manifest) as reader:
        source = Source(reader, b"standard input" if args.manifest == "-" else os.fsencode(args.manifest))
        report = write_manifest(args, lambda stream: prune(source, args.drop, stream))
    _show(args, report, time.monotonic() - started)
    return ExitCode.DONE


def _show(args: argparse.Namespace, report: PruneReport, seconds: float) -> None:
    if args.json:
        for pattern in report.unmatched:
            emit("unmatched", option="drop", **path_fields(pattern, "pattern"), hint=remark(pattern))
        emit(
            "summary",
            id=report.manifest_id.hex(),
            entries=report.entries,
            dropped=report.dropped,
            seconds=round(seconds, 3),
        )
        return
    for pattern in report.unmatched:
        why = remark(pattern)
        note(f"matched nothing: {legible(pattern)}" + (f" ({why})" if why else ""))
    if not args.quiet:
        note(f"dropped {report.dropped:,} entries, {report.entries:,} stay, in {seconds:.1f} s")
    print_id(args, report.manifest_id)
