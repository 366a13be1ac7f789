"""Files that other programs wrote, whatever their form, as one profile."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

from mkmeta.demand.importers import bpftrace, environment, ld_debug
from mkmeta.demand.importers.strace import StraceImporter, survey
from mkmeta.demand.profile import Source
from mkmeta.demand.tally import Tally
from mkmeta.errors import MkmetaError, reason

_OF_PROCESS: Final = re.compile(rb".*\.(\d{1,10})")  # what strace -ff calls its files


def import_files(
    tally: Tally,
    source: Source,
    files: Sequence[bytes],
    *,
    stdin: BinaryIO,
    cwd: bytes | None,
    programs: Sequence[bytes],
) -> None:
    """Counts what is in files; `-` is standard input. Raises MkmetaError when one cannot be read."""
    if source is Source.STRACE:
        _import_strace(tally, files, stdin, cwd)
        return
    for file in files:
        with _opened(file, stdin) as stream:
            if source is Source.LD_DEBUG:
                ld_debug.read(tally, stream)
            elif source is Source.BPFTRACE:
                bpftrace.read(tally, stream)
            else:
                environment.read(tally, stream, programs)


def _import_strace(tally: Tally, files: Sequence[bytes], stdin: BinaryIO, cwd: bytes | None) -> None:
    """Traces: files of single processes that belong together, parents before children, or each by itself."""
    named = {file: match[1] for file in files if (match := _OF_PROCESS.fullmatch(file)) is not None}
    if len(named) < len(files) or len(files) == 1:
        for file in files:
            with _opened(file, stdin) as stream:
                StraceImporter(tally, cwd).read(stream)
        return
    made: set[bytes] = set()
    sharing: dict[bytes, bytes] = {}  # of those that share a directory, who made them
    moving: list[bytes] = []
    for file in files:
        with _opened(file, stdin) as stream:
            children, moves = survey(stream)
        made.update(children)
        sharing.update((child, named[file]) for child, shares in children.items() if shares)
        if moves:
            moving.append(named[file])
    movers: set[bytes] = set()
    for process in moving:
        above: bytes | None = process
        while above is not None and above not in movers:
            movers.add(above)
            above = sharing.get(above)
    importer = StraceImporter(tally, cwd, movers)
    left = sorted(files, key=lambda file: (named[file] in made, int(named[file])))
    while left:
        file = next((one for one in left if importer.knows(named[one])), left[0])
        left.remove(file)
        with _opened(file, stdin) as stream:
            importer.read(stream, named[file])


@contextlib.contextmanager
def _opened(file: bytes, stdin: BinaryIO) -> Iterator[BinaryIO]:
    if file == b"-":
        yield stdin
        return
    try:
        with open(file, "rb") as stream:
            yield stream
    except OSError as error:
        raise MkmetaError(reason(error), path=file) from None
