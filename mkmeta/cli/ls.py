"""`mkmeta ls`: entries below a path, reading only the parts of the manifest that hold them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from mkmeta.cli.entries import emit_entry, find_entry, is_whole, long_line, utc
from mkmeta.cli.manifest_argument import add_manifest_argument, open_manifest
from mkmeta.cli.output import emit
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, MkmetaError, UsageError, printable
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory, Node

_DESCRIPTION = """\
Lists what a manifest holds at PATH: the entries of a directory, or the one entry that something else is. Of a store,
lists its generations, oldest first: number and ID, when it was built, entries, and which one is the current one.

Names are escaped where they are not printable text. Only the parts of the file that hold the answer are read and
checked.
"""

_EPILOG = """\
examples:
  mkmeta ls sw.mkm                       the top of the tree
  mkmeta ls -l sw.mkm grp/pixel/v42/lib  with all attributes
  mkmeta ls -R sw.mkm tools | grep '\\.py$'
  mkmeta ls /var/lib/mkmeta/sw           the generations of a store

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
        "or whole (a file whose content is in the manifest, and so in layers), uid, gid, size (of a directory: entries "
        "in it and below), mtime in UTC",
    )
    parser.add_argument("-R", "--recursive", action="store_true", help="also everything below, as paths from PATH")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Lists."""
    if args.manifest != "-" and os.path.isdir(args.manifest):
        return _list_generations(args)
    with open_manifest(args.manifest) as reader:
        path, node = find_entry(reader, args.path)
        for shown, at, entry in _entries(reader, path, node, args.recursive):
            if args.json:
                emit_entry(reader.contents, at, entry)
            elif args.long:
                print(long_line(shown, entry, whole=is_whole(reader.contents, entry)))
            else:
                print(printable(shown))
    return ExitCode.DONE


def _list_generations(args: argparse.Namespace) -> int:
    from mkmeta.store.store import Store  # takes its time to import, and most calls are for manifests

    if args.path:
        hint = "name the generation's manifest: STORE/generations/NUMBER-ID/manifest.mkm"
        raise UsageError("is a directory: PATH goes with a manifest", path=os.fsencode(args.manifest), hint=hint)
    if not os.path.lexists(os.path.join(args.manifest, "store.json")):
        hint = "name a manifest, or a store: mkmeta build --store makes one"
        raise MkmetaError("is a directory, and no store", path=os.fsencode(args.manifest), hint=hint)
    store = Store.open(os.fsencode(args.manifest))
    current = store.current()
    for generation in store.generations():
        about = generation.about()
        is_current = generation == current
        if args.json:
            fields = {"generation": generation.number, "id": about.id.hex(), "built_ns": about.built_ns}
            emit("generation", **fields, kind=str(about.kind), entries=about.entries, current=is_current)
        else:
            what = f"{generation.name.decode()} {utc(about.built_ns)} {about.entries:>12,} entries {about.kind}"
            print(f"{what}{' current' if is_current else ''}")
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
