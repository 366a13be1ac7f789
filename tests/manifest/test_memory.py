"""What it costs of memory to check and to show a hostile manifest: at most 150 MB, whatever it says."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest

from mkmeta.codec.container import CONTENT_ROW, FOOTER, OBJECT_ROW, decode_footer
from tests.layer.test_memory import HARMLESS, HOSTILE, measured, mkmeta
from tests.manifest import hostile
from tests.vectors.make_vectors import TOP
from tests.vectors.reject import sharing

REFUSED = {name for name in hostile.HOSTILE if "arrays" in name} | {"texts", "claims", "claims, deep"}
LISTED = {"wide", "wide, long attributes", "linked"}
WALKED = {"deep, full pages", "linked"}
_EXAMPLE = """
import sys
sys.path.insert(0, sys.argv[2])
from examples import read_manifest
with open(sys.argv[1], "rb") as file:
    read_manifest.check(read_manifest.Container(file.fileno()))
"""


def test_contents_that_overlap(tmp_path: Path) -> None:
    """One frame of 2 MiB of zeros, of which 400 files have nearly all."""
    file = tmp_path / "hostile.mkm"
    size = 2 << 20
    file.write_bytes(sharing(bytes(size), *(slice(0, size - number) for number in range(400))).encode())
    assert file.stat().st_size < 100_000
    assert mkmeta("show", "--check", file, code=10) < HARMLESS
    assert mkmeta("prune", "--drop", "00000", file, "-o", tmp_path / "pruned.mkm", code=10) < HARMLESS


_COUNTED = """
import sys
from mkmeta.manifest.content_walk import count_inside, visit_files
from mkmeta.manifest.reader import ManifestReader
with ManifestReader.open(sys.argv[1]) as reader:
    assert reader.file.objects > 20_000_000
    assert count_inside(reader, lambda *_: True).files == 2
    found = []
    visit_files(reader, lambda *file: found.append(file), public=False)
    assert len(found) == 2
"""


def test_an_object_table_with_a_hole(tmp_path: Path) -> None:
    """What is held for each object costs nothing for those that no file has."""
    data = sharing(b"1234", slice(0, 2), slice(2, 4)).encode()
    footer = decode_footer(data[-FOOTER.size :], len(data))
    hole = 20_000_000
    file = tmp_path / "sparse.mkm"
    with file.open("wb") as stream:
        stream.write(data[: footer.object_table])
        stream.seek(hole * OBJECT_ROW.size, os.SEEK_CUR)
        stream.write(data[footer.object_table : -FOOTER.size])
        stream.write(dataclasses.replace(footer, objects=footer.objects + hole).encode())
    assert measured(sys.executable, "-c", _COUNTED, file) < HARMLESS


_FOUND = """
import os, sys
from mkmeta.manifest.content_table import ContentTable
fd = os.open(sys.argv[1], os.O_RDONLY)
assert ContentTable(fd, 0, os.fstat(fd).st_size // 44).find(b"1" * 32) == -1
"""


def test_a_large_content_table(tmp_path: Path) -> None:
    """230 GB of one, with nothing in it: pieces of it do not grow with it."""
    file = tmp_path / "sparse"
    with file.open("wb") as stream:
        stream.truncate((5000 << 20) * CONTENT_ROW.size)
    assert measured(sys.executable, "-c", _FOUND, file) < HARMLESS


@pytest.mark.parametrize("name", hostile.HOSTILE)
def test_hostile(tmp_path: Path, name: str) -> None:
    file = tmp_path / "hostile.mkm"
    file.write_bytes(hostile.HOSTILE[name]().encode())
    assert file.stat().st_size < 1 << 20
    code = 10 if name in REFUSED else 0
    assert mkmeta("show", "--check", file, code=code) < (HOSTILE if code else HARMLESS)
    if name in LISTED:
        assert mkmeta("show", file) < HARMLESS
        assert mkmeta("ls", file) < HARMLESS
    if name in WALKED:
        assert mkmeta("ls", "-R", file) < HARMLESS
        assert mkmeta("dump", file) < HARMLESS
    if "attributes" in name:
        assert measured(sys.executable, "-c", _EXAMPLE, file, TOP) < HARMLESS
