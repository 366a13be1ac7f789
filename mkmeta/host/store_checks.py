"""Whether a place can hold a store: what its filesystem does with a layer's attributes, and what is in it.

What is tried is tried on files without a name (O_TMPFILE), so that nothing is left, not even by a killed doctor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from mkmeta.codec.metacopy import REDIRECT_MAX, encode_metacopy
from mkmeta.digest import VerityDigest
from mkmeta.errors import StoreError, reason
from mkmeta.host.finding import Check, Finding, failure, note, ok, warning
from mkmeta.linux.filesystem import filesystem_type
from mkmeta.overlay_xattrs import overlay_xattrs
from mkmeta.sinks.directory.diagnosis import Diagnosis
from mkmeta.store.generation import GENERATIONS
from mkmeta.store.removal import NEW
from mkmeta.store.store import Store

_NETWORK: Final = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "ceph", "afs", "9p", "lustre", "gpfs", "beegfs", "virtiofs")
)
_METACOPY: Final = encode_metacopy(VerityDigest(b"\x11" * 32))  # 36 bytes
_REDIRECT: Final = b"/" + b"r" * 99  # what is usual
_ROOMY: Final = 1024  # bytes of redirect that real volumes do not reach
_TIMES: Final = (  # seconds since the epoch; where filesystems end early
    (-1_000_000_000, "before 1970"),
    (1 << 31, "after 2038"),
)
_NANOSECONDS: Final = 123_456_789
_GONE: Final = b".gone-"  # formats/store.md section 1
_NO_CONTENT: Final = frozenset((b"lost+found", b".store.json"))  # a new filesystem; a store that was not finished
_FEW: Final = 0.05  # of blocks or inodes: less than this free deserves a word


@dataclass
class StoreChecks:
    """The checks of one store, at `path`, which may not exist yet."""

    path: bytes
    userxattr: bool
    lower: bytes | None
    _place: bytes | None = None  # an existing directory on the filesystem it is or will be on, if local and writable

    def checks(self) -> list[Check]:
        """All of them, in order; the others need what the first one finds."""

        def unless_failed(look: Callable[[], Iterator[Finding]]) -> Callable[[], Iterator[Finding]]:
            return lambda: look() if self._place is not None else iter(())

        others = {
            "store-overlap": self.overlap,
            "store-xattrs": self.xattrs,
            "store-times": self.times,
            "store-room": self.room,
            "store-generations": self.generations,
        }
        first = Check("store", self.place)
        return [first, *(Check(identifier, unless_failed(look)) for identifier, look in others.items())]

    def place(self) -> Iterator[Finding]:
        """Whether it is there or can be made, on what filesystem, and writable."""
        place = self.path
        if not os.path.lexists(place):
            place = os.path.dirname(os.path.abspath(place))
            if not os.path.lexists(place):
                place = os.path.dirname(place)  # `build --store` makes this one as well
            if not os.path.isdir(place):
                yield failure("store", "there is no such directory", "make the directories above it", place)
                return
            yield note(
                "store",
                "there is no store yet; the place for it was looked at",
                "`mkmeta build MANIFEST --store STORE` makes it",
                self.path,
            )
        elif not os.path.isdir(place):
            yield failure("store", "is not a directory", "name a store, or a directory to be made", self.path)
            return
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fstype = filesystem_type(fd)
        finally:
            os.close(fd)
        if fstype in _NETWORK or fstype.startswith("fuse"):
            yield failure(
                "store-filesystem",
                f"{fstype} is no place for layers: every lookup would go to it, and it has no trusted.* attributes",
                "put the store on a local ext4, xfs, btrfs or tmpfs",
                place,
            )
            return
        try:
            with _unnamed(place):
                pass
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                raise
            yield failure("store-filesystem", f"nothing can be written: {reason(error)}", _cure(error), place)
            return
        self._place = place
        if fstype == "overlay":
            yield warning(
                "store-filesystem",
                "overlay: a layer that is on an overlay cannot be mounted nested (stacking depth), or not at all",
                "put the store on a filesystem of the host: ext4, xfs, btrfs or tmpfs",
                place,
            )
        else:
            yield ok("store-filesystem", f"{fstype}, writable", place)

    def overlap(self) -> Iterator[Finding]:
        """Whether store and volume contain each other: the kernel refuses such mounts (ELOOP)."""
        if self.lower is None:
            return
        store, lower = os.path.realpath(self.path), os.path.realpath(self.lower)
        if os.path.commonpath([store, lower]) in (store, lower):
            yield failure(
                "store-overlap",
                "store and volume contain each other: no layer of it can be mounted",
                "put the store outside of the volume",
                self.path,
            )
        else:
            yield ok("store-overlap", "store and volume do not contain each other", self.path)

    def xattrs(self) -> Iterator[Finding]:
        """Whether the attributes of a layer fit, and what they cost."""
        place = self._existing
        names = overlay_xattrs(userxattr=self.userxattr)
        with _unnamed(place) as fd:
            before = os.fstat(fd).st_blocks
            for name, value in ((names.metacopy, _METACOPY), (names.redirect, _REDIRECT)):
                try:
                    os.setxattr(fd, name, value)
                except OSError as error:
                    told = Diagnosis(fd).explain_xattr(error, place, name, len(value))
                    hint = told.hint or "put the store on a local ext4, xfs, btrfs or tmpfs"
                    yield failure("store-xattrs", told.message, hint, place)
                    return
            spent = 512 * (os.fstat(fd).st_blocks - before)
            fstype = filesystem_type(fd)
            longest = _longest(fd, names.redirect)
        yield ok("store-xattrs", f"holds {names.prefix.decode()}* attributes", place)
        if longest < _ROOMY:
            yield note(
                "store-xattr-room",
                f"paths of more than {longest} bytes do not fit into an attribute here",
                "put the store on xfs, btrfs or tmpfs, or an ext4 with blocks of 4 KiB, if the volume has such paths",
                place,
            )
        else:
            yield ok("store-xattr-room", f"paths of up to {longest} bytes fit into an attribute", place)
        if spent:
            cure = {
                "ext4": "make it with mkfs.ext4 -I 512 (-I 1024 for long paths)",
                "xfs": "make it with mkfs.xfs -i size=1024",
            }.get(fstype, "put the store on xfs, btrfs, tmpfs, or an ext4 made with mkfs.ext4 -I 512")
            yield note(
                "store-inodes",
                f"attributes do not fit into inodes: a file with a digest and a path of {len(_REDIRECT)} bytes takes "
                f"{spent} bytes more, a million of them {_size(spent * 1_000_000)}",
                cure,
                place,
            )
        else:
            yield ok("store-inodes", "attributes of files fit into their inodes", place)

    def times(self) -> Iterator[Finding]:
        """Whether times are kept as they are recorded."""
        place = self._existing
        lost = []
        with _unnamed(place) as fd:
            for seconds, when in _TIMES:
                wanted = seconds * 1_000_000_000 + _NANOSECONDS
                os.utime(fd, ns=(wanted, wanted))
                kept = os.fstat(fd).st_mtime_ns
                if kept // 1_000_000_000 != seconds:
                    lost.append(f"times {when}")
                elif kept != wanted:
                    lost.append(f"nanoseconds {when}")
        if lost:
            yield warning(
                "store-times",
                f"does not keep {', '.join(lost)}: a volume that has such cannot be built here",
                "put the store on xfs, btrfs or tmpfs, or an ext4 with inodes of 256 bytes or more",
                place,
            )
        else:
            yield ok("store-times", "keeps times to the nanosecond, also after 2038", place)

    def room(self) -> Iterator[Finding]:
        """Free blocks and inodes: an entry takes an inode, and the old layer stays while a new one is built."""
        place = self._existing
        counts = os.statvfs(place)
        inodes = counts.f_favail if counts.f_files else None
        shown = _size(counts.f_bavail * counts.f_frsize)
        shown += f" and {inodes:,} inodes free" if inodes is not None else " free, as many inodes as fit"
        needed = self._entries()
        if counts.f_bavail == 0 or inodes == 0:
            yield failure("store-room", f"full: {shown}", "make room, or make a filesystem with more inodes", place)
        elif inodes is not None and inodes < needed:
            yield warning(
                "store-room",
                f"{shown}; the next generation takes some {needed:,}, as the newest does",
                "remove old generations (mkmeta gc), or make a filesystem with more inodes (mkfs.ext4 -N)",
                place,
            )
        elif counts.f_bavail < _FEW * counts.f_blocks or (inodes is not None and inodes < _FEW * counts.f_files):
            yield warning(
                "store-room", f"nearly full: {shown}", "make room, or remove old generations: mkmeta gc", place
            )
        else:
            yield ok("store-room", shown, place)

    def generations(self) -> Iterator[Finding]:
        """What is in it."""
        store = self._store()
        if store is None:
            return
        there, current = store.generations(), store.current()
        if current is None:
            yield note(
                "store-generations",
                f"{len(there)} generations, and none is current",
                "mkmeta build --store adds one; mkmeta activate --generation N takes one that is there",
                self.path,
            )
        elif current.about().userxattr != self.userxattr:
            yield warning(
                "store-generations",
                f"generation {current.number} was built {'without' if self.userxattr else 'with'} --userxattr",
                f"run doctor {'without' if self.userxattr else 'with'} --userxattr to see how it can be mounted",
                self.path,
            )
        else:
            yield ok("store-generations", f"current is generation {current.number}, of {len(there)}", self.path)
        unfinished = self._unfinished(store)
        if unfinished:
            yield note(
                "store-unfinished",
                f"{unfinished} generations are being built or removed, or are left by a killed call",
                "if no mkmeta build or gc is running now, the next one removes them",
                self.path,
            )

    @property
    def _existing(self) -> bytes:
        assert self._place is not None
        return self._place

    def _store(self) -> Store | None:
        """The store, once there is something in the place. Raises StoreError when that is no store."""
        if not os.path.lexists(self.path) or _NO_CONTENT.issuperset(os.listdir(self.path)):
            return None
        return Store.open(self.path)

    def _entries(self) -> int:
        """Of the newest generation; 0 when there is none, or it cannot be read: `generations` tells."""
        with contextlib.suppress(StoreError):
            store = self._store()
            if store is not None and (there := store.generations()):
                return there[-1].about().entries
        return 0

    def _unfinished(self, store: Store) -> int:
        try:
            names = os.listdir(os.path.join(store.path, GENERATIONS))
        except FileNotFoundError:
            return 0
        return sum(name.startswith((NEW, _GONE)) for name in names)


@contextlib.contextmanager
def _unnamed(directory: bytes) -> Iterator[int]:
    """A new file in a directory, without a name; where the filesystem cannot, its name is gone at once."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        fd, name = tempfile.mkstemp(prefix=b".mkmeta-doctor-", dir=directory)
        os.unlink(name)
    try:
        yield fd
    finally:
        os.close(fd)


def _longest(fd: int, name: bytes) -> int:
    """The longest redirect that fits beside the rest of a file's attributes, up to the longest the kernel follows."""
    low, high = 0, REDIRECT_MAX
    while low < high:
        size = (low + high + 1) // 2
        try:
            os.setxattr(fd, name, b"/" + b"r" * (size - 1))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.E2BIG, errno.ERANGE):
                raise
            high = size - 1
        else:
            low = size
    return low


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _cure(error: OSError) -> str:
    if error.errno == errno.EROFS:
        return "mount its filesystem read-write: building and switching write to the store"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room, or raise the quota"
    return "run doctor as the user who builds (root, but for --userxattr)"
