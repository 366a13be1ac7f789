"""fanotify(7): in which directories of a filesystem names come and go, whoever makes them, told by the kernel.

What is relied on (linux/fanotify.h, fanotify_init(2), fanotify_mark(2)):

- A mark on a filesystem (FAN_MARK_FILESYSTEM, Linux 4.20) hears of every directory of it, by whichever mount, and of
  what the kernel's own NFS server does for its clients. It wants CAP_SYS_ADMIN, opening directories by their handles
  CAP_DAC_READ_SEARCH. It does not keep the filesystem from being unmounted; then it is gone, and nothing says so.
- FAN_REPORT_DIR_FID (Linux 5.9) names the directory by its file handle. Names are not asked for: so what happens in one
  directory is one event in the queue, for what is named and what is a directory each, however many names come and go.
- The queue has a limit (fs.fanotify.max_queued_events, 16,384). What does not fit in is lost, and one event without a
  directory says so: FAN_Q_OVERFLOW.

    offset      size  field         struct fanotify_event_metadata
    0           4     event_len     with the records that follow
    4           1     vers          3
    6           2     metadata_len  where the first record is
    8           8     mask
    16          4     fd            FAN_NOFD, -1
    20          4     pid

    offset      size  field         struct fanotify_event_info_fid
    0           1     info_type     3: FAN_EVENT_INFO_TYPE_DFID
    2           2     len
    4           8     fsid
    12          4     handle_bytes  of a struct file_handle
    16          4     handle_type
    20          ...   f_handle
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import Final

from mkmeta.linux.handles import Handle

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
_libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)

_FAN_CLOEXEC: Final = 0x1
_FAN_NONBLOCK: Final = 0x2
_FAN_REPORT_DIR_FID: Final = 0x400
_FAN_MARK_ADD: Final = 0x1
_FAN_MARK_FILESYSTEM: Final = 0x100
_FAN_MOVED_FROM: Final = 0x40
_FAN_MOVED_TO: Final = 0x80
_FAN_CREATE: Final = 0x100
_FAN_DELETE: Final = 0x200
_FAN_Q_OVERFLOW: Final = 0x4000
_FAN_ONDIR: Final = 0x40000000  # directories that come and go as well
_METADATA: Final = struct.Struct("=IBxHQii")
_VERSION: Final = 3  # FANOTIFY_METADATA_VERSION
_HEADER: Final = struct.Struct("=BxH")  # of any record
_INFO: Final = struct.Struct("=BxH8xIi")
_INFO_TYPE_DFID: Final = 3

# Filesystems that change by this kernel only, and set the change time of what is moved: tests look at each of them
TOLD_OF: Final = frozenset({b"ext4", b"xfs", b"btrfs", b"tmpfs"})

_BUFFER: Final = 64 << 10  # bytes: a thousand events
_EVENTS_MAX: Final = 20_000  # per call: more than the queue holds, so that who makes them cannot keep us reading


class NameEvents:
    """Where names come and go on the filesystem of a directory. Made once, it hears until it is closed."""

    def __init__(self, directory_fd: int) -> None:
        """Raises OSError: EPERM without the rights, EINVAL before Linux 5.9, ENOSYS where the kernel has none of it;
        ENODEV, EOPNOTSUPP, EXDEV where the filesystem has no handles or no ID of its own, as a subvolume of btrfs.
        """
        self._fd: int = _libc.fanotify_init(_FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_REPORT_DIR_FID, os.O_RDONLY)
        _check(self._fd)
        mask = _FAN_CREATE | _FAN_DELETE | _FAN_MOVED_FROM | _FAN_MOVED_TO | _FAN_ONDIR
        try:
            _check(_libc.fanotify_mark(self._fd, _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM, mask, directory_fd, None))
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        """For poll(2): readable when something has happened."""
        return self._fd

    def close(self) -> None:
        """Hears nothing any more."""
        os.close(self._fd)

    def is_marked(self) -> bool:
        """Whether the filesystem is still mounted: then the descriptor's fdinfo, of proc(5), has its mark."""
        info = Path(f"/proc/self/fdinfo/{self._fd}").read_bytes()
        return any(line.startswith(b"fanotify sdev:") for line in info.splitlines())

    def read(self) -> tuple[dict[Handle, bool], bool]:
        """The directories in which names came or went since the last call, each with whether a directory was moved into
        it: what is in that has come with it, without events. Second: whether events were lost.

        Does not wait. Raises OSError: EBADMSG for what no kernel says.
        """
        found: dict[Handle, bool] = {}
        lost, count = False, 0
        while count < _EVENTS_MAX:
            try:
                data = os.read(self._fd, _BUFFER)
            except BlockingIOError:
                break
            for handle, moved in parse_events(data):
                count += 1
                if handle is None:
                    lost = True
                else:
                    found[handle] = moved or found.get(handle, False)
        return found, lost


def parse_events(data: bytes) -> list[tuple[Handle | None, bool]]:
    """The directory of each event in what was read, and whether one was moved into it. None: some events were lost.

    Raises OSError: EBADMSG.
    """
    found: list[tuple[Handle | None, bool]] = []
    at = 0
    try:
        while at < len(data):
            length, version, first, mask, _fd, _pid = _METADATA.unpack_from(data, at)
            if version != _VERSION or not _METADATA.size <= first <= length <= len(data) - at:
                raise _malformed()
            event = data[at : at + length]
            at += length
            if mask & _FAN_Q_OVERFLOW:
                found.append((None, False))
            else:
                moved = mask & (_FAN_MOVED_TO | _FAN_ONDIR) == _FAN_MOVED_TO | _FAN_ONDIR
                found.append((_directory_in(event, first), moved))
    except struct.error:
        raise _malformed() from None
    return found


def _directory_in(event: bytes, at: int) -> Handle:
    while at < len(event):
        kind, length = _HEADER.unpack_from(event, at)
        if not _HEADER.size <= length <= len(event) - at:
            raise _malformed()
        if kind == _INFO_TYPE_DFID:
            record = event[at : at + length]
            _, _, size, handle_type = _INFO.unpack_from(record)
            handle = record[_INFO.size : _INFO.size + size]
            if len(handle) < size:
                raise _malformed()
            return Handle(handle_type, handle)
        at += length
    raise _malformed()


def _malformed() -> OSError:
    return OSError(errno.EBADMSG, "events of fanotify that cannot be read")


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
