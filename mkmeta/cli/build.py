"""`mkmeta build`."""

from __future__ import annotations

import argparse
import os

from mkmeta.cli.manifest_argument import add_manifest_argument, open_manifest
from mkmeta.cli.output import emit, human_bytes, note, path_fields
from mkmeta.cli.progress import ProgressLine
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.compiler.build import JOBS_MAX, BuildOptions, BuildResult, build
from mkmeta.compiler.plan import Plan
from mkmeta.digest import DIGEST_SIZE, ObjectId
from mkmeta.errors import ExitCode, UsageError, printable

_DESCRIPTION = """\
Writes the overlayfs layer that a manifest describes: a directory tree of metadata only, to be mounted over the volume
that was scanned. The layer is written beside DEST, flushed, and appears there by one rename, complete or not at all.
"""

_EPILOG = """\
The last line on stdout is the manifest's ID; with --swap, a line with the name of the old tree comes before it.

examples:
  mkmeta build sw.mkm /var/lib/mkmeta/sw
  mkmeta build --swap --expect-id $ID sw.mkm /var/lib/mkmeta/sw    replace the layer, keep the old one
  mkmeta build --userxattr sw.mkm layer                            for mounts in user namespaces
  ssh publisher cat sw.mkm | mkmeta build - /var/lib/mkmeta/sw

exit codes:
  0    the layer is at DEST
  1    it could not be built; DEST is as it was
  2    the command line is wrong
  10   MANIFEST is not a valid manifest
  11   MANIFEST is not the one --expect-id names
  130  interrupted; DEST is as it was, or the complete new layer
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "build",
        summary="turn a manifest into an overlayfs layer",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    add_manifest_argument(parser)
    parser.add_argument("dest", metavar="DEST", help="directory to make; the one it goes into must exist")
    parser.add_argument(
        "--swap",
        action="store_true",
        help="if DEST exists, exchange it with the new layer in one step; the old tree becomes DEST.old-ID",
    )
    parser.add_argument(
        "--discard", action="store_true", help="with --swap: remove the old layer instead of keeping it"
    )
    parser.add_argument("--expect-id", metavar="ID", type=_manifest_id, help="build this manifest and no other")
    parser.add_argument(
        "--redirect-prefix",
        metavar="PATH",
        type=os.fsencode,
        default=b"",
        help="where the scanned directory is below the lower layer it will be mounted over (default: it is that layer)",
    )
    parser.add_argument(
        "--userxattr",
        action="store_true",
        help="write user.overlay.* xattrs, for mounts with the option userxattr; needs no privileges over trusted.*",
    )
    parser.add_argument(
        "--no-verity",
        action="store_true",
        help="leave the manifest's fs-verity digests out of the layer; they matter to mounts with verity= only",
    )
    parser.add_argument(
        "-j",
        "--jobs",
        metavar="N",
        type=_jobs,
        default=min(2, len(os.sched_getaffinity(0))),
        help="worker processes (default: %(default)s; more than two rarely help, the filesystem is the limit)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Builds a layer and reports it."""
    if args.discard and not args.swap:
        raise UsageError("--discard goes with --swap")
    dest = os.fsencode(args.dest)
    options = BuildOptions(
        plan=Plan(prefix=args.redirect_prefix.strip(b"/"), userxattr=args.userxattr, verity=not args.no_verity),
        swap=args.swap,
        discard=args.discard,
        expect_id=args.expect_id,
        jobs=args.jobs,
    )
    with (
        open_manifest(args.manifest) as reader,
        ProgressLine(args, "build", total=reader.root.directory.entries) as line,
    ):
        result = build(reader, dest, options, lambda done, _total: line.update(done))
    _report(result, dest, args)
    return int(ExitCode.DONE)


def _report(result: BuildResult, dest: bytes, args: argparse.Namespace) -> None:
    old = os.path.join(os.path.dirname(dest.rstrip(b"/")), result.old) if result.old else None
    if args.json:
        emit(
            "summary",
            id=result.manifest_id.hex(),
            **path_fields(dest, "dest"),
            **(path_fields(old, "old") if old else {}),
            entries=result.entries,
            links=result.links,
            filesystem=result.filesystem,
            xattr_files=result.spent.files,
            xattr_bytes=result.spent.size,
            seconds=round(result.seconds, 3),
        )
        return
    if not args.quiet:
        for name in result.leftovers:
            note(f"mkmeta: {printable(name)}: left by a killed build, and cannot be removed")
        if result.spent.files:
            _note_spent(result)
        links = f", {result.links} of them hard links" if result.links else ""
        note(f"built {printable(dest)}: {result.entries} entries{links}, {result.seconds:.1f} s")
    if old:
        print(printable(old))
    print(result.manifest_id.hex())


def _note_spent(result: BuildResult) -> None:
    """Says what xattrs outside of inodes cost, and what avoids it."""
    each = -(-result.spent.size // result.spent.files)
    cure = {
        "ext4": "; an ext4 made with mkfs.ext4 -I 512 (-I 1024 for paths over 240 bytes) keeps them in the inode",
        "xfs": "; an xfs made with mkfs.xfs -i size=1024 keeps them in the inode",
    }.get(result.filesystem, "")
    note(
        f"note: the xattrs of {result.spent.files} files did not fit into their inodes and take "
        f"{human_bytes(each)} each, {human_bytes(result.spent.size)} in all{cure}"
    )


def _manifest_id(text: str) -> ObjectId:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != DIGEST_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r} is not an ID of {2 * DIGEST_SIZE} hexadecimal digits")
    return ObjectId(raw)


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= JOBS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {JOBS_MAX}")
    return int(text)
