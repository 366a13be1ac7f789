"""Volumes to export: what NFS of any version can show, and no more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

RELEASES: Final = ("a/v1", "a/v2", "b/v1")
FILES: Final = 20  # per release, in lib


def make_volume(root: Path) -> None:
    """Three releases below grp/, each with lib and doc, and one of every kind of file in the first."""
    for release in RELEASES:
        lib, doc = root / "grp" / release / "lib", root / "grp" / release / "doc"
        for directory in (lib / "deep" / "er", doc):
            directory.mkdir(parents=True)
        for number in range(FILES):
            (lib / f"module{number}.py").write_text(f"{release} {number}\n" * (number + 1))
        (doc / "readme").write_text(f"how to use {release}")
        (lib / "deep" / "er" / "data").write_bytes(os.urandom(300_000))
    lib = root / "grp/a/v1/lib"
    (lib / "empty").touch()
    (lib / "link").symlink_to("module1.py")
    os.symlink(b"/nowhere/\xfe", os.fsencode(lib / "dangling"))
    os.mkfifo(lib / "fifo", 0o640)
    os.mknod(lib / "null", 0o20666, os.makedev(1, 3))
    os.link(lib / "module1.py", lib / "same")
    os.link(lib / "module1.py", root / "grp/b/v1/lib/same")
    (lib / os.fsdecode(b"odd\xff\n name")).write_text("odd")
    (lib / "module2.py").chmod(0o6751)
    os.chown(lib / "module3.py", 12345, 23456)
    os.utime(lib / "module4.py", ns=(1, 999_999_999))
    (lib / "deep").chmod(0o1777)


def names(root: Path) -> list[Path]:
    """Everything below `root`."""
    return [Path(directory, name) for directory, below, files in os.walk(root) for name in (*below, *files)]
