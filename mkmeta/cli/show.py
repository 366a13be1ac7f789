"""`mkmeta show`: one page about a manifest."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from typing import Final

from mkmeta.cli.entries import utc
from mkmeta.cli.inside import inside_words
from mkmeta.cli.manifest_argument import add_manifest_argument, open_manifest
from mkmeta.cli.output import emit, path_fields
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, human_bytes, legible, printable
from mkmeta.manifest.check import check_all
from mkmeta.manifest.content_walk import counted
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory, DirectoryKind, Node, type_name

_ROWS: Final = 12  # of each list, so that the page stays one

_DESCRIPTION = """\
Shows what a manifest says of itself: its ID, what was scanned and when, what it counts, the subtrees it holds and
the ones it had to leave out. Only the directories above the subtrees are read and checked; --check reads everything.
"""

_EPILOG = """\
examples:
  mkmeta show sw.mkm
  mkmeta show --check sw.mkm      every entry, hard link and digest of the manifest itself
  mkmeta show --json sw.mkm | jq -r 'select(.message_type == "subtree").path'

exit codes:
  0   shown
  1   the file cannot be read
  2   wrong arguments
  10  the file is not a valid manifest
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(verbs, "show", summary="show a summary of a manifest", description=_DESCRIPTION, epilog=_EPILOG)
    add_manifest_argument(parser)
    parser.add_argument("--check", action="store_true", help="check the whole manifest first")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Shows."""
    with open_manifest(args.manifest) as reader:
        if args.check:
            check_all(reader)
        if args.json:
            _emit(reader, args.check)
        else:
            for line in _page(reader, args.check, None if args.verbose else _ROWS):
                print(line)
    return ExitCode.DONE


def subtrees(reader: ManifestReader) -> Iterator[tuple[bytes, Node]]:
    """What was selected, in tree order: the topmost opaque directories, and whatever else lies in the skeleton."""
    stack = [_entries(reader, b"", reader.root.directory)]
    while stack:
        for path, node in stack[-1]:
            if isinstance(node, Directory) and node.kind is DirectoryKind.MERGE:
                stack.append(_entries(reader, path, node))
                break
            yield path, node
        else:
            stack.pop()


def _entries(reader: ManifestReader, path: bytes, directory: Directory) -> Iterator[tuple[bytes, Node]]:
    for name, node in reader.entries(directory, path):
        yield (path + b"/" + name if path else name), node


def _page(reader: ManifestReader, checked: bool, rows: int | None) -> Iterator[str]:
    """The lines of the page; at most `rows` of each list."""
    info, root = reader.info, reader.root
    yield f"ID         {reader.id.hex()}"
    yield f"root       {printable(info.root)}"
    yield f"scanned    {utc(info.created)}"
    yield f"by         {legible(info.tool)}"
    yield f"digests    {', '.join(root.digests) or 'none'}"
    yield f"entries    {root.directory.entries:,}"
    for name, count in islice(info.counts.items(), rows):
        shown = f"{count:,} ({human_bytes(count)})" if name == "bytes" else f"{count:,}"
        if count:
            yield f"  {legible(name):<14} {shown}"
    if reader.contents is not None:
        yield f"contents   {inside_words(counted(info.counts), info.counts)}"
    yield f"hard links {'yes' if root.links else 'none'}"
    yield f"facts      {'yes: the next scan can build on it' if reader.facts_place else 'none'}"
    if checked:
        yield "checked    everything in the file is as the format demands"
    yield from _list("select", map(legible, info.select), len(info.select), rows)
    yield from _list("hide", map(legible, info.hide), len(info.hide), rows)
    yield from _list(
        "subtrees", (_subtree(path, node) for path, node in subtrees(reader)), sum(1 for _ in subtrees(reader)), rows
    )
    left_out = (f"{printable(path)}: {legible(reason)}" for path, reason in info.left_out)
    yield from _list("left out", left_out, len(info.left_out), rows)


def _subtree(path: bytes, node: Node) -> str:
    what = f"directory, {node.entries:,} below" if isinstance(node, Directory) else type_name(node.mode)
    return f"{printable(path)} ({what})"


def _list(title: str, items: Iterator[str], count: int, rows: int | None) -> Iterator[str]:
    yield f"{title:<10} {count:,}" if count else f"{title:<10} none"
    for item in islice(items, rows):
        yield f"  {item}"
    if rows is not None and count > rows:
        yield f"  ... and {count - rows:,} more; -v shows them"


def _emit(reader: ManifestReader, checked: bool) -> None:
    info, root = reader.info, reader.root
    emit(
        "manifest",
        id=reader.id.hex(),
        **path_fields(info.root, "root"),
        created=info.created,
        tool=info.tool,
        digests=list(root.digests),
        entries=root.directory.entries,
        counts=info.counts,
        select=[path_fields(pattern, "pattern") for pattern in info.select],
        hide=[path_fields(pattern, "pattern") for pattern in info.hide],
        hard_links=root.links is not None,
        facts=reader.facts_place is not None,
        contents=None if reader.contents is None else len(reader.contents),
        inline=[{**path_fields(pattern, "pattern"), "size": size} for pattern, size in info.inline],
        checked=checked,
    )
    found = 0
    for path, node in subtrees(reader):
        entries = node.entries if isinstance(node, Directory) else 0
        emit("subtree", **path_fields(path), type=type_name(node.mode), entries=entries)
        found += 1
    for path, reason in info.left_out:
        emit("left_out", **path_fields(path), reason=reason)
    emit("summary", subtrees=found, left_out=len(info.left_out))
