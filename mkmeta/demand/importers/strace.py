"""What strace(1) wrote, of any version since 5: with `-f`, `-ff`, `-y`, times, in files or from a pipe.

Two kinds of lines need nothing but themselves, and are nearly all: an absolute path that was not there, and one that
was and was only looked at. One expression takes them from a block at C speed. All others are read one by one, in their
order: they may change what a relative path means. A process's working directory is known from a chdir, from what
`-y` prints, from its parent, or from whoever imports; where it is not, the call is counted as lost. So it is where
several threads share a directory that one of them changes, and `-ff` wrote each to a file of its own. What a descriptor
is of is known from the call that opened it, unless `-y` prints it: of dup(2) nothing is traced.

A line is anybody's, and may be a MiB long: every expression below is tried at one place of a line, and takes time in
proportion to its length, since no two parts of it that repeat can take the same bytes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Final

from mkmeta.demand.tally import LISTING, MISS, OPEN, STAT, WRITE, Tally, normal

_BLOCK: Final = 1 << 20  # bytes; a longer line is passed over
_PROCESSES_MAX: Final = 1 << 16
_DESCRIPTORS_MAX: Final = 1024  # of a process
_MAKERS_MAX: Final = 64  # whose directories are compared

_STATS: Final = (
    rb"(?:newfstatat|statx|l?stat(?:64)?|fstatat64|access|faccessat2?|readlink|readlinkat"
    rb"|l?getxattr|l?listxattr|getxattrat|listxattrat|file_getattr|statfs(?:64)?|name_to_handle_at|open_tree)"
)
_OPENS: Final = rb"(?:openat2?|open|execve|execveat|uselib)"
_WRITES: Final = (
    rb"(?:creat|mkdir|mkdirat|mknod|mknodat|rmdir|unlink|unlinkat|rename|renameat2?|link|linkat|symlink|symlinkat"
    rb"|truncate(?:64)?|chmod|fchmodat2?|l?chown(?:32)?|fchownat|utime|utimes|utimensat|futimesat|l?setxattr|l?removexattr"
    rb"|setxattrat|removexattrat|file_setattr)"
)
_MISSES: Final = rb"(?:chdir|chroot|umount2?|inotify_add_watch)"  # of no other interest when they succeed
# What may be before a call: process, time of day, seconds, relative seconds, number of the call, address
_BEFORE: Final = rb"(?:\d\d:\d\d:\d\d(?:\.\d+)? | *\d+\.\d+ )?(?:\(\+ +\d+\.\d+\) )?(?:\[[ 0-9a-fx?]+\] )*"
_PROCESS: Final = rb"(?:\[pid +\d+(?:<[^>\n]*>)?\] |\d+(?:<[^>\n]*>)? ++)?"
_FAST: Final = re.compile(
    rb"^(?:" + _PROCESS + _BEFORE + rb"(?:"
    rb"(?:" + _STATS + rb'|open(?:at)?|execve)\((?:AT_FDCWD(?:<[^>\n]*>)?, )?"(/[^"\\\n]*)"[,)][^\n]*'
    rb'= -1 ENOENT [^"<>\n]{0,99}(?:<[\d.]+>)?'  # if not, it is a word of an execve, or in a name
    rb"|" + _STATS + rb'\((?:AT_FDCWD(?:<[^>\n]*>)?, )?"(/[^"\\\n]*)"[,)][^\n]*\) += \d[^\n=]*)'
    rb"|([^\n]+))$",
    re.MULTILINE,
)
_LINE: Final = re.compile(rb"(?:\[pid +(\d+)(?:<[^>\n]*>)?\] |(\d+)(?:<[^>\n]*>)? +)?" + _BEFORE + rb"(.*)", re.DOTALL)
_CALL: Final = re.compile(
    rb"(\w+)\((.*)\) += (-?\d+|\?|0x[0-9a-f]+)"
    rb"(?:<(?:[^<>\\]|\\.|<[^<>]*>)*>(?:\(deleted\))?)?"  # of -y: a path, in which both are escaped, or a device's name
    rb"(?: (E[A-Z0-9]+) [^<>\"]{0,99}| [^<>\"]{0,99})?(?:<[\d.]+>| <unavailable>)?",
    re.DOTALL,
)
_UNFINISHED: Final = b"<unfinished ...>"
_PID_CHANGED: Final = re.compile(rb"(.*) <pid changed to \d+ \.\.\.>", re.DOTALL)  # an execve of a thread
_SUPERSEDED: Final = b"+++ superseded by execve in pid "  # as which its first thread goes on
_RESUMED: Final = re.compile(rb"<\.\.\. (\w+) resumed>(.*)", re.DOTALL)
_WHERE: Final = re.compile(
    rb"(?:(?P<fd>AT_FDCWD|-?\d+)(?:<(?P<place>(?:[^>\\]|\\.)*)>(?:\(deleted\))?)?, )?"
    rb'"(?P<path>(?:[^"\\]|\\.)*)"(?P<cut>\.\.\.)?'
)
_TWO_PATHS: Final = re.compile(rb"(?:rename|link|symlink)\w*")
_FD: Final = re.compile(rb"(\d+)(?:<((?:[^>\\]|\\.)*)>)?")
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([0-7]{1,3})|(.))", re.DOTALL)
_LETTERS: Final = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"f": b"\f", b"a": b"\a", b"b": b"\b"}
_NO_CALL: Final = (b"+++ ", b"--- ", b"strace: ", b"[ Process ", b"???(")  # the last: strace came too late for it
_CHILD: Final = re.compile(
    rb"^" + _BEFORE + rb"(?:(?:clone3?|v?fork)\(|<\.\.\. (?:clone3?|v?fork) resumed>)([^\n]*)\) += (\d+)", re.MULTILINE
)
_MOVE: Final = re.compile(rb"^" + _BEFORE + rb"f?chdir\([^\n]*\) += 0", re.MULTILINE)

_is_stat = re.compile(_STATS).fullmatch
_is_open = re.compile(_OPENS).fullmatch
_is_write = re.compile(_WRITES).fullmatch
_is_miss_alone = re.compile(_MISSES).fullmatch
_is_making = re.compile(rb"(?:clone3?|v?fork)\(").match


@dataclass(slots=True)
class _Place:
    """A working directory and root: threads, and whatever CLONE_FS made, share them."""

    path: bytes | None
    root: bytes | None = b""  # what is before an absolute path; None: not known
    is_shared: bool = False
    is_torn: bool = False  # several change it, and their files do not tell who did first


@dataclass(slots=True)
class _Process:
    """What is known of a process."""

    cwd: _Place
    opened: dict[bytes, bytes] = field(default_factory=dict)  # paths by descriptor; CLONE_FILES shares them
    begun: bytes = b""  # a call that has not ended
    is_guessed: bool = False  # it appeared before it was told who made it


class StraceImporter:
    """Reads one trace, in one file or, with `-ff`, in one for each process."""

    def __init__(self, tally: Tally, cwd: bytes | None = None, movers: Collection[bytes] = ()) -> None:
        """`cwd`: where the first process was started, when that is known.

        `movers`: with `-ff`, which processes change their directory, or what they made that shares it does. Files of
        their own do not tell those that share it when.
        """
        self._tally = tally
        self._cwd = cwd
        self._movers = movers
        self._processes: dict[bytes, _Process] = {}
        self._making: dict[bytes, _Process] = {}  # those in a call that makes one
        self._gone: set[bytes] = set()  # that ended while others were
        self._has_roots = False  # some process may have another root

    def knows(self, process: bytes) -> bool:
        """Whether its parent was seen making it."""
        return process in self._processes

    def read(self, stream: BinaryIO, process: bytes = b"") -> None:
        """Reads a trace to its end. `process`: whose it is, where the lines do not say. Raises OSError."""
        add, lost = self._tally.add, self._tally.lost
        for block in blocks(stream, lost):
            self._has_roots = self._has_roots or b"chroot(" in block
            if self._has_roots:  # no line says all by itself
                for line in filter(None, block.split(b"\n")):
                    self._line(line, process)
                continue
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
            if rest.startswith(_SUPERSEDED):
                self._process(who).begun = _SUPERSEDED
            elif rest.startswith(b"+++ "):
                self._end(who)
            return
        self._call(rest, who, self._process(who))

    def _end(self, who: bytes) -> None:
        self._processes.pop(who, None)
        self._making.pop(who, None)
        if not self._making or len(self._gone) >= _PROCESSES_MAX:
            self._gone.clear()
        elif who:
            self._gone.add(who)

    def _call(self, text: bytes, who: bytes, process: _Process) -> None:
        before, mark, after = text.rpartition(_UNFINISHED)
        if mark and not after.strip():
            process.begun = before.rstrip(b" ").removesuffix(b",")
            if _is_making(process.begun):
                self._making[who] = process
            return
        if (changed := _PID_CHANGED.fullmatch(text)) is not None:
            text = changed[1] + b") = 0"
        elif (resumed := _RESUMED.fullmatch(text)) is not None:
            begun, process.begun = process.begun, b""
            self._making.pop(who, None)
            if begun == _SUPERSEDED:
                return
            if not begun.startswith(resumed[1] + b"("):
                self._tally.lost["lines"] += 1
                return
            text = begun + (resumed[2] if resumed[2].lstrip().startswith(b")") else b", " + resumed[2].lstrip(b", "))
        call = _CALL.fullmatch(text)
        if call is None:
            self._tally.lost["lines"] += 1
            return
        name, arguments, result, error = call.groups()
        if name in (b"clone", b"clone3", b"fork", b"vfork"):
            if error is None and result.isdigit():
                self._fork(process, arguments, result)
        elif error is None and name in (b"chdir", b"fchdir"):
            self._move(process, self._target(process, name, arguments))
        elif error is None and name == b"chroot":
            root = self._target(process, name, arguments)
            process.cwd.root = normal(root).rstrip(b"/") if root is not None else None
        elif _is_stat(name) or _is_open(name) or _is_write(name) or (error and _is_miss_alone(name)):
            self._path_call(process, name, arguments, result, error)

    def _path_call(self, process: _Process, name: bytes, arguments: bytes, result: bytes, error: bytes | None) -> None:
        if error not in (None, b"ENOENT") or result == b"?":
            return
        if _is_write(name):
            for found in _written(name, arguments):
                path = self._resolve(process, found)
                if error is None:
                    self._write(path)
                elif path is not None:
                    self._tally.add(path, MISS)
                    return
            return
        where = _WHERE.match(arguments.partition(b", ")[2] if name == b"inotify_add_watch" else arguments)
        if where is None:  # a null pointer, an address
            return
        path = self._resolve(process, where)
        flags = arguments[where.end() :]
        is_open = _is_open(name) is not None and not name.startswith(b"exec")
        if error is None and is_open:
            _remember(process.opened, result, path)
        if path is None:
            return
        if error is not None:
            self._tally.add(path, MISS)
        elif is_open and b"O_PATH" in flags:
            self._tally.add(path, STAT)
        elif is_open and b"O_DIRECTORY" in flags:
            self._tally.add_directory(path, LISTING)
        elif is_open and re.search(rb"O_WRONLY|O_RDWR|O_CREAT|O_TMPFILE", flags):
            self._write(path)
        else:
            self._tally.add(path, OPEN if _is_open(name) else STAT)

    def _write(self, path: bytes | None) -> None:
        if path is not None:
            self._tally.add_directory(path.rstrip(b"/").rpartition(b"/")[0] or b"/", WRITE)

    def _resolve(self, process: _Process, where: re.Match[bytes]) -> bytes | None:
        """The absolute path of a call; None where nothing was looked up, or it cannot be known."""
        if where["cut"]:
            self._tally.lost["cut"] += 1
            return None
        path = unescape(where["path"])
        if path[:1] == b"/" and b"RESOLVE_IN_ROOT" not in where.string[where.end() :]:
            if process.cwd.root is None:
                self._tally.lost["chroot"] += 1
                return None
            return process.cwd.root + normal(path) if process.cwd.root else path
        if not path:
            return None  # AT_EMPTY_PATH: what is open already
        at = unescape(where["place"]) if where["place"] is not None else None
        if at is None and where["fd"] in (None, b"AT_FDCWD"):
            at = process.cwd.path
        elif at is None:
            at = process.opened.get(where["fd"])
        if at is None or at[:1] != b"/":
            self._tally.lost["relative"] += 1
            return None
        return at + b"/" + path

    def _target(self, process: _Process, name: bytes, arguments: bytes) -> bytes | None:
        """Which directory a chdir, fchdir or chroot leads to, when that is known."""
        if name != b"fchdir":
            where = _WHERE.match(arguments)
            return self._resolve(process, where) if where is not None else None
        match = _FD.match(arguments)
        if match is None:
            return None
        return unescape(match[2]) if match[2] is not None else process.opened.get(match[1])

    def _move(self, process: _Process, path: bytes | None) -> None:
        """Changes the working directory of a process and of all that share it."""
        place = process.cwd
        if place.is_torn:
            return
        if self._movers and place.is_shared:
            place.path, place.is_torn = None, True
            process.cwd = _Place(path, place.root)
        else:
            place.path = normal(path) if path is not None else None

    def _process(self, who: bytes) -> _Process:
        process = self._processes.get(who)
        return process if process is not None else self._add(who, self._unannounced())

    def _unannounced(self) -> _Process:
        """A process that appears before the call that made it has ended.

        It is of the one that is just making one; of several, what they agree on is its directory; in doubt, nothing.
        """
        if not self._processes:
            return _Process(_Place(self._cwd))
        makers = list(itertools.islice(self._making.values(), _MAKERS_MAX + 1))
        if len(makers) == 1:
            return replace(_made(makers[0], makers[0].begun), is_guessed=True)
        found = {maker.cwd.path for maker in makers if len(makers) <= _MAKERS_MAX}
        roots = {maker.cwd.root for maker in makers} if self._has_roots else {b""}
        cwd = _Place(found.pop() if len(found) == 1 else None, roots.pop() if len(roots) == 1 else None)
        return _Process(cwd, is_guessed=True)

    def _fork(self, parent: _Process, arguments: bytes, child: bytes) -> None:
        if child in self._gone:
            self._gone.remove(child)
            return
        made = _made(parent, arguments)
        if made.cwd is parent.cwd and child in self._movers:
            parent.cwd.path, parent.cwd.is_torn = None, True
        known = self._processes.get(child)
        if known is None:
            self._add(child, made)
        elif known.is_guessed:
            known.is_guessed = False
            if made.cwd is parent.cwd and known.cwd.path is not None:
                parent.cwd.path = known.cwd.path  # which may have moved since
            if made.cwd is parent.cwd or known.cwd.path is None:
                known.cwd = made.cwd
            if made.opened is parent.opened:
                parent.opened.update(known.opened)
                known.opened = parent.opened
            else:
                known.opened = made.opened | known.opened

    def _add(self, who: bytes, process: _Process) -> _Process:
        while len(self._processes) >= _PROCESSES_MAX:
            oldest = next(iter(self._processes))
            self._processes.pop(oldest)
            self._making.pop(oldest, None)
        return self._processes.setdefault(who, process)


def _made(parent: _Process, arguments: bytes) -> _Process:
    """What a process makes by a call with these arguments."""
    if b"CLONE_FS" in arguments:
        parent.cwd.is_shared = True
        cwd = parent.cwd
    else:
        cwd = _Place(parent.cwd.path, parent.cwd.root)
    return _Process(cwd, parent.opened if b"CLONE_FILES" in arguments else dict(parent.opened))


def _remember(opened: dict[bytes, bytes], descriptor: bytes, path: bytes | None) -> None:
    """Keeps what a descriptor is of. It may be any file: whoever looks for names in it has seen that it is none."""
    opened.pop(descriptor, None)
    if path is not None:
        if len(opened) >= _DESCRIPTORS_MAX:
            opened.clear()
        opened[descriptor] = path


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


def survey(stream: BinaryIO) -> tuple[dict[bytes, bool], bool]:
    """What one process's trace tells: whom it makes, and if they share its directory; and whether it changes that.

    Raises OSError.
    """
    made: dict[bytes, bool] = {}
    moves = False
    for block in blocks(stream, {}):
        moves = moves or _MOVE.search(block) is not None
        for arguments, child in _CHILD.findall(block):
            if len(made) < _PROCESSES_MAX:
                made[child] = b"CLONE_FS" in arguments
    return made, moves


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
