"""Readers of manifests that are in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from mkmeta.manifest.reader import ManifestReader


@contextmanager
def opened(data: bytes) -> Iterator[ManifestReader]:
    """A reader of these bytes. Raises FormatError."""
    with tempfile.TemporaryFile() as stream:
        stream.write(data)
        stream.flush()
        with ManifestReader(os.dup(stream.fileno())) as reader:
            yield reader
