"""`mkmeta build`."""

from __future__ import annotations

import argparse
import os

from mkmeta.build import BuildOptions, BuildResult, build, check_id, sink_for
from mkmeta.cli.arguments import filled
from mkmeta.cli.build_room import check_room
from mkmeta.cli.composefs import (
    COMPOSEFS,
    add_composefs_arguments,
    build_composefs,
    check_composefs_arguments,
    open_dump,
    run_dump,
)
from mkmeta.cli.config_option import Flag, add_config
from mkmeta.cli.host_arguments import add_wait, notes
from mkmeta.cli.layer_argument import FoundLayer
from mkmeta.cli.manifest_argument import add_manifest_argument, open_manifest
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.progress import ProgressLine
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.digest import DIGEST_SIZE, ObjectId
from mkmeta.errors import ExitCode, UsageError, human_bytes, printable
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.walk import WORKERS_MAX
from mkmeta.plan import Plan
from mkmeta.sinks.protocol import LayerKind
from mkmeta.store.adding import Added, add
from mkmeta.store.generation import LAYER
from mkmeta.store.store import Store

_WAIT = 600  # seconds for another build of the store: most are over by then

_CONFIG = {
    "manifest": "manifest",
    "store": "store",
    "format": "format",
    "redirect_prefix": "redirect-prefix",
    "userxattr": "userxattr",
    "no_verity": "no-verity",
}

_DESCRIPTION = """\
Writes the overlayfs layer that a manifest describes: a directory tree of metadata, to be mounted over the volume that
was scanned. Files whose content the manifest has (scan --inline) are whole, and compared with their digests. The layer
is written beside DEST, flushed, and appears there by one rename, complete or not at all.

With --base, files that are just the same in an earlier layer are not written again: both layers have the same inode, by
a hard link. That saves what a file takes on disk, and shows in link counts; formats/upper.md section 7 has the price.

With --format erofs the layer is one file instead, an EROFS image (formats/erofs.md), the same wherever it is built.
That needs no root. Its fs-verity digest, which stands for its content, is printed before the manifest's ID.

With --format composefs, MANIFEST may also be composefs-dump(5) text. It becomes, byte for byte, the image that
mkcomposefs 1.0.8 makes of the text, or of what `mkmeta dump` says of a manifest: a complete tree, with no fall-through.

With --store, it becomes the next numbered generation of a store instead: a directory that keeps several layers, from
which `mkmeta activate` mounts and `mkmeta gc` removes. The store is made if it does not exist, with the directory above
it. The new generation is the current one; when the newest generation is that manifest already, nothing is built.
"""

_EPILOG = """\
The last line on stdout is the manifest's ID; with --swap, a line with the name of the old tree comes before it, of an
image one with its digest. Of a composefs-dump text, the digest is the last line.

examples:
  mkmeta build sw.mkm /srv/layers/sw
  mkmeta build sw.mkm /srv/layers/sw --dry-run                     is there room for it?
  mkmeta build --swap --expect-id $ID sw.mkm /srv/layers/sw        replace the layer, keep the old one
  mkmeta build --userxattr sw.mkm layer                            for mounts in user namespaces
  ssh publisher cat sw.mkm | mkmeta build - /srv/layers/sw
  mkmeta build sw.mkm --store /var/lib/mkmeta/sw                   add a generation and make it the current one
  mkmeta build --config /etc/mkmeta/sw.toml                        likewise, as the layer file says
  mkmeta build --format erofs sw.mkm sw.erofs                      one file, for mount -t erofs
  mkmeta build --format composefs tree.dump tree.cfs               as mkcomposefs --from-file tree.dump tree.cfs
  mkmeta build sw.mkm --store STORE --base STORE                   the same, sharing inodes with the current one

exit codes:
  0    the layer is at DEST, or the current generation of STORE
  1    it could not be built; DEST or STORE is as it was
  2    the command line is wrong
  10   MANIFEST is not a valid manifest, or a text that mkcomposefs refuses
  11   MANIFEST is not the one --expect-id names
  14   another build of STORE did not end within --wait
  130  interrupted; DEST is as it was, or the complete new layer; STORE likewise
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
    parser.add_argument(
        "dest",
        metavar="DEST",
        type=filled,
        nargs="?",
        help="directory or image to make; the directory it goes into must exist",
    )
    parser.add_argument(
        "--format",
        choices=[*map(str, LayerKind), COMPOSEFS],
        default=LayerKind.DIRECTORY,
        help="what to make: a directory, an EROFS image, a composefs image; see above (default: %(default)s)",
    )
    add_composefs_arguments(parser)
    parser.add_argument(
        "--store", metavar="STORE", type=filled, help="add the layer to this store, instead of making DEST"
    )
    add_wait(parser, default=_WAIT)
    parser.add_argument(
        "--swap",
        action="store_true",
        help="if DEST is a layer, exchange it with the new one in one step; a tree becomes DEST.old-ID, an image goes",
    )
    parser.add_argument(
        "-n",
        "--dry-run",
        action="store_true",
        help="say what space and how many inodes the layer takes, and whether they are free; write nothing",
    )
    parser.add_argument(
        "--discard", action="store_true", help="with --swap: remove the old layer instead of keeping it"
    )
    parser.add_argument("--expect-id", metavar="ID", type=_manifest_id, help="build this manifest and no other")
    parser.add_argument(
        "--base",
        metavar="LAYER",
        type=filled,
        help="share unchanged files with this layer, generation or store on the same filesystem (default: share none)",
    )
    parser.add_argument(
        "--redirect-prefix",
        metavar="PATH",
        type=filled,
        default=b"",
        help="where the scanned directory is below the lower layer it will be mounted over (default: it is that layer)",
    )
    parser.add_argument(
        "--userxattr",
        action=Flag,
        help="write user.overlay.* xattrs, for mounts with the option userxattr; needs no privileges over trusted.*",
    )
    parser.add_argument(
        "--no-verity",
        action=Flag,
        help="leave the manifest's fs-verity digests out of the layer; they matter to mounts with verity= only",
    )
    parser.add_argument(
        "--no-inline",
        action="store_true",
        help="leave the contents that the manifest has out of the layer: all data comes from the volume",
    )
    parser.add_argument(
        "-j",
        "--jobs",
        metavar="N",
        type=_jobs,
        default=min(2, len(os.sched_getaffinity(0))),
        help="worker processes (default: %(default)s; more than two rarely help, the filesystem is the limit)",
    )
    add_config(parser, _CONFIG)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Builds a layer and reports it."""
    _check(args)
    if args.format == COMPOSEFS and (text := open_dump(args)) is not None:
        if args.dry_run:
            raise UsageError("--dry-run is for manifests", hint="mkcomposefs text says nothing of itself at its begin")
        return run_dump(args, text)
    options = BuildOptions(
        kind=LayerKind.EROFS if args.format == COMPOSEFS else LayerKind(args.format),
        plan=Plan(
            prefix=args.redirect_prefix.strip(b"/"),
            userxattr=args.userxattr,
            verity=not args.no_verity,
            inline=not args.no_inline,
        ),
        expect_id=args.expect_id,
        vouched=args.expect_id is not None,
        base=None if args.base is None else _base(args.base),
        jobs=args.jobs,
    )
    with (
        open_manifest(args.manifest) as reader,
        ProgressLine(args, "build", total=reader.root.directory.entries) as line,
    ):

        def progress(done: int, _total: int) -> None:
            line.update(done)

        if args.dry_run:
            check_id(reader, options.expect_id)
            return int(check_room(reader, args))
        if args.format == COMPOSEFS:
            _report(build_composefs(reader, options, args, progress), args.dest, args)
        elif args.store is None:
            dest: bytes = args.dest
            sink = sink_for(dest, options, swap=args.swap, discard=args.discard)
            _report(build(reader, sink, options, progress), dest, args)
        else:
            check_id(reader, options.expect_id)  # before a store is made for it
            store = Store.open_or_create(args.store)
            added = add(
                store,
                reader,
                options,
                number=None,
                make_current=True,
                wait=args.wait,
                note=notes(args),
                progress=progress,
            )
            _report_added(added, reader, args)
    return int(ExitCode.DONE)


def _check(args: argparse.Namespace) -> None:
    """Raises UsageError for arguments that do not go together."""
    if args.dest is not None and "store" in args.from_config:
        args.store = None  # the command line wins
    if (args.dest is None) == (args.store is None):
        raise UsageError("name either DEST or --store", hint="mkmeta build --help has examples of both")
    if args.store is not None and (args.swap or args.discard):
        raise UsageError(
            "--swap and --discard go with DEST", hint="a store keeps its generations; mkmeta gc removes them"
        )
    if args.format != LayerKind.DIRECTORY:
        if args.store is not None and args.format == COMPOSEFS:
            raise UsageError(
                "a store keeps layers, and a composefs image is a closed tree", hint="name a file, as DEST"
            )
        if args.base is not None or args.discard:
            raise UsageError(f"--base and --discard do not go with --format {args.format}")
    check_composefs_arguments(args)
    if args.discard and not args.swap:
        raise UsageError("--discard goes with --swap")


def _base(path: bytes) -> bytes:
    """The layer to share files with. Raises UsageError for an image, which has none to share."""
    layer = FoundLayer.at(path).layer
    if os.path.isfile(layer):
        raise UsageError("is an image: only a directory has files to share", path=path, hint="leave --base away")
    return layer


def _report(result: BuildResult, dest: bytes, args: argparse.Namespace) -> None:
    name = result.published.old
    old = os.path.join(os.path.dirname(dest.rstrip(b"/")), name) if name else None
    if args.json:
        emit(
            "summary",
            id=result.manifest_id.hex(),
            **path_fields(dest, "dest"),
            **(path_fields(old, "old") if old else {}),
            **_result_fields(result),
        )
        return
    if not args.quiet:
        _note_result(f"built {printable(dest)}", result, result.published.leftovers)
    if old:
        print(printable(old))
    if result.published.verity:
        print(result.published.verity.hex())
    print(result.manifest_id.hex())


def _report_added(added: Added, reader: ManifestReader, args: argparse.Namespace) -> None:
    generation, result = added.generation, added.result
    if args.json:
        emit(
            "summary",
            id=reader.id.hex(),
            **path_fields(os.path.join(generation.path, LAYER), "dest"),
            generation=generation.number,
            built=result is not None,
            **(_result_fields(result) if result else {"entries": reader.root.directory.entries}),
        )
        return
    if not args.quiet:
        if result:
            _note_result(f"added generation {generation.number}", result, added.leftovers)
        else:
            _note_leftovers(added.leftovers)
            note(f"generation {generation.number} is already that manifest")
    image = generation.about().image
    if image is not None:
        print(image.hex())
    print(reader.id.hex())


def _result_fields(result: BuildResult) -> dict[str, object]:
    return {
        "entries": result.entries,
        "links": result.links,
        "filesystem": result.published.filesystem,
        **{key: result.counts[key] for key in ("xattr_files", "xattr_bytes", "shared", "inline", "inline_bytes")},
        **({"verity": result.published.verity.hex()} if result.published.verity else {}),
        **({"image_bytes": result.counts["image_bytes"]} if result.published.verity else {}),
        "seconds": round(result.seconds, 3),
    }


def _note_result(what: str, result: BuildResult, leftovers: tuple[bytes, ...]) -> None:
    _note_leftovers(leftovers)
    links = f", {result.links} of them hard links" if result.links else ""
    shared = f", {result.counts['shared']} shared with the base" if result.counts["shared"] else ""
    whole = result.counts["inline"]
    inside = f", {whole} files of them whole ({human_bytes(result.counts['inline_bytes'])})" if whole else ""
    note(f"{what}: {result.entries} entries{links}{shared}{inside}, {result.seconds:.1f} s")
    for text in result.published.notes:
        note(f"note: {text}")


def _note_leftovers(leftovers: tuple[bytes, ...]) -> None:
    for name in leftovers:
        note(f"mkmeta: {printable(name)}: left by a killed build, and cannot be removed")


def _manifest_id(text: str) -> ObjectId:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != DIGEST_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r} is not an ID of {2 * DIGEST_SIZE} hexadecimal digits")
    return ObjectId(raw)


def _jobs(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= WORKERS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {WORKERS_MAX}")
    return int(text)
