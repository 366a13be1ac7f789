"""ExternalSorter against sorted(), with memory for a few records only."""

from __future__ import annotations

import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.errors import MkmetaError
from mkmeta.manifest.sorter import ExternalSorter
from tests.conftest import Mount

RECORDS = st.lists(st.binary(max_size=30) | st.sampled_from([b"", b"same", b"x" * 70_000, b"x" * 70_001]), max_size=60)


@given(RECORDS, st.sampled_from([1, 200, 1000, 100_000]))
def test_gives_what_sorted_gives(records: list[bytes], limit: int) -> None:
    with ExternalSorter(memory_limit=limit) as sorter:
        for record in records:
            sorter.add(record)
        assert list(sorter) == sorted(records)


def test_memory_does_not_grow_with_the_records() -> None:
    """A million bytes of records in runs of ten thousand; what is held at once is what is counted."""
    limit = 10_000
    with ExternalSorter(memory_limit=limit) as sorter:
        for number in range(10_000):
            sorter.add((number * 7919 % 10_000).to_bytes(4, "big") * 25)
            assert sum(map(len, sorter._records)) < limit
        assert list(sorter) == [number.to_bytes(4, "big") * 25 for number in range(10_000)]


def test_the_temporary_file_has_no_name_and_is_closed(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", os.fspath(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    with ExternalSorter(memory_limit=1) as sorter:
        for record in (b"b", b"a"):
            sorter.add(record)
        assert len(os.listdir("/proc/self/fd")) == before + 1
        assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.needs("root")
def test_full_temporary_directory_is_named(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the output's fault, nor the volume's: the line says where, and what to do."""
    small = mount("tmpfs", "size=16k")
    monkeypatch.setattr(tempfile, "tempdir", str(small))
    with ExternalSorter(memory_limit=10_000) as sorter, pytest.raises(MkmetaError, match="no space left") as error:
        for number in range(1000):
            sorter.add(b"%04d" % number * 50)
    assert error.value.path == os.fsencode(small) and "TMPDIR" in (error.value.hint or "")
