"""Looking at trees the way an administrator would: with stat, getfattr and listings, not with mkmeta's own code."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mkmeta.build import BuildOptions, BuildResult, build, sink_for
from mkmeta.manifest.reader import ManifestReader
from mkmeta.plan import Plan


def open_reader(manifest: bytes) -> ManifestReader:
    """A reader over a manifest in memory."""
    with tempfile.TemporaryFile() as file:
        file.write(manifest)
        file.flush()
        return ManifestReader(os.dup(file.fileno()))


def build_layer(
    manifest: bytes, dest: Path, options: BuildOptions | None = None, *, swap: bool = False, discard: bool = False
) -> BuildResult:
    """Builds a layer from a manifest in memory."""
    options = options or BuildOptions()
    with open_reader(manifest) as reader:
        return build(reader, sink_for(os.fsencode(dest), options, swap=swap, discard=discard), options)


def with_plan(**fields: object) -> BuildOptions:
    """Options that differ in the plan."""
    return BuildOptions(plan=Plan(**fields))  # type: ignore[arg-type]


def paths(top: Path) -> Iterator[bytes]:
    """Every path below `top`, relative to it."""
    raw = os.fsencode(top)
    for directory, directories, files in os.walk(raw):
        for name in directories + files:
            yield os.path.relpath(os.path.join(directory, name), raw)


def attributes(top: Path) -> dict[bytes, tuple[object, ...]]:
    """What a manifest records of every inode at and below `top`, as stat(2) and readlink(2) tell it."""
    found: dict[bytes, tuple[object, ...]] = {}
    for path in (b".", *paths(top)):
        real = os.path.join(os.fsencode(top), path)
        status = os.lstat(real)
        regular, link = stat.S_ISREG(status.st_mode), stat.S_ISLNK(status.st_mode)
        found[path] = (
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_size if regular else None,
            0 if stat.S_ISDIR(status.st_mode) else status.st_rdev,
            os.readlink(real) if link else None,
        )
    return found


def xattrs(path: Path | bytes, pattern: str = "-") -> dict[str, bytes]:
    """The xattrs whose names match the expression `pattern`, as getfattr shows them."""
    command = ["getfattr", "--no-dereference", "--absolute-names", "--encoding=hex", "-m", pattern, "-d", "--", path]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    pairs = (line.split(b"=", 1) for line in io.BytesIO(output) if not line.startswith(b"#") and line.strip())
    return {
        pair[0].strip().decode(): bytes.fromhex(pair[1].strip()[2:].decode()) if pair[1:] else b"" for pair in pairs
    }


def differences(one: Path, other: Path, *, checksum: bool = True) -> list[str]:
    """What rsync would do to make `other` like `one`, attributes of every kind, hard links and content included."""
    command = ["rsync", "-aHAXn", "--delete", "--itemize-changes", *(["--checksum"] if checksum else [])]
    result = subprocess.run([*command, f"{one}/", f"{other}/"], capture_output=True, check=True)
    return result.stdout.decode(errors="backslashreplace").splitlines()


def snapshot(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything about a tree that a build elsewhere must not change, directories' ctime included."""
    found: dict[bytes, tuple[object, ...]] = {}
    for path in (b".", *paths(top)):
        status = os.lstat(os.path.join(os.fsencode(top), path))
        found[path] = (status.st_ino, status.st_mode, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
    return found
