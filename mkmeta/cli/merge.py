"""`mkmeta merge`: one manifest from those of several scans of a volume."""

from __future__ import annotations

import argparse
import contextlib
import os
import time

from mkmeta.cli.arguments import input_name
from mkmeta.cli.manifest_argument import open_manifest
from mkmeta.cli.manifest_output import add_output_argument, print_id, write_manifest
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, UsageError, printable
from mkmeta.trees.merge import Conflict, MergeReport, merge
from mkmeta.trees.recorded import Source

_DESCRIPTION = """\
Puts manifests of one volume together, such as shards of a scan that ran on several machines. Where they have facts,
as all that mkmeta scan writes, the result is what one scan of all selections would have recorded, with the same ID:
hard links from one shard to another are found, and the result can be the base of the next scan. Without facts, two
names that no single manifest has both of stay two files.

Directories above the subtrees are merged; their own attributes must agree, and so must everything that more than one
manifest has. What one of them recorded and another left out is recorded. A directory is opaque in the result only if
one manifest has all of it.
"""

_EPILOG = """\
With --on-conflict later, what a later argument says of a path replaces what earlier ones say. A directory that was
recorded completely, and in which a later manifest recorded something else by itself, becomes one through which the rest
of the volume shows.

examples:
  mkmeta scan /mnt/sw --select 'grp/[a-m]*' -o 1.mkm      on one machine
  mkmeta scan /mnt/sw --select 'grp/[n-z]*' -o 2.mkm      on another
  mkmeta merge 1.mkm 2.mkm -o sw.mkm
  mkmeta merge sw.mkm new-release.mkm -o next.mkm --on-conflict later

exit codes:
  0   done
  1   the manifests do not agree (the first path is named), or something cannot be read; nothing was written
  2   they cannot be merged: other volumes, digests or patterns to hide
  10  a file is not a valid manifest
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs, "merge", summary="put manifests of one volume together", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument(
        "manifests",
        metavar="MANIFEST",
        type=input_name,
        nargs="+",
        help="file made by mkmeta scan; - reads standard input",
    )
    add_output_argument(parser)
    parser.add_argument(
        "--on-conflict",
        choices=[str(choice) for choice in Conflict],
        default=str(Conflict.FAIL),
        help="where manifests do not agree: write nothing (the default), or take what the later one has",
    )
    parser.add_argument(
        "--other-root",
        action="store_true",
        help="the volume was scanned where it was mounted in different places; the result names that of the first",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Merges."""
    if args.manifests.count("-") > 1:
        raise UsageError("standard input can be one of the manifests, not several")
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        sources = [
            Source(stack.enter_context(open_manifest(name)), b"standard input" if name == "-" else os.fsencode(name))
            for name in args.manifests
        ]
        conflict = Conflict(args.on_conflict)
        report = write_manifest(
            args, lambda stream: merge(sources, stream, conflict=conflict, other_root=args.other_root)
        )
    _show(args, report, time.monotonic() - started)
    return ExitCode.DONE


def _show(args: argparse.Namespace, report: MergeReport, seconds: float) -> None:
    if args.json:
        for path, why in report.left_out:
            emit("left_out", **path_fields(path), reason=why)
        emit(
            "summary",
            id=report.manifest_id.hex(),
            entries=report.entries,
            manifests=len(args.manifests),
            left_out=len(report.left_out),
            facts=report.facts,
            seconds=round(seconds, 3),
        )
        return
    if not args.quiet:
        for path, why in report.left_out:
            note(f"left out: {printable(path)}: {why}")
        if not report.facts:
            note("note: not all have facts: names of one inode that no single manifest has both of stay two files")
        note(f"merged {len(args.manifests)} manifests, {report.entries:,} entries, in {seconds:.1f} s")
    print_id(args, report.manifest_id)
