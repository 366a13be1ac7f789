"""Making the hard links of a layer, after everything else."""

from __future__ import annotations

import os
from collections.abc import Iterable

from mkmeta.linux.syscalls import open_beneath
from mkmeta.model import LinkRow, PrimaryRow
from mkmeta.sinks.directory.diagnosis import Attempt, Diagnosis


def make_links(top: int, rows: Iterable[PrimaryRow | LinkRow]) -> None:
    """Links every path to its primary below the directory `top`; directories keep their mtime.

    Directories are opened following no link, and links are made by name in them. Raises BuildError.
    """
    diagnosis = Diagnosis(top)
    for row in rows:
        if not isinstance(row, LinkRow):
            continue
        source_directory, _, source = row.target.rpartition(b"/")
        target_directory, _, target = row.path.rpartition(b"/")
        try:
            source_fd = open_beneath(source_directory, os.O_PATH | os.O_DIRECTORY, dir_fd=top)
            try:
                _link(source_fd, source, target_directory, target, top)
            finally:
                os.close(source_fd)
        except OSError as error:
            raise diagnosis.explain(error, row.path, Attempt.LINK) from None


def _link(source_fd: int, source: bytes, directory: bytes, name: bytes, top: int) -> None:
    fd = open_beneath(directory, os.O_RDONLY | os.O_DIRECTORY, dir_fd=top)
    try:
        before = os.fstat(fd)
        os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=fd, follow_symlinks=False)
        os.utime(fd, ns=(before.st_mtime_ns, before.st_mtime_ns))
    finally:
        os.close(fd)
