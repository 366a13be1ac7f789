"""`mkmeta diff`: what was added, removed and changed between two manifests, or layers."""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
from collections import Counter
from typing import Final

from mkmeta.cli.arguments import input_name
from mkmeta.cli.entries import entry_fields, utc
from mkmeta.cli.inside import files_words
from mkmeta.cli.manifest_argument import open_manifest
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, MkmetaError, UsageError, printable
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Device, Directory, LinkRow, Node, PrimaryRow, RegularFile, Symlink, type_name
from mkmeta.trees.changes import changed_xattrs
from mkmeta.trees.content_changes import content_changes
from mkmeta.trees.diff import HARD_LINKS, Difference, Tree, diff

_DESCRIPTION = """\
Compares two recorded trees and prints a line for each difference, in tree order:

  + path    only in B            - path    only in A            ~ path    changed, and what

A directory that was added or removed is one line with the number of entries in it; -R prints each of them. A renamed
file is one that was removed and one that was added. With PATH, compares what is at PATH and below it.

A and B are manifests, or layers: a directory that mkmeta build made, a generation, or a store, whose current generation
is meant. Of a layer, what is on disk is compared, not what was recorded of it: every entry is looked at. Between two
manifests only directories that differ are opened. Digests of contents are compared where both sides have them (a layer
has those of fs-verity at most).

Contents that manifests have (scan --inline) are no part of their trees: whether these are the same does not depend on
them. Where they differ, a note says how many files are whole in layers, of whole manifests, not of a PATH.
"""

_EPILOG = """\
examples:
  mkmeta diff old.mkm new.mkm
  mkmeta diff old.mkm new.mkm grp/pixel --stat
  mkmeta diff sw.mkm /var/lib/mkmeta/sw              the manifest, and the layer on disk
  mkmeta diff -q old.mkm new.mkm || mkmeta build new.mkm --store /var/lib/mkmeta/sw

exit codes:
  0   they are the same
  1   it cannot be told: something cannot be read, or PATH is in neither
  2   wrong arguments
  4   they differ
  10  a file is not a valid manifest
"""

_WHOLE: Final = "whole in layers"

_MARKS: Final = {"added": "+", "removed": "-", "changed": "~"}


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs, "diff", summary="compare two manifests, or layers", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument(
        "a", metavar="A", type=input_name, help="manifest or layer; - reads a manifest from standard input"
    )
    parser.add_argument("b", metavar="B", type=input_name, help="what it is compared with")
    parser.add_argument("path", metavar="PATH", nargs="?", default="", help="relative to the root; default: the root")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--stat", action="store_true", help="print only how many entries were added, removed and changed")
    how.add_argument(
        "-R", "--recursive", action="store_true", help="print everything in directories that were added or removed"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compares."""
    if args.a == args.b == "-":
        raise UsageError("standard input cannot be both sides")
    top = b"/".join(name for name in os.fsencode(args.path).split(b"/") if name not in (b"", b"."))
    counts: Counter[str] = Counter(dict.fromkeys(_MARKS, 0))
    with contextlib.ExitStack() as stack:
        one, other = _open(args.a, stack), _open(args.b, stack)
        try:
            for difference in diff(one, other, top, everything=args.recursive):
                change = _change(difference)
                entries = 0 if change == "changed" else _entries(one, other, difference, recursive=args.recursive)
                counts[change] += 1 + entries
                if args.quiet:
                    break
                if not args.stat:
                    _show(difference, change, entries, as_json=args.json)
        except KeyError:
            raise MkmetaError("is in neither of them", path=top, hint="mkmeta ls shows what is") from None
        _note_digests(one, other, args)
        if not top:
            _note_contents(one, other, args)
        if args.json:
            emit("summary", **counts)
        elif args.stat:
            print(", ".join(f"{count:,} {change}" for change, count in counts.items()))
    return int(ExitCode.DIFFERENT if counts.total() else ExitCode.DONE)


def _open(argument: str, stack: contextlib.ExitStack) -> Tree:
    if argument == "-":
        return stack.enter_context(open_manifest(argument))
    from mkmeta.mounts.image import opened  # what follows is for layers, and takes its time to import
    from mkmeta.sinks.erofs.inspection import is_image

    if not os.path.isdir(argument) and not is_image(os.fsencode(argument)):
        return stack.enter_context(open_manifest(argument))
    from mkmeta.cli.layer_argument import FoundLayer
    from mkmeta.trees.layer_tree import LayerTree

    tree = stack.enter_context(opened(FoundLayer.at(os.fsencode(argument)).layer))
    return stack.enter_context(LayerTree(tree))


def _change(difference: Difference) -> str:
    if difference.before is None:
        return "added"
    return "removed" if difference.after is None else "changed"


def _entries(one: Tree, other: Tree, difference: Difference, *, recursive: bool) -> int:
    """How many entries are in what was added or removed and are no differences of their own."""
    side, node = (one, difference.before) if difference.after is None else (other, difference.after)
    if recursive or not isinstance(node, Directory):
        return 0
    return node.entries if isinstance(side, ManifestReader) else _count(side, node, difference.path)


def _count(side: Tree, top: Directory, path: bytes) -> int:
    """The number of entries in a directory of a layer, which nobody has counted."""
    found, stack = 0, [(path + b"/" if path else b"", side.entries(top, path))]
    while stack:
        prefix, entries = stack[-1]
        for name, node in entries:
            found += 1
            if isinstance(node, Directory):
                stack.append((prefix + name + b"/", side.entries(node, prefix + name)))
                break
        else:
            stack.pop()
    return found


def _show(difference: Difference, change: str, entries: int, *, as_json: bool) -> None:
    if as_json:
        _emit(difference, change, entries)
        return
    path = printable(difference.path) or "/"
    if difference.before is not None and difference.after is not None:
        words = [_in_words(name, difference, difference.before, difference.after) for name in difference.changes]
        print(f"~ {path}: {', '.join(words)}")
        return
    node = difference.before or difference.after
    assert node is not None
    row = difference.row_before or difference.row_after
    linked = f", hard link to {printable(row.target)}" if isinstance(row, LinkRow) else ""
    inside = f", {entries:,} entries in it" if entries else ""
    print(f"{_MARKS[change]} {path} ({type_name(node.mode)}{inside}{linked})")


def _in_words(name: str, difference: Difference, before: Node, after: Node) -> str:
    """One change of a path, with what was before and what is after where that is short."""
    match name, before, after:
        case "type", _, _:
            one, other = type_name(before.mode), type_name(after.mode)
        case "mode", _, _:
            one, other = (f"{stat.S_IMODE(node.mode):04o}" for node in (before, after))
        case "owner", _, _:
            one, other = (f"{node.uid}:{node.gid}" for node in (before, after))
        case "mtime", _, _:
            one, other = utc(before.mtime_ns), utc(after.mtime_ns)
        case "size", RegularFile(), RegularFile():
            one, other = str(before.size), str(after.size)
        case "kind", Directory(), Directory():
            one, other = before.kind.name.lower(), after.kind.name.lower()
        case "target", Symlink(), Symlink():
            one, other = printable(before.target), printable(after.target)
        case "device", Device(), Device():
            one, other = (f"{node.major},{node.minor}" for node in (before, after))
        case "xattrs", _, _:
            return f"xattrs ({', '.join(printable(xattr) for xattr in changed_xattrs(before, after))})"
        case _, _, _ if name == HARD_LINKS:
            one, other = _row(difference.row_before), _row(difference.row_after)
        case _:
            return name
    return f"{name} {one} -> {other}"


def _row(row: PrimaryRow | LinkRow | None) -> str:
    match row:
        case PrimaryRow(_, nlink):
            return f"{nlink} names"
        case LinkRow(_, target):
            return f"the same as {printable(target)}"
    return "none"


def _emit(difference: Difference, change: str, entries: int) -> None:
    nodes = {"before": (difference.before, difference.row_before), "after": (difference.after, difference.row_after)}
    fields: dict[str, object] = {
        side: entry_fields(node, row) if node is not None else None for side, (node, row) in nodes.items()
    }
    if change == "changed" and "xattrs" in difference.changes:
        assert difference.before is not None and difference.after is not None
        names = changed_xattrs(difference.before, difference.after)
        fields["changed_xattrs"] = [path_fields(name, "name") for name in names]
    emit(
        "difference", **path_fields(difference.path), change=change, what=difference.changes, entries=entries, **fields
    )


def _note_contents(one: Tree, other: Tree, args: argparse.Namespace) -> None:
    """Says which contents come or go."""
    if args.quiet or not isinstance(one, ManifestReader) or not isinstance(other, ManifestReader):
        return
    changes = content_changes(one, other)
    if changes is None:
        return
    if args.json:
        fields = {
            side: None if totals is None else {"files": totals.files, "bytes": totals.size}
            for side, totals in changes._asdict().items()
        }
        emit("contents", **fields)
    elif changes.added is None or changes.removed is None:
        sides = zip("AB", (changes.before, changes.after), strict=True)
        note(f"note: {', '.join(f'with {side} {files_words(totals, _WHOLE)}' for side, totals in sides)}")
    else:
        sides = zip("AB", (changes.removed, changes.added), strict=True)
        words = [files_words(totals, f"{_WHOLE} with {side} only") for side, totals in sides if totals.files]
        note(f"note: the tree is the same, contents in the manifests are not: {', '.join(words)}")


def _note_digests(one: Tree, other: Tree, args: argparse.Namespace) -> None:
    """Says what could not be compared. (With --json, `before` and `after` have the digests there are.)"""
    if args.json or args.quiet or not isinstance(one, ManifestReader) or not isinstance(other, ManifestReader):
        return
    missing = set(one.root.digests) ^ set(other.root.digests)
    if missing:
        note(f"note: not compared, as only one of them has it: {', '.join(sorted(missing))} of the contents")
