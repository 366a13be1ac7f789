"""Whether the kernel of this host tells of changes on a volume (`mkmeta watch --events`, docs/release.md)."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from mkmeta.errors import reason
from mkmeta.host.finding import Finding, note, ok
from mkmeta.linux.descriptors import closing
from mkmeta.linux.fanotify import TOLD_OF, NameEvents
from mkmeta.linux.handles import Handle, open_by_handle

_NO_FILE: Final = Handle(1, bytes(8))  # FILEID_INO32_GEN of linux/exportfs.h, of inode 0, which is none

_MISSING: Final = {
    errno.EPERM: "it takes CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH: run `mkmeta watch` as root, outside of a container",
    errno.EINVAL: "it takes Linux 5.9",
    errno.ENOSYS: "it takes a kernel with CONFIG_FANOTIFY",
    errno.ENODEV: "it takes a filesystem with an ID of its own",
    errno.EOPNOTSUPP: "it takes a filesystem with file handles, one that could be exported by NFS",
    errno.EXDEV: "it takes a whole filesystem: mount what this is a subvolume of, and watch that",
}


def events(path: bytes, fstype: bytes) -> Iterator[Finding]:
    """Nothing of a filesystem that others change: no kernel tells all of that. Raises OSError for what is not there."""
    if fstype not in TOLD_OF:
        return
    shown = fstype.decode()
    with closing(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        try:
            with contextlib.closing(NameEvents(fd)):
                _check_handles(fd)
        except OSError as error:
            yield note(
                "lower-events",
                f"the kernel does not tell `watch` of changes on this {shown}, which lists all levels instead: "
                f"{reason(error)}",
                _MISSING.get(error.errno or 0, "see whether `dmesg` says more"),
                path,
            )
            return
    yield ok("lower-events", f"the kernel tells `watch` of changes: fanotify on {shown}", path)


def _check_handles(fd: int) -> None:
    """Raises OSError unless this process may open files by their handles."""
    try:
        os.close(open_by_handle(fd, _NO_FILE))
    except OSError as error:
        if error.errno == errno.EPERM:
            raise
