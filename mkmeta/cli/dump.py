"""`mkmeta dump`: the recorded tree as composefs-dump(5) text."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from blake3 import blake3

from mkmeta.cli.entries import emit_entry, find_entry
from mkmeta.cli.manifest_argument import add_manifest_argument, open_manifest
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.codec.dump import dump_hard_link, dump_line
from mkmeta.codec.dump_lines import CONTENT_MAX
from mkmeta.composefs_plan import object_name
from mkmeta.errors import ExitCode
from mkmeta.manifest.contents import Contents
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory, HardLinks, LinkRow, Node, PrimaryRow, RegularFile, path_within
from mkmeta.trees.links import FINGERPRINT_BYTES, LinkCollector, Look

_ANY_NLINK = 2**32 - 1  # more than the names of any inode

_DESCRIPTION = """\
Prints the tree of a manifest as composefs-dump(5) text, one entry a line in tree order. The payload of a file is
its path on the volume, so the text makes a composefs image whose files are redirected there:

  mkmeta dump sw.mkm | mkcomposefs --from-file - sw.cfs

Files of at most 5,000 bytes, more no text takes, whose content the manifest has (scan --inline) come with it.
With PATH, prints PATH, everything below it, and the directories above it.
"""

_EPILOG = """\
examples:
  mkmeta dump sw.mkm
  mkmeta dump sw.mkm grp/pixel/v42
  diff <(mkmeta dump old.mkm) <(mkmeta dump new.mkm)

exit codes:
  0   printed
  1   PATH is not in the manifest, or the file cannot be read
  2   wrong arguments
  10  the file is not a valid manifest; what was printed before may be incomplete
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs, "dump", summary="print a manifest as composefs-dump text", description=_DESCRIPTION, epilog=_EPILOG
    )
    add_manifest_argument(parser)
    parser.add_argument("path", metavar="PATH", nargs="?", default="", help="relative to the root; default: the root")
    parser.add_argument(
        "--objects",
        action="store_true",
        help="payloads are objects, ab/cdef... by fs-verity digest, as composefs keeps them, instead of paths",
    )
    parser.add_argument(
        "--no-inline", action="store_true", help="say of all files where they are, also of those the manifest has"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the dump."""
    with open_manifest(args.manifest) as reader:
        top, _ = find_entry(reader, args.path)
        for path, node, row in _rows_joined(reader, top):
            if args.json:
                emit_entry(reader.contents, path, node, row)
            else:
                print(_line(reader, path, node, row, args))
    return ExitCode.DONE


def _line(
    reader: ManifestReader, path: bytes, node: Node, row: PrimaryRow | LinkRow | None, args: argparse.Namespace
) -> str:
    if isinstance(row, LinkRow):
        return dump_hard_link(path, node, row.target)
    if isinstance(node, Directory):
        subdirectories = sum(isinstance(child, Directory) for _, child in reader.entries(node, path))
        return dump_line(path, node, nlink=2 + subdirectories)
    content = payload = None
    if isinstance(node, RegularFile):
        content = _content(reader.contents, path, node) if reader.contents is not None and not args.no_inline else None
        payload = object_name(node, path) if args.objects and node.size and content is None else None
    return dump_line(path, node, nlink=1 if row is None else row.nlink, content=content, payload=payload)


def _content(contents: Contents, path: bytes, file: RegularFile) -> bytes | None:
    """The content of a file, if the manifest has it and a text takes it."""
    number = contents.find(file)
    return contents.read(number, path) if number >= 0 and file.size <= CONTENT_MAX else None


def _rows_joined(reader: ManifestReader, top: bytes) -> Iterator[tuple[bytes, Node, PrimaryRow | LinkRow | None]]:
    """What to print, with what the link rows say of it. Both come in tree order: memory does not grow with the tree."""
    reader.check_links()  # so that every row meets its entry in the walk, and points to a line already printed
    rows = _links_below(reader, top) if top else reader.links()
    row = next(rows, None)
    for path, node in _nodes(reader, top):
        if row is None or row.path != path:
            yield path, node, None
        else:
            yield path, node, row
            row = next(rows, None)


def _nodes(reader: ManifestReader, top: bytes) -> Iterator[tuple[bytes, Node]]:
    """The directories above `top`, then `top` and everything below it, with their paths."""
    names = top.split(b"/") if top else []
    for depth in range(len(names)):
        path = b"/".join(names[:depth])
        node = reader.find(path)
        assert node is not None  # `top` was found below it
        yield path, node
    yield from reader.walk(top)


def _links_below(reader: ManifestReader, top: bytes) -> Iterator[PrimaryRow | LinkRow]:
    """The link rows of a manifest that held nothing but `top` and what is below it."""
    with LinkCollector(HardLinks.ALL) as names:
        for row in reader.links():
            if path_within(row.path, top):
                primary = row.target if isinstance(row, LinkRow) else row.path
                inode = int.from_bytes(blake3(primary).digest(8), "big")
                names.add(Look(inode, 0, _ANY_NLINK, bytes(FINGERPRINT_BYTES)), row.path, b"")
        yield from names.rows()
