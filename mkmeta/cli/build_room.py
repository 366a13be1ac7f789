"""`mkmeta build --dry-run`: the room that a layer takes, and the room there is."""

from __future__ import annotations

import argparse
import os
from typing import Final

from mkmeta.cli.output import emit, note
from mkmeta.errors import BuildError, ExitCode, MkmetaError, human_bytes, printable, reason
from mkmeta.linux.filesystem import filesystem_type
from mkmeta.manifest.content_walk import data_inside
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import LinkRow
from mkmeta.sinks.protocol import LayerKind

_INODE: Final = 512  # bytes; as xfs, btrfs and an ext4 with room for attributes have it
_BLOCK: Final = 4096  # bytes; what the attributes of a file take besides on an ext4 with inodes of 256 bytes
_IN_IMAGE: Final = 210  # bytes per entry (docs/figures.md)


def check_room(reader: ManifestReader, args: argparse.Namespace) -> ExitCode:
    """Says what the layer takes where it would go, and writes nothing. Raises BuildError when that is not there."""
    place = _existing(args.store if args.store is not None else args.dest)
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MkmetaError(f"nothing can be made there: {reason(error)}", path=place) from None
    try:
        room, kind = os.fstatvfs(fd), filesystem_type(fd)
    finally:
        os.close(fd)
    entries = reader.root.directory.entries
    inside = 0 if args.no_inline else data_inside(reader)
    if args.format == LayerKind.DIRECTORY:
        inodes = entries + 1 - sum(isinstance(row, LinkRow) for row in reader.links())
        least = inodes * _INODE + inside
        most = least + (inodes * _BLOCK if kind.startswith("ext") else 0)
    else:
        inodes, least = 1, entries * _IN_IMAGE + inside
        most = least
    free = room.f_bavail * room.f_frsize
    inodes_free = room.f_favail if room.f_files else None  # btrfs makes them as they are needed
    lacking = _lacking(inodes, least, free, inodes_free)
    if args.json and lacking is None:
        emit(
            "summary",
            dry_run=True,
            id=reader.id.hex(),
            entries=entries,
            inodes=inodes,
            inodes_free=inodes_free,
            bytes_least=least,
            bytes_most=most,
            bytes_free=free,
            filesystem=kind,
        )
    elif not args.quiet and not args.json:
        size = human_bytes(least) + (f" to {human_bytes(most)}" if most > least else "")
        note(f"takes      about {size}, {inodes:,} inodes")
        there = f"{inodes_free:,}" if inodes_free is not None else "any number of"
        note(f"free       {human_bytes(free)}, {there} inodes, on {kind} at {printable(place)}")
        if lacking is None and free < most:
            note("note       it may not fit: with inodes of 256 bytes, each file takes a block (mkfs.ext4 -I 512)")
    if lacking is not None:
        raise BuildError(f"it would not fit: {lacking}", path=place, hint="make room, or build it elsewhere")
    if not args.json:
        print(reader.id.hex())
    return ExitCode.DONE


def _lacking(inodes: int, size: int, free: int, inodes_free: int | None) -> str | None:
    if inodes_free is not None and inodes_free < inodes:
        return f"it takes {inodes:,} inodes, and {inodes_free:,} are free"
    if free < size:
        return f"it takes about {human_bytes(size)}, and {human_bytes(free)} are free"
    return None


def _existing(path: bytes) -> bytes:
    """The directory that a path would be made in, or a store that is there."""
    place = os.path.abspath(path)
    if not os.path.isdir(os.path.join(place, b"generations")):
        place = os.path.dirname(place)
    while not os.path.isdir(place) and place != b"/":
        place = os.path.dirname(place)
    return place
