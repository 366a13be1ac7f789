"""The mount point: what may be covered by a layer, and what must not (formats/mounts.md section 3)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from mkmeta.errors import MountError, RefusedError, UsageError, printable, reason
from mkmeta.linux.asking import NoAnswerError, ask
from mkmeta.linux.mountinfo import Mount, mounts, seen_at, visible_at
from mkmeta.linux.parents import make_directory
from mkmeta.mounts.run import RunDirectory

SECONDS: Final = 10.0  # for the directories on the way to the mount point, which are local
# Without what is there a host does not run: nobody means these.
_SYSTEM: Final = frozenset(
    b"/ /bin /boot /dev /etc /home /lib /lib32 /lib64 /libx32 /proc /root /run /sbin /sys /tmp /usr /usr/bin "
    b"/usr/lib /usr/lib32 /usr/lib64 /usr/libexec /usr/sbin /usr/share /var /var/lib /var/log /var/run /var/tmp".split()
)
_KERNELS: Final = (b"/proc/", b"/sys/", b"/dev/")
_MEMORY: Final = b"/dev/shm/"  # files of anybody's making
_NAMED: Final = 3  # names in a message
_POINT_MODE: Final = 0o755  # whatever the umask: users go through it while nothing is mounted, too

Note = Callable[[str], None]


def real_point(path: bytes) -> bytes:
    """The mount point a path names, without links. Where something is mounted there by that very name, asks nobody.

    Raises MountError when it does not answer.
    """
    named = os.path.abspath(path)
    if b".." not in path.split(b"/") and visible_at(named, mounts()):
        return named
    return real_path(path)


def real_path(path: bytes) -> bytes:
    """A path without links. Raises MountError when a filesystem on the way does not answer."""
    try:
        return ask(partial(_look, path), SECONDS)
    except NoAnswerError:
        raise MountError(
            "does not answer: it is on a filesystem whose server is dead", path=path, hint="see `dmesg`"
        ) from None


def _look(path: bytes) -> bytes:
    with contextlib.suppress(OSError):  # there is none, or it fails: who opens it will say so
        os.statvfs(path)  # stat(2) might be answered from a cache
    return os.path.realpath(path)


def check_place(point: bytes, *, store: bytes, lower: bytes, run: RunDirectory) -> None:
    """Raises RefusedError for a mount point where a layer must not be: `point`, `store` and `lower` are real paths."""
    if point in _SYSTEM or (point.startswith(_KERNELS) and not point.startswith(_MEMORY)):
        raise RefusedError("is a directory of the system, which needs it", path=point, hint="mount the layer elsewhere")
    for what, path in (("the store", store), ("the run directory", run.path), *_program()):
        if _is_at_or_below(path, point):
            raise RefusedError(
                f"{what}, {printable(path)}, would be hidden by the layer", path=point, hint="mount the layer elsewhere"
            )
    table = mounts()
    if _is_in(_shown(os.path.dirname(point), table), _shown(lower, table)) or _is_at_or_below(point, lower):
        raise RefusedError(
            f"the mount point lies in the volume, {printable(lower)}",
            path=point,
            hint="mount the layer outside of it, such as at /sw for a volume at /mnt/sw",
        )
    for what, path in (("run directory", run.path), ("store", store)):
        if _is_at_or_below(point, path):
            raise RefusedError(f"is in the {what}", path=point, hint="mount the layer elsewhere")


def check_uncovered(point: bytes, note: Note, *, over: bool) -> None:
    """Says what a first mount hides; raises RefusedError for that unless `over`, UsageError where no directory is.

    Call `make_point` before.
    """
    try:
        directory, names = ask(partial(_names, point), SECONDS)
    except NoAnswerError:
        raise MountError("the mount point does not answer", path=point, hint="unmount what is mounted there") from None
    except OSError as error:
        raise MountError(f"cannot be looked at: {reason(error)}", path=point) from None
    if not directory:
        raise UsageError("the mount point is not a directory", path=point, hint="make the directory first")
    hidden = []
    table = mounts()
    below = sorted({mount.point for mount in table if mount.point.startswith(point.rstrip(b"/") + b"/")})
    below = [path for path in below if visible_at(path, table)]
    if below:
        hidden.append(f"what is mounted at {_enumerated(below)}")
    elif names:
        hidden.append(f"what is there, {_enumerated(names)}")
    on_top = visible_at(point, table)[-1:]
    if on_top:
        where = f"a mount of {printable(on_top[0].source)} ({on_top[0].fstype.decode(errors='replace')})"
        if not hidden:
            note(f"note: {printable(point)}: covers {where}, which is empty")
        hidden = [f"{where} with {what}" for what in hidden]
    if not hidden:
        return
    if not over:
        raise RefusedError(
            f"the mount point is not empty: the layer would hide {hidden[0]}",
            path=point,
            hint="mount it at an empty directory, or cover this with --over: it comes back when the layer goes",
        )
    note(f"note: {printable(point)}: hides {hidden[0]}")


def make_point(given: bytes, point: bytes) -> bool:
    """Makes a mount point where nothing is, if the directory above is there. Returns whether it did: then it is the
    caller's to remove when nothing is mounted.

    Nothing is made where a symbolic link, `given`, leads nowhere: `point` is where it leads, and `check_place` let it
    pass. Raises MountError, and UsageError when it cannot be made.
    """
    try:
        return ask(partial(_make, given, point), SECONDS)
    except NoAnswerError:
        raise MountError("the mount point does not answer", path=point, hint="unmount what is mounted there") from None
    except OSError as error:
        hint = "make the directory first"
        raise UsageError(f"the mount point cannot be made: {reason(error)}", path=point, hint=hint) from None


def _make(given: bytes, point: bytes) -> bool:
    if os.path.islink(given.rstrip(b"/")) or os.path.lexists(point) or not make_directory(point):
        return False
    os.chmod(point, _POINT_MODE)
    return True


def _names(point: bytes) -> tuple[bool, list[bytes]]:
    """Whether it is a directory, and a few of the names in it."""
    try:
        with os.scandir(point) as entries:
            return True, [entry.name for entry, _ in zip(entries, range(_NAMED + 1), strict=False)]
    except (FileNotFoundError, NotADirectoryError):
        return False, []


def _enumerated(names: list[bytes]) -> str:
    return ", ".join(map(printable, names[:_NAMED])) + (" ..." if len(names) > _NAMED else "")


def _program() -> list[tuple[str, bytes]]:
    """What this program needs to run."""
    places = {sys.prefix, sys.base_prefix, os.path.realpath(sys.executable), str(Path(__file__).resolve().parents[1])}
    return [("mkmeta itself", os.fsencode(os.path.realpath(place))) for place in sorted(places)]


def _shown(path: bytes, table: list[Mount]) -> tuple[int, bytes] | None:
    """What lookups of a real path come to: the device, and the path in its filesystem."""
    mount = seen_at(path, table)
    if mount is None:
        return None
    below = path.removeprefix(mount.point.rstrip(b"/")).strip(b"/")
    return mount.device, mount.root.rstrip(b"/") + (b"/" + below if below else b"") or b"/"


def _is_in(inner: tuple[int, bytes] | None, outer: tuple[int, bytes] | None) -> bool:
    return inner is not None and outer is not None and inner[0] == outer[0] and _is_at_or_below(inner[1], outer[1])


def _is_at_or_below(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")
