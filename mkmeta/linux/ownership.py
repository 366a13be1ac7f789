"""Who owns a file, as far as this process can tell, and who may change it, by its owner and mode and those of the
directories above it (path_resolution(7)).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

_INITIAL: Final = ["0", "0", "4294967295"]  # /proc/self/uid_map where user IDs are what they are
_OVERFLOW: Final = Path("/proc/sys/fs/overflowuid")
_ID_COUNT: Final = 2**32 - 1  # the last number is no ID


class Strangers(NamedTuple):
    """What a file shows as its owner where that says nothing of who it is; None: of all, it says who."""

    uid: int | None = None
    gid: int | None = None


def strangers() -> Strangers:
    """Of this process: where its user namespace does not map all IDs, files of those without one show the overflow ID
    instead, which may be somebody's besides (user_namespaces(7)). Raises OSError.
    """
    return Strangers(_stranger("uid"), _stranger("gid"))


def _stranger(kind: str) -> int | None:
    try:
        table = Path(f"/proc/self/{kind}_map").read_text()
    except FileNotFoundError:  # a kernel without user namespaces
        return None
    if sum(int(line.split()[2]) for line in table.splitlines()) == _ID_COUNT:
        return None
    return int(Path(f"/proc/sys/kernel/overflow{kind}").read_text())


def who_else_may_write(status: os.stat_result, path: bytes) -> tuple[bytes, str] | None:
    """Where, and why, somebody but root and this user may change what is at a real path; None when nobody may.

    `status` is of the opened file. A directory that others may write to lets them put another file there, unless it is
    sticky. The group's write bit counts when this process is root, for whom a group is others; for other users it is a
    choice of theirs (most have a group of their own). In a user namespace files of the host's root have the overflow
    ID, and so have those of users it does not know: there this says less. Raises OSError.
    """
    owners = {0, os.geteuid()}
    if Path("/proc/self/uid_map").read_text().split() != _INITIAL:
        owners.add(int(_OVERFLOW.read_text()))
    others = stat.S_IWOTH | (stat.S_IWGRP if os.geteuid() == 0 else 0)
    at, found = path, status
    while True:
        if found.st_uid not in owners:
            return at, f"belongs to user {found.st_uid}"
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_mode & others and not sticky:
            return at, f"can be written by {'others' if found.st_mode & stat.S_IWOTH else 'its group'}"
        if at == b"/":
            return None
        at = os.path.dirname(at)
        found = os.stat(at)
