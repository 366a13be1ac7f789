"""What a hostile manifest costs to check, and what only odd files show."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from mkmeta.codec.container import FRAME_COMPRESSED_MAX, OBJECT_ROW
from mkmeta.errors import FormatError
from mkmeta.manifest.check import check
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import NAME_MAX, PATH_LIMIT
from tests.layer.manifests import manifest_from
from tests.manifest.hostile import deep
from tests.manifest.opened import opened
from tests.vectors.assemble import Draft, entry, file
from tests.vectors.reject import base
from tests.vectors.trees import Tree, regular


@pytest.mark.timeout(20)
def test_links_deep_down_are_checked_in_one_pass() -> None:
    """1,000 names 1,900 levels deep: looking each up from the root would take minutes."""
    draft = Draft()
    names = [b"%04d" % number for number in range(1000)]
    inner = draft.folder(b"d", *map(file, names))
    for _ in range(1900):
        inner = draft.folder(b"d", inner)
    above = b"d/" * 1901
    rows = [[above + names[0], len(names)], *([above + name, above + names[0]] for name in names[1:])]
    with opened(draft.finish(inner, links=draft.linked(rows)).encode()) as reader:
        check(reader)
        assert sum(1 for _ in reader.links()) == len(names)
        assert len(reader.link_pages()) > 20


def test_a_frame_longer_than_any_can_be(tmp_path: Path) -> None:
    """A sparse file may claim any compressed length; it is refused before it is read."""
    parts = base()
    length = FRAME_COMPRESSED_MAX + 1
    parts.frame_rows[0] = [32, length, parts.sizes[0]]
    data = parts.encode()
    path = tmp_path / "sparse.mkm"
    tables = 3 * 16 + 44 * len(parts.object_rows) + 96
    with path.open("wb") as stream:
        stream.write(data[:32])
        stream.truncate(32 + length)
        stream.seek(32 + length)
        moved = 32 + length
        parts.footer |= {"frame_table": moved, "object_table": moved + 3 * 16}
        stream.write(parts.encode()[-tables:])
    with ManifestReader.open(str(path)) as reader, pytest.raises(FormatError, match="more than the limit"):
        _ = reader.root


def test_walk_of_deep_trees_does_not_recurse() -> None:
    draft = Draft()
    inner = draft.folder(b"d")
    for _ in range(2000):
        inner = draft.folder(b"d", inner)
    with opened(draft.finish(inner).encode()) as reader:
        check(reader)
        assert sum(1 for _ in reader.walk()) == 2002
        assert reader.find(b"/".join([b"d"] * 2001)) is not None
        assert reader.find(b"/".join([b"d"] * 2002)) is None


@pytest.mark.parametrize("known", [False, True], ids=["no facts", "facts"])
def test_the_longest_path(known: bool) -> None:
    """The kernel would not follow a redirect to a longer one."""

    def read(length: int) -> None:
        last = entry(b"n" * (length - LEVELS * (NAME_MAX + 1)), 0o010644)
        parts = deep(LEVELS, lambda level: [] if level else [last], b"~" * NAME_MAX, known=known)
        with opened(parts.encode()) as reader:
            check(reader)

    read(PATH_LIMIT)
    with pytest.raises(FormatError, match="path is longer than"):
        read(PATH_LIMIT + 1)


LEVELS = 15  # of directories whose names are as long as can be


def test_frames_are_taken_over_only_with_each_object_where_its_name_says() -> None:
    """Any two whose places were exchanged: no checksum of a frame tells."""
    leaves = {b"d%d" % number: Tree(children={b"f%d" % number: regular(number)}) for number in range(4)}
    manifest = manifest_from(Tree(children=leaves))
    with opened(manifest) as reader:
        assert len(list(reader.file.frames())) == reader.file.object_frames
        table, rows = reader.file.footer.object_table, reader.file.footer.objects
    size = OBJECT_ROW.size
    starts = [table + number * size for number in range(rows)]
    for one, other in itertools.pairwise(starts):
        damaged = bytearray(manifest)
        damaged[one + 32 : one + size], damaged[other + 32 : other + size] = (
            manifest[other + 32 : other + size],
            manifest[one + 32 : one + size],
        )
        with opened(bytes(damaged)) as reader, pytest.raises(FormatError, match="is damaged"):
            list(reader.file.frames())
