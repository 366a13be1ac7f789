"""What the search paths of an environment would ask in vain, without running anything.

The environment is text as `env` prints it, or `env -0`, or /proc/PID/environ. Its directories are looked into on this
machine, so that a search ends where a program's would:

    PATH                        each program, in each directory until it is found
    LD_LIBRARY_PATH, RPATH,     each library a program needs, and those need; first in the subdirectories of
    RUNPATH                     glibc-hwcaps, which cost one miss where there are none (before glibc 2.37 it also asks
                                for `tls` and `x86_64`, once: these are not counted)
    PYTHONPATH                  a stat and a listing for each entry: Python remembers names (importlib.machinery)
    PERL5LIB                    one module, as NAME.pmc and NAME.pm
    MANPATH                     one page: a directory for it that is not there, or a listing
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Sequence
from typing import BinaryIO, Final

from mkmeta.demand.elf import Needs, needs
from mkmeta.demand.tally import LISTING, MISS, OPEN, STAT, Tally
from mkmeta.linux.descriptors import closing

_TEXT_MAX: Final = 8 << 20  # bytes: more than the kernel takes for an environment
_ENTRIES_MAX: Final = 10_000  # of one search path
_LIBRARIES_MAX: Final = 10_000
_LOADER: Final = (b"ld-linux", b"ld64.so")  # the interpreter, which the kernel has loaded
_SYSTEM: Final = (
    b"/lib/x86_64-linux-gnu",
    b"/usr/lib/x86_64-linux-gnu",
    b"/lib64",
    b"/usr/lib64",
    b"/lib",
    b"/usr/lib",
)


def read(tally: Tally, stream: BinaryIO, programs: Sequence[bytes]) -> None:
    """Counts what an environment would ask in vain, for programs by name or path. Raises OSError of the stream."""
    text = stream.read(_TEXT_MAX + 1)
    if len(text) > _TEXT_MAX:
        tally.lost["cut"] += 1
        text = text[:_TEXT_MAX]
    pairs = (item.partition(b"=") for item in text.split(b"\0" if b"\0" in text else b"\n"))
    variables = {name: value for name, equals, value in pairs if equals}
    search = _Search(tally)
    path = _directories(variables, b"PATH", tally)
    for program in programs or (b"no-such-program",):
        found = program if b"/" in program else search.find(program, path, kind=OPEN)
        if found is not None:
            search.load(found, _directories(variables, b"LD_LIBRARY_PATH", tally))
    if not programs:
        for directory in _directories(variables, b"LD_LIBRARY_PATH", tally):
            search.ask_library(directory, b"no-such-library.so")
    for directory in _directories(variables, b"PYTHONPATH", tally):
        tally.add(directory, STAT if os.path.lexists(directory) else MISS)
        if os.path.isdir(directory):
            tally.add_directory(directory, LISTING)
    for directory in _directories(variables, b"PERL5LIB", tally):
        for name in (b"NoSuchModule.pmc", b"NoSuchModule.pm"):
            tally.add(directory + b"/" + name, MISS)
    for directory in _directories(variables, b"MANPATH", tally):
        if os.path.isdir(directory + b"/man1"):
            tally.add_directory(directory + b"/man1", LISTING)
        else:
            tally.add(directory + b"/man1", MISS)


def _directories(variables: dict[bytes, bytes], name: bytes, tally: Tally) -> list[bytes]:
    """The absolute entries of a search path."""
    value = variables.get(name, b"")
    if name == b"LD_LIBRARY_PATH":
        value = value.replace(b";", b":")  # both, ld.so(8)
    entries = [entry for entry in value.split(b":") if entry]
    absolute = [entry for entry in entries if entry[:1] == b"/"]
    tally.lost["relative"] += len(entries) - len(absolute)
    tally.lost["cut"] += max(len(absolute) - _ENTRIES_MAX, 0)
    return absolute[:_ENTRIES_MAX]


class _Search:
    """Looks for things as the kernel's and glibc's callers do, and counts."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._without_hwcaps: set[bytes] = set()

    def find(self, name: bytes, directories: Iterable[bytes], *, kind: int) -> bytes | None:
        """The first place of a name; what is before it is missed."""
        for directory in directories:
            path = directory + b"/" + name
            if os.path.exists(path):
                self._tally.add(path, kind)
                return path
            self._tally.add(path, MISS)
        return None

    def ask_library(self, directory: bytes, name: bytes) -> bool:
        """Whether a library is in a directory."""
        if directory not in self._without_hwcaps:
            self._without_hwcaps.add(directory)
            hwcaps = directory + b"/glibc-hwcaps"
            self._tally.add(hwcaps, STAT if os.path.isdir(hwcaps) else MISS)
        path = directory + b"/" + name
        there = os.path.exists(path)
        self._tally.add(path, OPEN if there else MISS)
        return there

    def load(self, program: bytes, library_path: Sequence[bytes]) -> None:
        """All libraries of a program, as ld.so(8) looks for them, breadth first.

        First in the RPATH of who needs one and of those that it was loaded for, each ignored where there is a RUNPATH.
        """
        first = _read_needs(program)
        waiting = deque(
            [(program, first, [] if first.runpath else _places(first.rpath, program))] if first is not None else []
        )
        library_path = _places(library_path, program)
        loaded: set[bytes] = set()
        while waiting:
            path, wants, rpath = waiting.popleft()
            places = [*(() if wants.runpath else rpath), *library_path, *_places(wants.runpath, path)]
            for name in wants.needed:
                if name in loaded or b"/" in name or name.startswith(_LOADER) or len(loaded) >= _LIBRARIES_MAX:
                    continue
                loaded.add(name)
                found = next((place for place in places if place[:1] == b"/" and self.ask_library(place, name)), None)
                found = found or next((one for one in _SYSTEM if os.path.exists(one + b"/" + name)), None)
                library = found + b"/" + name if found else None
                if library is not None and (more := _read_needs(library)) is not None:
                    own = [] if more.runpath else _places(more.rpath, library)
                    waiting.append((library, more, [*own, *rpath][:_ENTRIES_MAX]))


def _places(directories: Iterable[bytes], of: bytes) -> list[bytes]:
    """A list of directories as the loader has it: each once, and with the place of whose list it is."""
    origin = os.path.dirname(os.path.realpath(of))
    found = (one.replace(b"$ORIGIN", origin).replace(b"${ORIGIN}", origin) for one in directories)
    return list(dict.fromkeys(one.rstrip(b"/") or b"/" for one in found))


def _read_needs(path: bytes) -> Needs | None:
    try:
        with closing(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)) as fd:
            return needs(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    except OSError:  # not to be read by this user: what it needs is not known, as of a static program
        return None
