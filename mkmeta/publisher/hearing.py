"""What the kernel tells of a volume that is a filesystem of this machine: in which levels names came or went.

These are hints of what to list, and never the truth: what is new is found by listing, as without them. So a hint too
many costs a listing, and whatever may be missing is said to be (`Heard.everything`): events that were lost, more than
are worth looking at one by one, a filesystem that was mounted anew.

Anybody who may write anywhere on the filesystem makes events. What is kept of them is bounded: levels, of which there
are at most LEVELS_MAX, and each has a path of at most 4,095 bytes.
"""

from __future__ import annotations

import errno
import os
import select as polling
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mkmeta.errors import MkmetaError, printable, reason
from mkmeta.linux.descriptors import closing
from mkmeta.linux.fanotify import TOLD_OF, NameEvents
from mkmeta.linux.handles import Handle, open_by_handle
from mkmeta.linux.mountinfo import mount_of, mounts
from mkmeta.pattern import Patterns

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

LEVELS_MAX: Final = 1000  # listing everything costs hardly more than so many one by one
RESOLVED_MAX: Final = 5000  # directories per call: finding the path of one takes 30 microseconds
_GATHERING: Final = 1.0  # seconds from the first event until they are read: many of one directory become one
# A directory that went away, whose parent is another event; a path that is longer than any that can be recorded
_NOT_THERE: Final = (errno.ESTALE, errno.ENOENT, errno.ENAMETOOLONG)


class Events(StrEnum):
    """Whether the kernel is asked for events."""

    AUTO = "auto"  # where it tells of all that happens
    ALWAYS = "always"  # on any filesystem; an error where it cannot be
    NEVER = "never"


@dataclass
class Heard:
    """Where names came or went."""

    levels: dict[bytes, bool]  # with whether a directory was moved into it, with all that is in that
    everything: bool = False  # it may be anywhere


def level_of(directory: bytes, select: Patterns) -> bytes | None:
    """The level to be listed when names came or went in a directory; both are paths on the volume.

    In what is selected, that is where it is itself a name: its marker may have come. Elsewhere the directory itself,
    if anything below it may be selected; None: nothing can.
    """
    state = select.start()
    names = directory.split(b"/") if directory else []
    for depth, name in enumerate(names):
        state, matched = select.advance(state, name)
        if matched:
            return b"/".join(names[:depth])
        if not state:
            return None
    return directory


class Hearing:
    """Listens at a volume. What happens after it is made, `collect` tells."""

    def __init__(self, root: bytes) -> None:
        """Raises OSError."""
        self._root = root
        with closing(os.open(root, _DIRECTORY)) as volume:
            self._device = os.fstat(volume).st_dev
            self._events = NameEvents(volume)

    def close(self) -> None:
        """Stops."""
        self._events.close()

    def is_there(self) -> bool:
        """Whether it still listens at what is mounted there. An unmounted filesystem is not heard any more."""
        return self._events.is_marked() and os.stat(self._root).st_dev == self._device

    def wait(self, seconds: float) -> None:
        """Returns after so long, or shortly after something has happened anywhere on the filesystem."""
        poll = polling.poll()
        poll.register(self._events.fileno(), polling.POLLIN)
        deadline = time.monotonic() + seconds
        if poll.poll(max(0.0, seconds) * 1000):
            time.sleep(max(0.0, min(_GATHERING, deadline - time.monotonic())))

    def collect(self, select: Patterns) -> Heard:
        """In which levels of a selection something happened since the last call. Does not wait.

        Raises OSError when the volume is not there.
        """
        handles, lost = self._events.read()
        heard = Heard({}, everything=lost or len(handles) > RESOLVED_MAX)
        if heard.everything or not handles:
            return heard
        with closing(os.open(self._root, _DIRECTORY)) as volume:
            top = _path_of(volume).rstrip(b"/")
            for handle, moved in handles.items():
                try:
                    path = _path_by_handle(volume, handle)
                except OSError as error:
                    if error.errno in _NOT_THERE:
                        continue
                    return Heard({}, everything=True)
                if not (path + b"/").startswith(top + b"/"):
                    continue
                level = level_of(path[len(top) + 1 :], select)
                if level is not None:
                    heard.levels[level] = moved or heard.levels.get(level, False)
        return heard if len(heard.levels) <= LEVELS_MAX else Heard({}, everything=True)


def _path_by_handle(volume: int, handle: Handle) -> bytes:
    with closing(open_by_handle(volume, handle)) as fd:
        return _path_of(fd)


def _path_of(fd: int) -> bytes:
    return os.readlink(b"/proc/self/fd/%d" % fd)


def listen(root: bytes, choice: Events) -> tuple[Hearing | None, str]:
    """Listens at a volume, if that is wanted and can be. Second: how the volume is watched, for people.

    Raises MkmetaError with Events.ALWAYS when it cannot.
    """
    if choice is Events.NEVER:
        return None, "all levels are listed each time"
    try:
        fstype = mount_of(root, mounts()).fstype
        shown = printable(fstype)
        if choice is Events.AUTO and fstype not in TOLD_OF:
            return None, f"all levels are listed each time, as {shown} may change without this kernel"
        return Hearing(root), f"the kernel tells of changes: fanotify on {shown}"
    except OSError as error:
        if choice is Events.ALWAYS:
            hint = "'--events never' lists instead; docs/release.md says where there are events"
            raise MkmetaError(f"the kernel tells of no changes here: {reason(error)}", path=root, hint=hint) from None
        return None, f"all levels are listed each time, as the kernel tells of no changes here: {reason(error)}"
