"""Mounts a directory by bind, nosuid and nodev, when it is first needed: a direct map of automount(8) with one entry.

python -m tests.host.automounter SOURCE POINT
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import sys

_MISSING_DIRECT = 5  # autofs_ptype_missing_direct, linux/auto_fs.h
_READY = 0x9360  # AUTOFS_IOC_READY
_MS_REMOUNT, _MS_BIND, _MS_NOSUID_NODEV = 0x20, 0x1000, 0x6


def main(source: bytes, point: bytes) -> None:
    """Serves requests until it is killed; prints `ready` first."""
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(what: bytes, fstype: bytes | None, flags: int, data: bytes | None) -> None:
        if libc.mount(what, point, fstype, flags, data) < 0:
            sys.exit(os.strerror(ctypes.get_errno()))

    os.setpgid(0, 0)
    reader, writer = os.pipe()
    mount(b"test", b"autofs", 0, b"fd=%d,pgrp=%d,minproto=5,maxproto=5,direct" % (writer, os.getpgrp()))
    root = os.open(point, os.O_RDONLY)  # our process group does not wait for itself
    os.close(writer)
    os.write(1, b"ready\n")
    while packet := os.read(reader, 512):
        _version, kind, token = struct.unpack_from("=iiI", packet)
        if kind == _MISSING_DIRECT:
            mount(source, None, _MS_BIND, None)
            mount(b"none", None, _MS_BIND | _MS_REMOUNT | _MS_NOSUID_NODEV, None)
        fcntl.ioctl(root, _READY, token)


if __name__ == "__main__":
    main(os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]))
