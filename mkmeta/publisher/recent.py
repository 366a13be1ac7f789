"""What was released lately, and whether it still is what was recorded: a copy that went on after it was taken shows.

Once a release is some days old, nobody copies into it any more: `mkmeta verify --lower` looks at everything, and this
at what a mistake is likely in.
"""

from __future__ import annotations

from collections.abc import Iterator

from mkmeta.codec.container import Location
from mkmeta.errors import MkmetaError
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import NS, Directory, DirectoryKind
from mkmeta.publisher.arrival import CLOCKS_APART


def released_since(reader: ManifestReader, now_ns: int, seconds: float) -> Iterator[bytes]:
    """The paths that were selected and have changed, as they were recorded, less than so long before `now_ns`.

    That is when the last name came into a directory, or it was moved to where it is: change times are the server's, so
    five minutes are added. Raises FormatError, and MkmetaError for a manifest without change times.
    """
    if reader.facts_place is None:
        raise MkmetaError("has no change times", hint="those that mkmeta scan and release write have them")
    since_ns = now_ns - int((seconds + CLOCKS_APART) * NS)
    todo: list[tuple[bytes, Directory, Location | None]] = [(b"", reader.root.directory, reader.facts_place)]
    while todo:
        path, directory, facts = todo.pop()
        for entry in reader.recorded(directory, path, facts):
            below = path + b"/" + entry.name if path else entry.name
            if isinstance(entry.node, Directory) and entry.node.kind is DirectoryKind.MERGE:
                todo.append((below, entry.node, entry.facts))
            elif entry.change_time >= since_ns:
                yield below
