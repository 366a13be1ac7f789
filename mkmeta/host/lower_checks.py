"""What the volume below the layers is like, as seen from here: its mount, what root may read, whether layers fit.

Nothing is written to it. At most ENTRIES entries are looked at, and FILES files of a kind opened, however large it is.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, cast

from mkmeta.errors import MountError, printable, reason
from mkmeta.host.event_checks import events
from mkmeta.host.finding import Check, Finding, failure, note, ok, warning
from mkmeta.host.kernel_checks import nfs_defects
from mkmeta.host.nfs_advice import NFS_TYPES, NfsOptions, nfs_findings
from mkmeta.linux.mount import leave_mount_namespace, mount
from mkmeta.linux.mountinfo import Mount, mount_of, mount_points_below, mounts
from mkmeta.linux.names import listable
from mkmeta.linux.syscalls import open_beneath
from mkmeta.linux.verity import measure_verity
from mkmeta.mounts.profile import MountPlan, Profile
from mkmeta.mounts.run import RunDirectory
from mkmeta.mounts.switch import made

ENTRIES: Final = 300  # each is a request to the server, or less
FILES: Final = 8
_PER_DIRECTORY: Final = 32  # so that the look reaches files below a top with thousands of entries
_NAMED: Final = 3  # paths in a message
_DENIED = (errno.EACCES, errno.EPERM)
_CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)  # removed or exchanged while we looked
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY


@dataclass
class Sample:
    """A few entries of the volume; paths below it."""

    entries: int = 0
    files: list[bytes] = field(default_factory=list)  # regular ones
    closed: list[bytes] = field(default_factory=list)  # regular ones that others may not read
    denied: list[bytes] = field(default_factory=list)  # directories that could not be listed
    elsewhere: list[bytes] = field(default_factory=list)  # directories on other filesystems


@dataclass
class LowerChecks:
    """The checks of one volume, at `path`. They share what the first ones found."""

    path: bytes
    userxattr: bool
    scratch: bytes  # an empty directory to mount at, in a mount namespace of its own
    profiles: frozenset[Profile]  # that work on this kernel
    _sample: Sample | None = None
    _listed: bool = False

    def checks(self) -> list[Check]:
        """All of them, in the order they have to be made in; nothing comes of the others when the first one fails."""

        def unless_failed(look: Callable[[], Iterator[Finding]]) -> Callable[[], Iterator[Finding]]:
            return lambda: look() if self._listed else iter(())

        others = {
            "lower-flags": self.flags,
            "lower-nfs": self.nfs,
            "lower-submounts": self.submounts,
            "lower-readable": self.readable,
            "lower-verity": self.verity,
            "lower-events": lambda: events(self.path, self._mount().fstype),
            "lower-mount": self.mountable,
        }
        first = Check("lower", self.directory)
        return [first, *(Check(identifier, unless_failed(look)) for identifier, look in others.items())]

    def directory(self) -> Iterator[Finding]:
        """Whether it is there, and what it is mounted from."""
        try:
            status = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            yield failure("lower", "there is no such directory", "mount the volume, or name where it is", self.path)
            return
        except OSError as error:
            yield self._unreadable(error)
            return
        if not stat.S_ISDIR(status.st_mode):
            yield failure("lower", "is not a directory", "name the directory that was scanned", self.path)
            return
        found = self._mount()
        where = f"{found.fstype.decode(errors='replace')}, {printable(found.source)} at {printable(found.point)}"
        try:
            with os.scandir(self.path) as entries:
                empty = next(entries, None) is None
        except OSError as error:
            yield self._unreadable(error)
            return
        self._listed = True
        if empty:
            yield warning("lower", f"is empty ({where})", "see whether the volume is mounted: findmnt", self.path)
        else:
            yield ok("lower", where, self.path)

    def _unreadable(self, error: OSError) -> Finding:
        if error.errno in _DENIED:
            return warning("lower", f"could not be checked: {reason(error)}", "run doctor as root", self.path)
        hint = "see whether its server is up and reachable, `dmesg`, and mount it again"
        return failure("lower", f"the volume cannot be read: {reason(error)}", hint, self.path)

    def flags(self) -> Iterator[Finding]:
        """Flags of its mount, which overlayfs does not pass on by itself."""
        flags = sorted(self._mount().flags & {b"nosuid", b"nodev", b"noexec"})
        shown = b",".join(flags).decode() or "none of nosuid, nodev, noexec"
        if b"noexec" in flags:
            yield note(
                "lower-flags",
                f"mounted {shown}: `activate` repeats them, so that programs do not run through the layer either",
                "mount the volume without noexec if programs shall run",
                self.path,
            )
        else:
            yield ok("lower-flags", f"mounted with {shown}; `activate` repeats them on the overlay", self.path)

    def nfs(self) -> Iterator[Finding]:
        """What its NFS options cost, and whether this kernel can do it at all."""
        found = self._mount()
        if found.fstype not in NFS_TYPES:
            return
        release, version = os.uname().release, os.uname().version
        yield from nfs_defects(release, version, NfsOptions.of(found).version)
        yield from nfs_findings(found, userxattr=self.userxattr)

    def submounts(self) -> Iterator[Finding]:
        """Other filesystems below it, mounted or to be mounted on demand: an overlay cannot enter them."""
        below = set(mount_points_below(os.path.realpath(self.path))) | set(self.sample().elsewhere)
        if below:
            yield warning(
                "lower-submounts",
                f"other filesystems below it cannot be entered through a layer (EREMOTE or empty): {_some(below)}",
                "mount each by itself, outside of the volume, with a layer of its own or a bind mount over the layer's",
                self.path,
            )
        else:
            yield ok("lower-submounts", f"no other filesystem was found below it {self._looked_at()}", self.path)

    def readable(self) -> Iterator[Finding]:
        """Whether the mounter can read what others may not: overlayfs reads as the mounter, for everybody."""
        sample = self.sample()
        denied = [*sample.denied]
        for path in sample.closed[:FILES]:
            try:
                os.close(self._open(path, _READ))
            except OSError as error:
                if error.errno in _DENIED:
                    denied.append(path)
                elif error.errno not in _CHANGED:
                    raise
        if denied and self._mount().fstype in NFS_TYPES and os.geteuid() == 0:
            yield warning(
                "lower-readable",
                "root may not read this (root_squash): through a layer nobody can, its owner included",
                "make the volume's files world-readable, or export it to these hosts with no_root_squash",
                os.path.join(self.path, denied[0]),
            )
        elif denied:
            yield warning(
                "lower-readable",
                "this process may not read this: through a layer it mounts nobody can",
                "mount as a user who may read everything there, or make the files world-readable",
                os.path.join(self.path, denied[0]),
            )
        elif sample.closed:
            yield ok("lower-readable", "files that others may not read can be read by who mounts here", self.path)
        else:
            yield ok("lower-readable", f"every file is world-readable {self._looked_at()}", self.path)

    def verity(self) -> Iterator[Finding]:
        """Whether its files have fs-verity."""
        measured = 0
        for path in self.sample().files[:FILES]:
            try:
                fd = self._open(path, _READ)
            except OSError as error:
                if error.errno in (*_DENIED, *_CHANGED):
                    continue  # `readable` tells
                raise
            try:
                if measure_verity(fd) is None:
                    yield note(
                        "lower-verity",
                        "has no fs-verity: with --verity on or require every open of a file with a digest would fail",
                        "leave --verity away; NFS has none, ext4 and btrfs have it where it was enabled",
                        os.path.join(self.path, path),
                    )
                    return
            finally:
                os.close(fd)
            measured += 1
        if measured:
            yield ok("lower-verity", f"the {measured} files looked at have fs-verity", self.path)
        else:
            yield ok("lower-verity", f"no file to look at {self._looked_at()}", self.path)

    def mountable(self) -> Iterator[Finding]:
        """Whether an empty layer can be mounted over it. Last check: this process is in another namespace then."""
        leave_mount_namespace()
        mount(b"mkmeta-doctor", self.scratch, b"tmpfs", 0)
        for name in (b"/layer", b"/inner"):
            os.mkdir(self.scratch + name)
        wrong: dict[Profile, str] = {}
        tried = [profile for profile in (Profile.NESTED, Profile.MERGE) if profile in self.profiles]
        for profile in tried:
            plan = MountPlan(
                profile=profile,
                layer=self.scratch + b"/layer",
                lower=os.path.realpath(self.path),
                short_id=b"doctor",
                userxattr=self.userxattr,
            )
            try:
                with made(plan, RunDirectory(self.scratch)):
                    pass
            except MountError as error:
                wrong[profile] = error.message
        if not tried:
            return  # there is a failure already: profile-auto
        if len(wrong) == len(tried):
            yield failure("lower-mount", f"a layer {wrong[tried[-1]]}", self._cure(""), self.path)
        elif wrong:
            works = next(profile for profile in tried if profile not in wrong)
            yield warning(
                "lower-mount",
                f"with profile {tried[0]} a layer {wrong[tried[0]]}; {works} works, but {works.lacks}",
                self._cure(f", or use --profile {works}"),
                self.path,
            )
        else:
            yield ok("lower-mount", f"a layer can be mounted over it: {' and '.join(tried)}", self.path)

    def sample(self) -> Sample:
        """A few entries, looked at once."""
        if self._sample is None:
            self._sample = take_sample(self.path)
        return self._sample

    def _cure(self, otherwise: str) -> str:
        if self._mount().fstype == b"overlay":
            return f"it is an overlay itself: name the volume below it{otherwise}"
        return "`dmesg` may say more; try a directory of another filesystem to see whether it is this one"

    def _mount(self) -> Mount:
        return mount_of(self.path, mounts())

    def _open(self, path: bytes, flags: int) -> int:
        top = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return open_beneath(path, flags, dir_fd=top)
        finally:
            os.close(top)

    def _looked_at(self) -> str:
        return f"(among the {self.sample().entries} entries looked at)"


def take_sample(path: bytes) -> Sample:
    """The first entries of a few directories, depth first; no link is followed and no mount point crossed.

    Raises OSError when the top cannot be listed.
    """
    sample = Sample()
    top = os.open(path, _OPEN_DIRECTORY | os.O_CLOEXEC)
    try:
        device = os.fstat(top).st_dev
        stack = [b""]
        while stack and sample.entries < ENTRIES:
            directory = stack.pop()
            try:
                fd = open_beneath(directory, _OPEN_DIRECTORY, dir_fd=top)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    sample.elsewhere.append(directory)
                elif error.errno in _DENIED:
                    sample.denied.append(directory)
                elif error.errno not in _CHANGED:
                    raise
                continue
            try:
                stack += _look(fd, directory, device, sample)
            finally:
                os.close(fd)
    finally:
        os.close(top)
    return sample


def _look(fd: int, directory: bytes, device: int, sample: Sample) -> list[bytes]:
    """Adds the first entries of one directory, and returns the directories among them, the first one last."""
    if os.fstat(fd).st_dev != device:
        sample.elsewhere.append(directory)
        return []
    below = []
    with os.scandir(listable(fd)) as found:
        entries = cast("Iterator[os.DirEntry[Any]]", found)
        for _number, entry in zip(range(min(_PER_DIRECTORY, ENTRIES - sample.entries)), entries, strict=False):
            sample.entries += 1
            path = os.path.join(directory, os.fsencode(entry.name))
            if entry.is_dir(follow_symlinks=False):
                below.append(path)
            elif entry.is_file(follow_symlinks=False):
                try:
                    mode = entry.stat(follow_symlinks=False).st_mode
                except FileNotFoundError:
                    continue  # removed meanwhile
                sample.files.append(path)
                if not mode & stat.S_IROTH:
                    sample.closed.append(path)
    return below[::-1]


def _some(paths: set[bytes]) -> str:
    shown = ", ".join(printable(path) for path in sorted(paths)[:_NAMED])
    return shown + (f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else "")
