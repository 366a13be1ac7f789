"""What strace(1) wrote, of any version since 5: with `-f`, `-ff`, `-y`, times, in files or from a pipe.

Two kinds of lines need nothing but themselves, and are nearly all: an absolute path that was not there, and one that
was and was only looked at. One expression takes them from a block at C speed. All others are read one by one, in their
order: they may change what a relative path means. A process's working directory is known from a chdir, from what
`-y` prints, from its parent, or from whoever imports; where it is not, the call is counted as lost.

A line is anybody's, and may be a MiB long: every expression below is tried at one place of a line, and takes time in
proportion to its length, since no two parts of it that repeat can take the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from mkmeta.demand.tally import LISTING, MISS, OPEN, STAT, WRITE, Tally

_BLOCK: Final = 1 << 20  # bytes; a longer line is passed over
_PROCESSES_MAX: Final = 1 << 16
_DESCRIPTORS_MAX: Final = 1024  # directories a process has open

_STATS: Final = (
    rb"(?:newfstatat|statx|l?stat(?:64)?|fstatat64|access|faccessat2?|readlink|readlinkat"
    rb"|l?getxattr|l?listxattr|statfs(?:64)?)"
)
_OPENS: Final = rb"(?:openat2?|open|execve|execveat|uselib)"
_WRITES: Final = (
    rb"(?:creat|mkdir|mkdirat|mknod|mknodat|rmdir|unlink|unlinkat|rename|renameat2?|link|linkat|symlink|symlinkat"
    rb"|truncate(?:64)?|chmod|fchmodat2?|l?chown(?:32)?|fchownat|utime|utimes|utimensat|futimesat|l?setxattr|l?removexattr)"
)
# What may be before a call: process, time of day, seconds, relative seconds, number of the call, address
_BEFORE: Final = rb"(?:\d\d:\d\d:\d\d(?:\.\d+)? | *\d+\.\d+ )?(?:\[[ 0-9a-fx?]+\] )*"
_PROCESS: Final = rb"(?:\[pid +\d+\] |\d+ ++)?"
_FAST: Final = re.compile(
    rb"^(?:" + _PROCESS + _BEFORE + rb"(?:"
    rb"(?:" + _STATS + rb"|" + _OPENS + rb')\((?:AT_FDCWD(?:<[^>\n]*>)?, )?"(/[^"\\\n]*)"[,)][^\n]*= -1 ENOENT [^\n]*'
    rb"|" + _STATS + rb'\((?:AT_FDCWD(?:<[^>\n]*>)?, )?"(/[^"\\\n]*)"[,)][^\n]*\) += \d[^\n=]*)'
    rb"|([^\n]+))$",
    re.MULTILINE,
)
_LINE: Final = re.compile(rb"(?:\[pid +(\d+)\] |(\d+) +)?" + _BEFORE + rb"(.*)", re.DOTALL)
_CALL: Final = re.compile(
    rb"(\w+)\((.*)\) += (-?\d+|\?|0x[0-9a-f]+)(?:<(.*?)>(?:\(deleted\))?)?(?: (E[A-Z0-9]+) .*|.*)", re.DOTALL
)
_UNFINISHED: Final = b"<unfinished ...>"
_RESUMED: Final = re.compile(rb"<\.\.\. (\w+) resumed>(.*)", re.DOTALL)
_WHERE: Final = re.compile(
    rb"(?:(?P<fd>AT_FDCWD|-?\d+)(?:<(?P<place>(?:[^>\\]|\\.)*)>(?:\(deleted\))?)?, )?"
    rb'"(?P<path>(?:[^"\\]|\\.)*)"(?P<cut>\.\.\.)?'
)
_TWO_PATHS: Final = re.compile(rb"(?:rename|link|symlink)\w*")
_FD: Final = re.compile(rb"(\d+)(?:<((?:[^>\\]|\\.)*)>)?")
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([0-7]{1,3})|(.))", re.DOTALL)
_LETTERS: Final = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"f": b"\f", b"a": b"\a", b"b": b"\b"}
_NO_CALL: Final = (b"+++ ", b"--- ", b"strace: ", b"[ Process ")
_CHILD: Final = re.compile(
    rb"^" + _BEFORE + rb"(?:(?:clone3?|v?fork)\(|<\.\.\. (?:clone3?|v?fork) resumed>)[^\n]*\) += (\d+)", re.MULTILINE
)

_is_stat = re.compile(_STATS).fullmatch
_is_open = re.compile(_OPENS).fullmatch
_is_write = re.compile(_WRITES).fullmatch


@dataclass(slots=True)
class _Process:
    """What is known of a process."""

    cwd: list[bytes | None]  # one; threads and CLONE_FS share it
    directories: dict[bytes, bytes] = field(default_factory=dict)  # open ones, by descriptor
    begun: bytes = b""  # a call that has not ended


class StraceImporter:
    """Reads one trace, in one file or, with `-ff`, in one for each process."""

    def __init__(self, tally: Tally, cwd: bytes | None = None) -> None:
        """`cwd`: where the first process was started, when that is known."""
        self._tally = tally
        self._cwd = cwd
        self._processes: dict[bytes, _Process] = {}

    def knows(self, process: bytes) -> bool:
        """Whether its parent was seen making it."""
        return process in self._processes

    def read(self, stream: BinaryIO, process: bytes = b"") -> None:
        """Reads a trace to its end. `process`: whose it is, where the lines do not say. Raises OSError."""
        add, lost = self._tally.add, self._tally.lost
        for block in blocks(stream, lost):
            for missed, seen, other in _FAST.findall(block):
                if missed:
                    add(missed, MISS)
                elif other:
                    self._line(other, process)
                else:
                    add(seen, STAT)

    def _line(self, line: bytes, process: bytes) -> None:
        match = _LINE.fullmatch(line)
        assert match is not None
        who = match[1] or match[2] or process
        rest = match[3]
        if rest.startswith(_NO_CALL):
            if rest.startswith(b"+++ "):
                self._processes.pop(who, None)
            return
        self._call(rest, self._process(who))

    def _call(self, text: bytes, process: _Process) -> None:
        before, mark, after = text.rpartition(_UNFINISHED)
        if mark and not after.strip():
            process.begun = before.rstrip(b" ").removesuffix(b",")
            return
        if (resumed := _RESUMED.fullmatch(text)) is not None:
            begun, process.begun = process.begun, b""
            if not begun.startswith(resumed[1] + b"("):
                self._tally.lost["lines"] += 1
                return
            text = begun + (resumed[2] if resumed[2].lstrip().startswith(b")") else b", " + resumed[2].lstrip(b", "))
        call = _CALL.fullmatch(text)
        if call is None:
            self._tally.lost["lines"] += 1
            return
        name, arguments, result, place, error = call.groups()
        if name in (b"clone", b"clone3", b"fork", b"vfork"):
            if error is None and result.isdigit():
                self._fork(process, arguments, result)
        elif name == b"chroot":
            if error is None:
                self._tally.lost["chroot"] += 1
                process.cwd[0] = None
        elif name in (b"chdir", b"fchdir"):
            if error is None:
                self._chdir(process, name, arguments)
        elif _is_stat(name) or _is_open(name) or _is_write(name):
            self._path_call(process, name, arguments, result, place, error)

    def _path_call(
        self, process: _Process, name: bytes, arguments: bytes, result: bytes, place: bytes | None, error: bytes | None
    ) -> None:
        if error not in (None, b"ENOENT") or result == b"?":
            return
        if _is_write(name):
            if error is None:
                for found in _written(name, arguments):
                    self._write(self._resolve(process, found))
            return
        where = _WHERE.match(arguments)
        if where is None:  # a null pointer, an address
            return
        path = self._resolve(process, where)
        flags = arguments[where.end() :]
        is_open = _is_open(name) is not None and not name.startswith(b"exec")
        if error is None and is_open and (b"O_DIRECTORY" in flags or b"O_PATH" in flags):
            if path is not None:
                self._opened(process, result, path)
                if b"O_PATH" in flags:
                    self._tally.add(path, STAT)
                else:
                    self._tally.add_directory(path, LISTING)
        elif path is None:
            return
        elif error is not None:
            self._tally.add(path, MISS)
        elif is_open and re.search(rb"O_WRONLY|O_RDWR|O_CREAT|O_TMPFILE", flags):
            self._write(path)
        elif _is_open(name):
            process.directories.pop(result, None)
            self._tally.add(path, OPEN)
        else:
            self._tally.add(path, STAT)

    def _write(self, path: bytes | None) -> None:
        if path is not None:
            self._tally.add_directory(path.rstrip(b"/").rpartition(b"/")[0] or b"/", WRITE)

    def _opened(self, process: _Process, descriptor: bytes, path: bytes) -> None:
        if len(process.directories) >= _DESCRIPTORS_MAX:
            process.directories.clear()
        process.directories[descriptor] = path

    def _resolve(self, process: _Process, where: re.Match[bytes]) -> bytes | None:
        """The absolute path of a call; None where nothing was looked up, or it cannot be known."""
        if where["cut"]:
            self._tally.lost["cut"] += 1
            return None
        path = unescape(where["path"])
        if path[:1] == b"/":
            return path
        if not path:
            return None  # AT_EMPTY_PATH: what is open already
        at = unescape(where["place"]) if where["place"] is not None else None
        if at is None and where["fd"] in (None, b"AT_FDCWD"):
            at = process.cwd[0]
        elif at is None:
            at = process.directories.get(where["fd"])
        if at is None or at[:1] != b"/":
            self._tally.lost["relative"] += 1
            return None
        return at + b"/" + path

    def _chdir(self, process: _Process, name: bytes, arguments: bytes) -> None:
        if name == b"chdir":
            where = _WHERE.match(arguments)
            process.cwd[0] = self._resolve(process, where) if where is not None else None
            return
        match = _FD.match(arguments)
        if match is not None:
            process.cwd[0] = unescape(match[2]) if match[2] is not None else process.directories.get(match[1])

    def _process(self, who: bytes) -> _Process:
        process = self._processes.get(who)
        if process is None:
            cwd = self._first_cwd()
            process = self._add(who, _Process([cwd]))
        return process

    def _first_cwd(self) -> bytes | None:
        """The working directory of a process that appears before the call that made it has ended.

        What all agree on that are just making one; in doubt, nothing.
        """
        if not self._processes:
            return self._cwd
        making = (b"clone", b"fork", b"vfork")
        found = {process.cwd[0] for process in self._processes.values() if process.begun.startswith(making)}
        return found.pop() if len(found) == 1 else None

    def _fork(self, parent: _Process, arguments: bytes, child: bytes) -> None:
        shares = b"CLONE_FS" in arguments
        known = self._processes.get(child)
        if known is not None:
            if known.cwd[0] is None:
                known.cwd = parent.cwd if shares else [parent.cwd[0]]
            return
        cwd = parent.cwd if shares else [parent.cwd[0]]
        files = parent.directories if b"CLONE_FILES" in arguments else dict(parent.directories)
        self._add(child, _Process(cwd, files))

    def _add(self, who: bytes, process: _Process) -> _Process:
        while len(self._processes) >= _PROCESSES_MAX:
            self._processes.pop(next(iter(self._processes)))
        return self._processes.setdefault(who, process)


def _written(name: bytes, arguments: bytes) -> Iterator[re.Match[bytes]]:
    """The paths at which a call that changes something does so: its first, its second, or both."""
    first = _WHERE.match(arguments)
    if first is None:
        return
    if not name.startswith(b"symlink"):  # the first is what it leads to
        yield first
    if _TWO_PATHS.fullmatch(name) and arguments.startswith(b", ", first.end()):
        second = _WHERE.match(arguments, first.end() + 2)
        if second is not None:
            yield second


def children(stream: BinaryIO) -> set[bytes]:
    """The processes that a trace says were made. Raises OSError."""
    found: set[bytes] = set()
    for block in blocks(stream, {}):
        for child in _CHILD.findall(block):
            if len(found) < _PROCESSES_MAX:
                found.add(child)
    return found


def blocks(stream: BinaryIO, lost: dict[str, int]) -> Iterator[bytes]:
    """Whole lines, many at once. A line longer than a block is passed over, and counted as cut."""
    rest = b""
    skipping = False
    while data := stream.read(_BLOCK):
        end = data.rfind(b"\n") + 1
        if not end:
            if len(rest) + len(data) > _BLOCK or skipping:
                if not skipping:
                    lost["cut"] = lost.get("cut", 0) + 1
                rest, skipping = b"", True
            else:
                rest += data
            continue
        if skipping:
            begin, skipping = data.find(b"\n") + 1, False
        else:
            begin = 0
        yield rest + data[begin:end]
        rest = data[end:]
    if rest and not skipping:
        yield rest


def unescape(text: bytes) -> bytes:
    """A string as strace prints it, without its escapes: octal of one to three digits, `\\xHH`, letters."""
    return _ESCAPE.sub(_escaped, text) if b"\\" in text else text


def _escaped(match: re.Match[bytes]) -> bytes:
    if match[1] is not None:
        return bytes([int(match[1], 16)])
    if match[2] is not None:
        return bytes([int(match[2], 8) & 255])
    return _LETTERS.get(match[3], match[3])
