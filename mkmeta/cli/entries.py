"""Entries of a manifest as verbs take and print them: PATH arguments, long lines, JSON messages."""

from __future__ import annotations

import base64
import datetime
import os
import stat

from mkmeta.cli.output import emit, path_fields
from mkmeta.errors import MkmetaError, printable
from mkmeta.manifest.contents import Contents
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import NS, Device, Directory, LinkRow, Node, PrimaryRow, RegularFile, Symlink, type_name


def find_entry(reader: ManifestReader, argument: str) -> tuple[bytes, Node]:
    """The path a PATH argument means and what is there; slashes around it and `.` in it do not matter.

    Raises MkmetaError when the manifest has nothing there.
    """
    path = b"/".join(name for name in os.fsencode(argument).split(b"/") if name not in (b"", b"."))
    node = reader.find(path)
    if node is None:
        raise MkmetaError("not in this manifest", path=path, hint="mkmeta ls shows what is")
    return path, node


def is_whole(contents: Contents | None, node: Node) -> bool:
    """Whether a file is whole in layers, `contents` being those of its manifest. Raises FormatError."""
    return contents is not None and isinstance(node, RegularFile) and contents.find(node) >= 0


def emit_entry(contents: Contents | None, path: bytes, node: Node, row: PrimaryRow | LinkRow | None = None) -> None:
    """Prints the JSON message `entry`: everything recorded of an entry, and what a link row says of it.

    `contents` are those of the manifest. Raises FormatError.
    """
    whole = {"whole": is_whole(contents, node)} if isinstance(node, RegularFile) else {}
    emit("entry", **path_fields(path), **entry_fields(node, row), **whole)


def entry_fields(node: Node, row: PrimaryRow | LinkRow | None = None) -> dict[str, object]:
    """Everything recorded of an entry, and what a link row says of it, for JSON."""
    fields: dict[str, object] = {
        "type": type_name(node.mode),
        "mode": f"{stat.S_IMODE(node.mode):04o}",
        "uid": node.uid,
        "gid": node.gid,
        "mtime_ns": node.mtime_ns,
    }
    match node:
        case RegularFile():
            fields["size"] = node.size
            fields["blake3"] = node.blake3.hex() if node.blake3 else None
            fields["verity"] = node.verity.hex() if node.verity else None
        case Directory():
            fields["kind"] = node.kind.name.lower()
            fields["entries"] = node.entries
        case Symlink():
            fields |= path_fields(node.target, "target")
        case Device():
            fields["major"], fields["minor"] = node.major, node.minor
    if node.xattrs:
        fields["xattrs"] = [
            {**path_fields(name, "name"), "value_b64": base64.b64encode(value).decode()} for name, value in node.xattrs
        ]
    match row:
        case PrimaryRow(_, nlink):
            fields["nlink"] = nlink
        case LinkRow(_, target):
            fields |= path_fields(target, "hard_link_to")
    return fields


def long_line(shown: bytes, node: Node, *, whole: bool) -> str:
    """A line like those of `ls -l`, with what it is in a layer in place of the link count.

    That is the kind of a directory, and `whole` for a file whose content the manifest has.
    """
    kind = node.kind.name.lower() if isinstance(node, Directory) else "whole" if whole else "-"
    match node:
        case RegularFile():
            size = str(node.size)
        case Directory():
            size = str(node.entries)
        case Device():
            size = f"{node.major}, {node.minor}"
        case _:
            size = "-"
    tail = f" -> {printable(node.target)}" if isinstance(node, Symlink) else ""
    mark = "+" if node.xattrs else " "
    return (
        f"{stat.filemode(node.mode)}{mark} {kind:6} {node.uid:>5} {node.gid:>5} {size:>12} {utc(node.mtime_ns)} "
        f"{printable(shown)}{tail}"
    )


def utc(time_ns: int) -> str:
    """A time in UTC to the nanosecond; beyond what calendars hold, `@` and the seconds since the epoch."""
    seconds, nanoseconds = divmod(time_ns, NS)
    try:
        moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)
    except OverflowError:
        return f"@{seconds}.{nanoseconds:09}"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"
