"""A volume whose server can die: a directory shown read-only through FUSE, by a program of its own.

with Served(source, point) as server: server.hang(); server.fail(errno.EIO); server.resume(); server.kill()
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

_IN = struct.Struct("=IIQQIIII")  # struct fuse_in_header, linux/fuse.h: len, opcode, unique, nodeid, uid, gid, pid, -
_OUT = struct.Struct("=IiQ")  # len, error, unique
_LOOKUP, _FORGET, _GETATTR, _READLINK, _OPEN, _READ, _STATFS, _RELEASE = 1, 2, 3, 5, 14, 15, 17, 18
_FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _INTERRUPT, _BATCH_FORGET = 25, 26, 27, 28, 29, 36, 42


class Served:
    """The server, running. Its word, in a file, says how it answers."""

    def __init__(self, source: Path, point: Path) -> None:
        self.point = point
        self._control = source.parent / f".{source.name}.control"
        self._source = source
        self.start()

    def start(self) -> None:
        """Mounts, and begins to answer."""
        self._say("ok")
        command = [sys.executable, "-m", "tests.host.served", *map(str, (self._source, self.point, self._control))]
        self._program = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        while not os.path.ismount(self.point):
            assert self._program.poll() is None, "no FUSE"
            time.sleep(0.01)

    def hang(self) -> None:
        """No request is answered from now on."""
        self._say("hang")

    def fail(self, number: int) -> None:
        """Each request is answered with an error."""
        self._say(str(number))

    def resume(self) -> None:
        """All is well again; what waited is answered."""
        self._say("ok")

    def kill(self) -> None:
        """The server is gone: ENOTCONN."""
        self._program.kill()
        self._program.wait()

    def _say(self, word: str) -> None:
        beside = self._control.with_suffix(".new")
        beside.write_text(word)
        beside.rename(self._control)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resume()
        self.kill()


def needs_fuse() -> bool:
    """Whether this machine has the device."""
    return os.path.exists("/dev/fuse")


class _Server:
    def __init__(self, source: str, control: str, device: int) -> None:
        self._paths = {1: source}
        self._numbers: dict[tuple[int, int], int] = {}
        self._control = control
        self._device = device
        self._answers: dict[int, Callable[[str, bytes], bytes]] = {
            _LOOKUP: lambda path, body: self._entry(os.path.join(path, os.fsdecode(body.split(b"\0")[0]))),
            _GETATTR: lambda path, _body: struct.pack("=QII", 0, 0, 0) + _attributes(os.lstat(path)),
            _READLINK: lambda path, _body: os.fsencode(os.readlink(path)),
            _OPEN: lambda path, _body: struct.pack("=QII", os.open(path, os.O_RDONLY), 0, 0),
            _READ: lambda _path, body: self._read(*struct.unpack_from("=QQI", body)),
            _STATFS: lambda _path, _body: struct.pack("=5Q4I6I", 9, 9, 9, 9, 9, 4096, 255, 4096, 0, *[0] * 6),
            _RELEASE: lambda _path, body: self._close(struct.unpack_from("=Q", body)[0]),
            _FLUSH: lambda _path, _body: b"",
            _OPENDIR: lambda _path, _body: struct.pack("=QII", 0, 0, 0),
            _READDIR: lambda path, body: self._list(path, *struct.unpack_from("=QQI", body)),
            _RELEASEDIR: lambda _path, _body: b"",
        }

    def run(self) -> None:
        while True:
            try:
                request = os.read(self._device, 1 << 20)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                return
            _len, code, unique, node, *_ = _IN.unpack_from(request)
            if code in (_FORGET, _INTERRUPT, _BATCH_FORGET):
                continue
            if code == _INIT:
                self._send(unique, 0, struct.pack("=4I2H2I2H8I", 7, 31, 65536, 0, 12, 9, 65536, 1, 16, 0, *[0] * 8))
                continue
            self._send(unique, *self._answer(code, node, request[_IN.size :]))

    def _answer(self, code: int, node: int, body: bytes) -> tuple[int, bytes]:
        while (word := Path(self._control).read_text()) == "hang":
            time.sleep(0.05)
        if word != "ok":
            return int(word), b""
        try:
            return 0, self._answers[code](self._paths[node], body)
        except KeyError:
            return errno.ENOSYS if code not in self._answers else errno.ESTALE, b""
        except OSError as error:
            return error.errno or errno.EIO, b""

    def _entry(self, path: str) -> bytes:
        status = os.lstat(path)
        number = self._numbers.setdefault((status.st_dev, status.st_ino), len(self._numbers) + 2)
        self._paths[number] = path
        return struct.pack("=QQQQII", number, 0, 0, 0, 0, 0) + _attributes(status)

    def _read(self, handle: int, offset: int, size: int) -> bytes:
        return os.pread(handle, size, offset)

    def _close(self, handle: int) -> bytes:
        os.close(handle)
        return b""

    def _list(self, path: str, _handle: int, offset: int, size: int) -> bytes:
        out = b""
        for number, name in enumerate([".", "..", *sorted(os.listdir(path))][offset:], offset + 1):
            status = os.lstat(os.path.join(path, name))
            raw = os.fsencode(name)
            one = struct.pack("=QQII", status.st_ino, number, len(raw), stat.S_IFMT(status.st_mode) >> 12) + raw
            one += bytes(-len(one) % 8)
            if len(out) + len(one) > size:
                break
            out += one
        return out

    def _send(self, unique: int, number: int, data: bytes) -> None:
        try:
            os.write(self._device, _OUT.pack(_OUT.size + len(data), -number, unique) + data)
        except OSError as error:
            if error.errno != errno.ENOENT:  # who asked was killed
                raise


def _attributes(status: os.stat_result) -> bytes:
    """struct fuse_attr."""
    times = [divmod(one, 10**9) for one in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)]
    return struct.pack(
        "=6Q10I",
        *(status.st_ino, status.st_size, status.st_blocks, *(one[0] for one in times), *(one[1] for one in times)),
        *(status.st_mode, status.st_nlink, status.st_uid, status.st_gid, 0, 4096, 0),
    )


def _serve(source: str, point: str, control: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"served", os.fsencode(point), b"fuse.served", 6, options) < 0:  # nosuid, nodev
        sys.exit(os.strerror(ctypes.get_errno()))
    os.chdir("/")
    _Server(source, control, device).run()


if __name__ == "__main__":
    _serve(*sys.argv[1:4])
