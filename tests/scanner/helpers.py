"""Trees to scan, and what a scan made of them."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mkmeta.manifest.check import check
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Node
from mkmeta.scanner.options import ScanOptions, ScanReport
from mkmeta.scanner.scan import scan


@dataclass
class Scanned:
    """A manifest file and the report that came with it."""

    path: Path
    report: ScanReport

    @property
    def id(self) -> str:
        return self.report.manifest_id.hex()

    def nodes(self) -> dict[bytes, Node]:
        """Everything in the manifest by path, the root apart; fails unless the whole manifest is valid."""
        with ManifestReader.open(str(self.path)) as reader:
            check(reader)
            return {path: node for path, node in reader.walk() if path}

    def left_out(self) -> dict[bytes, str]:
        return dict(self.report.left_out)


def scan_tree(root: Path, *select: str, **options: Any) -> Scanned:
    """Scans `root` into a file, `output` or else one beside it."""
    settings: dict[str, Any] = {"workers": 1, **options}
    output: Path = settings.pop("output", root.parent / f"{root.name}.mkm")
    with output.open("w+b") as stream:
        chosen = ScanOptions(root=os.fsencode(root), select=tuple(map(os.fsencode, select)), **settings)
        return Scanned(output, scan(chosen, stream))


def make_sample(root: Path, *, privileged: bool) -> None:
    """A small tree with one of everything that needs no privilege, and with `privileged` the rest."""
    base = os.fsencode(root)
    for directory in (b"grp/a/v1/lib", b"grp/a/v2/lib", b"grp/b/v1/lib/deep/er", b"tools/x/python", b"grp/b/empty"):
        os.makedirs(base + b"/" + directory)
    files = {
        b"grp/a/v1/lib/one.py": b"print(1)\n",
        b"grp/a/v1/lib/nothing": b"",
        b"grp/a/v2/lib/block": b"x" * 4096,
        b"grp/a/v2/lib/more": b"y" * 300_000,
        b"grp/b/v1/lib/deep/er/odd\xff\n name": b"odd",
        b"grp/b/v1/lib/-": b"dash",
        b"tools/x/python/tool": b"#!/bin/sh\n",
        b"top": b"level",
    }
    for name, content in files.items():
        with open(base + b"/" + name, "wb") as file:
            file.write(content)
    lib = base + b"/grp/a/v1/lib/"
    os.symlink(b"one.py", lib + b"link")
    os.symlink(b"/nowhere/\xfe", lib + b"dangling")
    os.mkfifo(lib + b"fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(lib)  # the path of a socket has 108 bytes at most
        server.bind("socket")
        os.chdir(before)
    os.link(lib + b"one.py", lib + b"same")
    os.link(lib + b"one.py", base + b"/grp/b/v1/lib/same")
    os.link(lib + b"fifo", lib + b"fifo2")
    with open(lib + b"huge", "wb") as file:
        file.truncate(5 << 20)
    os.chmod(lib + b"one.py", 0o6751)
    os.chmod(base + b"/grp/b/empty", 0o1777)
    os.setxattr(lib + b"one.py", b"user.note", b"\0binary\xff")
    os.setxattr(lib + b"nothing", b"user.empty", b"")
    os.setxattr(base + b"/grp/b", b"user.on-directory", b"1")
    for name, ns in ((b"nothing", -1), (b"huge", -(10**18) - 7), (b"link", 4_102_444_800_123_456_789)):
        os.utime(lib + name, ns=(ns, ns), follow_symlinks=False)
    os.utime(base + b"/grp/b/empty", ns=(5, 9_999_999_999))
    if privileged:
        os.mknod(lib + b"null", 0o20666, os.makedev(1, 3))
        os.mknod(lib + b"disk", 0o60640, os.makedev(259, 1_000_000))
        os.chown(lib + b"fifo", 12345, 4_294_967_294)
        os.setxattr(lib + b"one.py", b"trusted.secret", b"t")
        os.setxattr(lib + b"link", b"trusted.on-link", b"t", follow_symlinks=False)
