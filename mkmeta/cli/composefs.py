"""`mkmeta build --format composefs`: of a manifest, or of a composefs-dump text, which MANIFEST may be as well."""

from __future__ import annotations

import argparse
import os
import sys
from typing import BinaryIO

from mkmeta.build import BuildOptions, BuildResult, Progress, build
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.progress import ProgressLine
from mkmeta.codec.container import MAGIC
from mkmeta.composefs import build_dump
from mkmeta.composefs_plan import ComposefsPlan
from mkmeta.errors import ExitCode, FormatError, MkmetaError, UsageError, printable, reason
from mkmeta.manifest.reader import ManifestReader
from mkmeta.sinks.erofs.sink import ErofsSink

COMPOSEFS = "composefs"


def add_composefs_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what only this format has."""
    parser.add_argument(
        "--composefs-version",
        metavar="N",
        type=int,
        choices=(0, 1),
        help="with --format composefs: 0 or 1 (default: 1 if the tree has a whiteout, as mkcomposefs)",
    )
    parser.add_argument(
        "--objects",
        action="store_true",
        help="with --format composefs, of a manifest: files are objects, ab/cdef... by fs-verity digest, as composefs "
        "keeps them, and not where they are on the volume",
    )


def check_composefs_arguments(args: argparse.Namespace) -> None:
    """Raises UsageError for arguments that do not go together."""
    if args.format != COMPOSEFS:
        if args.composefs_version is not None or args.objects:
            raise UsageError("--composefs-version and --objects go with --format composefs")
        return
    if args.redirect_prefix or args.userxattr or args.no_verity:
        raise UsageError(
            "--redirect-prefix, --userxattr and --no-verity do not go with --format composefs",
            hint="the image is the one that mkcomposefs makes of mkmeta dump; --format erofs takes them",
        )


def open_dump(args: argparse.Namespace) -> BinaryIO | None:
    """The text that MANIFEST is, opened; None: it begins as a manifest. Raises MkmetaError."""
    if args.manifest == "-":
        stream: BinaryIO = sys.stdin.buffer
    else:
        try:
            stream = open(args.manifest, "rb")  # noqa: SIM115 - the caller closes it
        except OSError as error:
            raise MkmetaError(reason(error), path=os.fsencode(args.manifest)) from None
    peek = getattr(stream, "peek", None)
    begin = peek(len(MAGIC)) if peek else b""
    if not begin.startswith(MAGIC[:1]):
        return stream
    if args.manifest != "-":
        stream.close()
    return None


def run_dump(args: argparse.Namespace, text: BinaryIO) -> int:
    """Makes an image of a text, and reports it."""
    dest = os.fsencode(args.dest)
    done = 0
    with text, ProgressLine(args, "build") as line:
        if args.expect_id is not None:
            raise UsageError("--expect-id goes with a manifest, and this is a composefs-dump text")
        if args.objects or args.no_inline:
            raise UsageError(
                "--objects and --no-inline go with a manifest, and this is a composefs-dump text",
                hint="the text says what is inside, and where the rest is",
            )

        def progress(lines: int) -> None:
            nonlocal done
            done += lines
            line.update(done)

        try:
            image = build_dump(
                text, dest, version=args.composefs_version, swap=args.swap, jobs=args.jobs, progress=progress
            )
        except FormatError as error:
            error.path = b"standard input" if args.manifest == "-" else os.fsencode(args.manifest)
            raise
    if args.json:
        emit(
            "summary",
            **path_fields(dest, "dest"),
            entries=image.entries,
            composefs_version=image.version,
            verity=image.verity.hex(),
            image_bytes=image.image_bytes,
            seconds=round(image.seconds, 3),
        )
    else:
        if not args.quiet:
            note(f"built {printable(dest)}: {image.entries} entries, {image.seconds:.1f} s")
        print(image.verity.hex())
    return int(ExitCode.DONE)


def build_composefs(
    reader: ManifestReader, options: BuildOptions, args: argparse.Namespace, progress: Progress
) -> BuildResult:
    """Makes an image of a manifest."""
    plan = ComposefsPlan(top=reader.root.directory, objects=args.objects, inline=not args.no_inline)
    sink = ErofsSink(os.fsencode(args.dest), jobs=options.jobs, swap=args.swap, composefs=args.composefs_version or 0)
    return build(
        reader,
        sink,
        BuildOptions(plan=plan, expect_id=options.expect_id, jobs=options.jobs),
        progress,
    )
