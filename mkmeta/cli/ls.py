"""`mkmeta ls`: entries below a path, reading only the parts of the manifest that hold them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from mkmeta.cli.entries import emit_entry, find_entry, long_line
from mkmeta.cli.manifest_argument import add_manifest_argument, open_manifest
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, printable
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory, Node

_DESCRIPTION = """\
Lists what a manifest holds at PATH: the entries of a directory, or the one entry that something else is.
Names are escaped where they are not printable text. Only the parts of the file that hold the answer are read
and checked.
"""

_EPILOG = """\
examples:
  mkmeta ls sw.mkm                       the top of the tree
  mkmeta ls -l sw.mkm grp/pixel/v42/lib  with all attributes
  mkmeta ls -R sw.mkm tools | grep '\\.py$'

exit codes:
  0   listed
  1   PATH is not in the manifest, or the file cannot be read
  2   wrong arguments
  10  the file is not a valid manifest
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(verbs, "ls", summary="list entries of a manifest", description=_DESCRIPTION, epilog=_EPILOG)
    add_manifest_argument(parser)
    parser.add_argument("path", metavar="PATH", nargs="?", default="", help="relative to the root; default: the root")
    parser.add_argument(
        "-l",
        "--long",
        action="store_true",
        help="mode (+: has xattrs), kind of directory (opaque: complete; merge: the rest of the volume shows through), "
        "uid, gid, size (of a directory: entries in it and below), mtime in UTC",
    )
    parser.add_argument("-R", "--recursive", action="store_true", help="also everything below, as paths from PATH")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Lists."""
    with open_manifest(args.manifest) as reader:
        path, node = find_entry(reader, args.path)
        for shown, at, entry in _entries(reader, path, node, args.recursive):
            if args.json:
                emit_entry(at, entry)
            else:
                print(long_line(shown, entry) if args.long else printable(shown))
    return ExitCode.DONE


def _entries(reader: ManifestReader, path: bytes, node: Node, recursive: bool) -> Iterator[tuple[bytes, bytes, Node]]:
    """What to show an entry as, its path, and the entry."""
    if not isinstance(node, Directory):
        yield path.rpartition(b"/")[2], path, node
        return
    prefix = path + b"/" if path else b""
    if recursive:
        below = reader.walk(path)
        next(below)  # the directory itself
        for at, entry in below:
            yield at[len(prefix) :], at, entry
    else:
        for name, entry in reader.entries(node, path):
            yield name, prefix + name, entry
