"""How the contents that two manifests have differ: no part of their trees, and so no difference that `diff` finds."""

from __future__ import annotations

from typing import NamedTuple

from mkmeta.manifest.content_walk import Totals, count_inside, counted
from mkmeta.manifest.contents import Contents
from mkmeta.manifest.reader import ManifestReader


class ContentChanges(NamedTuple):
    """Files that are whole in layers, of one manifest and of another."""

    before: Totals  # as its writer counted
    after: Totals
    added: Totals | None  # only with the other manifest; None: the trees differ too
    removed: Totals | None  # only with the first


def content_changes(one: ManifestReader, other: ManifestReader) -> ContentChanges | None:
    """None: they have the same contents, which their tables say; the tree is read only where that is one, and they
    have not. Raises FormatError.
    """
    if _names(one) == _names(other):
        return None
    before, after = counted(one.info.counts), counted(other.info.counts)
    if one.id != other.id:
        return ContentChanges(before, after, None, None)
    added, removed = _only(other, one.contents), _only(one, other.contents)
    return ContentChanges(before, after, added, removed) if added.files or removed.files else None


def _names(reader: ManifestReader) -> bytes | None:
    """What stands for all names; None: there are none."""
    return reader.contents.id if reader.contents is not None and len(reader.contents) else None


def _only(reader: ManifestReader, others: Contents | None) -> Totals:
    """Files that are inside with this manifest and not with the one that has the others."""
    contents = reader.contents
    if contents is None or not len(contents):
        return Totals(0, 0)

    def is_inside(digest: bytes, size: int) -> bool:
        return contents.find_bytes(digest, size) >= 0 and (others is None or others.find_bytes(digest, size) < 0)

    return count_inside(reader, is_inside)
