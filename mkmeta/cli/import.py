"""`mkmeta import`: composefs-dump(5) text as a manifest."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from typing import BinaryIO

from mkmeta.cli.arguments import filled
from mkmeta.cli.manifest_output import add_output_argument, print_id, write_manifest
from mkmeta.cli.output import emit, note
from mkmeta.cli.progress import ProgressLine
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, FormatError, MkmetaError, UsageError, reason
from mkmeta.trees.from_dump import ImportReport, import_dump

_DESCRIPTION = """\
Makes a manifest of composefs-dump(5) text, such as `mkmeta dump` and `composefs-info dump` print. All its directories
are recorded completely. Contents that are in the text come along, so that layers hold those files whole.

The manifest says what the text says: of `mkmeta dump` of a manifest that has fs-verity digests and no others, and
subtrees right below its root, it has the same ID. Payloads are not recorded. For files that are objects, as composefs
keeps them, `mkmeta build --format composefs --objects` makes payloads of their digests again.
"""

_EPILOG = """\
examples:
  mkmeta import tree.dump -o tree.mkm
  composefs-info dump image.cfs | mkmeta import - -o image.mkm
  mkmeta dump sw.mkm grp/paint | mkmeta import - --root /mnt/sw -o paint.mkm

exit codes:
  0    done
  1    nothing was written
  2    the command line is wrong
  10   mkcomposefs refuses the text, or no manifest can carry what it says
  130  interrupted
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs, "import", summary="make a manifest of composefs-dump text", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("dump", metavar="DUMP", type=filled, help="the text; - reads standard input")
    add_output_argument(parser)
    parser.add_argument(
        "--root",
        metavar="DIR",
        type=filled,
        default=b"/",
        help="the directory that the tree is said to have been scanned from (default: /)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Imports."""
    started = time.monotonic()
    root = os.path.normpath(args.root)
    if not root.startswith(b"/"):
        raise UsageError("--root is an absolute path", path=args.root)
    name = b"standard input" if args.dump == b"-" else args.dump
    with contextlib.ExitStack() as stack:
        text = stack.enter_context(_open(args.dump))
        line = stack.enter_context(ProgressLine(args, "import"))
        done = 0

        def progress(lines: int) -> None:
            nonlocal done
            done += lines
            line.update(done)

        try:
            report = write_manifest(args, lambda stream: import_dump(text, stream, root=root, progress=progress))
        except FormatError as error:
            error.path = name
            raise
    _show(args, report, time.monotonic() - started)
    return ExitCode.DONE


def _open(path: bytes) -> contextlib.AbstractContextManager[BinaryIO]:
    """Raises MkmetaError."""
    if path == b"-":
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return open(path, "rb")
    except OSError as error:
        raise MkmetaError(reason(error), path=path, hint="name composefs-dump text") from None


def _show(args: argparse.Namespace, report: ImportReport, seconds: float) -> None:
    if args.json:
        emit(
            "summary",
            id=report.manifest_id.hex(),
            entries=report.entries,
            digests=list(report.digests),
            payloads=report.payloads,
            seconds=round(seconds, 3),
        )
        return
    if not args.quiet:
        if report.payloads:
            note(f"note: {report.payloads:,} payloads are not the paths of their files; a manifest does not have them")
        note(f"imported {report.entries:,} entries, {seconds:.1f} s")
    print_id(args, report.manifest_id)
