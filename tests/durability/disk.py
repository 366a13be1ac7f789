"""A filesystem that keeps only what was synced, fed with the system calls of a real run.

The rules are POSIX's, stricter than any filesystem in use: data and attributes of an inode are safe after fsync(2) of
it or syncfs(2); names in a directory after fsync(2) of the directory or syncfs(2). Until then a crash may keep any of
the changes, in any order, a rename before the data it is about. A symlink is safe with its name: nobody can sync one.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_NAMES = (
    "openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat"
)
_MODES = "mknod,mknodat,chmod,fchmod,fchmodat,chown,fchown,fchownat,lchown,utimensat,chdir,fchdir"
_XATTRS = "setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr"
_DATA = "write,writev,pwrite64,pwritev,ftruncate,truncate,fallocate,copy_file_range,sendfile,fsync,fdatasync,syncfs"
# What strace knows of a call that writes through memory would not be here; the program maps nothing writable
TRACED: Final = ",".join((_NAMES, _MODES, _XATTRS, _DATA))

_CALL = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)(?:<(.*?)>)?")
_ARGUMENT = re.compile(r'(AT_FDCWD|\d+)<([^>]*)>|"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Call:
    """A system call that succeeded."""

    process: str
    name: str
    arguments: str
    result_path: str  # of the descriptor it returned

    def paths_and_strings(self) -> list[tuple[bool, str]]:
        """Descriptors' paths (True) and strings (False) among the arguments."""
        return [(bool(fd), path if fd else text) for fd, path, text in _ARGUMENT.findall(self.arguments)]


def trace(command: Sequence[str | Path], log: Path, cwd: Path) -> list[Call]:
    """Runs a program that must succeed, and returns its calls in order."""
    strace: list[str | Path] = [
        "strace",
        "-f",
        "-y",
        "-qq",
        "-s",
        "64",
        "-e",
        "signal=none",
        "-e",
        f"trace={TRACED}",
        "-o",
        log,
    ]
    subprocess.run([*strace, *command], cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    return list(_parse(log.read_text(errors="backslashreplace").splitlines()))


def _parse(lines: list[str]) -> Iterator[Call]:
    unfinished: dict[str, str] = {}
    for line in lines:
        process = line.split(None, 1)[0]
        if line.endswith("<unfinished ...>"):
            unfinished[process] = line.removesuffix("<unfinished ...>").rstrip()
            continue
        resumed = re.fullmatch(r"\d+ +<\.\.\. \w+ resumed>(.*)", line)
        whole = unfinished.pop(process) + resumed[1] if resumed else line
        match = _CALL.match(whole)
        if match is not None and not match[4].startswith("-"):
            yield Call(match[1], match[2], match[3], match[5] or "")


@dataclass(eq=False)
class Inode:
    """Something on disk; of a directory, each name with all that it may be after a crash, the present one last."""

    kind: str  # "file", "directory" or "other"
    safe: bool = True  # data and attributes are synced
    unsafe_mark: bool = False  # an xattr for the next run only is not synced
    entries: dict[str, list[Inode | None]] = field(default_factory=dict)
    target: str = ""

    def bind(self, name: str, inode: Inode | None) -> None:
        self.entries.setdefault(name, [None]).append(inode)

    def is_complete(self) -> bool:
        """Whether a crash cannot change anything at or below it."""
        return self.safe and all(
            len(set(maybe)) == 1 and (maybe[0] is None or maybe[0].is_complete()) for maybe in self.entries.values()
        )

    def names(self) -> set[str]:
        """The names that are there, now or after a crash."""
        return {name for name, maybe in self.entries.items() if maybe != [None]}

    def sync_names(self) -> None:
        for name, maybe in list(self.entries.items()):
            self.entries[name] = maybe[-1:]


class Disk:
    """Everything below `top`, which is all safe at first."""

    def __init__(self, top: Path) -> None:
        self._top = str(top)
        self._working: dict[str, str] = {}
        self.root = _found(top)

    def run(self, calls: list[Call]) -> Iterator[Call]:
        """Does what the calls did, and yields each that changed something: the crash may come here."""
        for call in calls:
            if self._do(call):
                yield call

    def now(self, path: Path | str) -> Inode | None:
        """What is at a path."""
        inode: Inode | None = self.root
        for name in self._names(str(path)):
            inode = inode.entries.get(name, [None])[-1] if inode is not None else None
        return inode

    def maybe(self, path: Path | str) -> set[Inode | None]:
        """All that may be at a path after a crash."""
        found: set[Inode | None] = {self.root}
        for name in self._names(str(path)):
            found = {
                below for inode in found for below in (inode.entries.get(name, [None]) if inode is not None else [None])
            }
        return found

    def _names(self, path: str) -> list[str]:
        relative = os.path.relpath(path, self._top)
        assert not relative.startswith(".."), path
        return [name for name in relative.split("/") if name != "."]

    def _is_ours(self, path: str) -> bool:
        return path == self._top or path.startswith(self._top + "/")

    def _do(self, call: Call) -> bool:
        paths = self._paths(call)
        match call.name:
            case "chdir" | "fchdir":
                self._working[call.process] = paths[0]
                return False
            case "openat" | "openat2" | "creat":
                path = call.result_path
                if not self._is_ours(path) or not re.search("O_CREAT|O_TRUNC", call.arguments):
                    return False
                if self.now(path) is None:
                    self._bind(path, Inode("file", safe=False))
                elif "O_TRUNC" in call.arguments:
                    self._touch(path)
                return True
        paths = [path for path in paths if self._is_ours(path)]
        if not paths:
            return False
        first, last = paths[0], paths[-1]
        match call.name:
            case "mkdir" | "mkdirat":
                self._bind(first, Inode("directory", safe=False))
            case "mknod" | "mknodat":
                self._bind(first, Inode("other", safe=False))
            case "symlink" | "symlinkat":
                self._bind(last, Inode("other", target=call.paths_and_strings()[0][1]))
            case "link" | "linkat":
                self._bind(last, self.now(first))
            case "unlink" | "unlinkat" | "rmdir":
                self._bind(first, None)
            case "rename" | "renameat" | "renameat2":
                moved, replaced = self.now(first), self.now(last)
                self._bind(last, moved)
                self._bind(first, replaced if "RENAME_EXCHANGE" in call.arguments else None)
            case "fsync" | "fdatasync":
                inode = self.now(first)
                if inode is not None:
                    inode.safe, inode.unsafe_mark = True, False
                    inode.sync_names()
            case "syncfs":
                _sync_all(self.root)
            case _:
                self._touch(first, mark="mkmeta-pending" in call.arguments)
        return True

    def _paths(self, call: Call) -> list[str]:
        """What a call is about: descriptors' paths, and names below them or the working directory."""
        found: list[str] = []
        at = self._working.get(call.process, self._top)
        given = call.paths_and_strings()
        if call.name.endswith("xattr") or call.name in ("write", "pwrite64", "writev", "pwritev"):
            given = given[:1]  # names of xattrs and data are no paths
        if call.name in ("symlink", "symlinkat"):
            given = given[1:]
        directory = None
        takes_names = call.name.endswith("at") or call.name in ("openat2", "renameat2")
        for is_fd, text in given:
            if is_fd:
                if directory is not None:
                    found.append(directory)
                directory = text
            else:
                found.append(os.path.normpath(os.path.join(directory if takes_names and directory else at, text)))
                directory = None
        return found if directory is None else [*found, directory]

    def _bind(self, path: str, inode: Inode | None) -> None:
        parent = self.now(os.path.dirname(path))
        assert parent is not None, path
        parent.bind(os.path.basename(path), inode)

    def _touch(self, path: str, *, mark: bool = False) -> None:
        inode = self.now(path)
        if inode is None:
            return  # it was removed while it was open
        if mark:
            inode.unsafe_mark = True
        else:
            inode.safe = False


def _found(path: Path) -> Inode:
    if path.is_symlink():
        return Inode("other", target=os.readlink(path))
    if path.is_dir():
        return Inode("directory", entries={child.name: [_found(child)] for child in path.iterdir()})
    return Inode("file" if path.is_file() else "other")


def _sync_all(inode: Inode) -> None:
    inode.safe, inode.unsafe_mark = True, False
    inode.sync_names()
    for (below,) in inode.entries.values():
        if below is not None:
            _sync_all(below)
