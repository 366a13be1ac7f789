"""The pointer: a small file on the volume that tells clients which generation to mount (formats/store.md section 5)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from mkmeta.digest import ObjectId
from mkmeta.errors import StoreError, UsageError, path_fields, reason
from mkmeta.linux.parents import make_directory
from mkmeta.manifest.output import atomic_output
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import NS
from mkmeta.store.generation import SHORT_ID_DIGITS, Generation
from mkmeta.store.lock import held
from mkmeta.store.record import RECORD_SIZE_MAX, Record, encode, utc_now
from mkmeta.store.store import Note, Store

_KIND = "mkmeta-pointer"
_NAME_MAX: Final = 160  # bytes of a pointer's name: number, ID and what an unfinished file has go behind it
_COMPONENT_MAX: Final = 255  # bytes; NAME_MAX
_COMPARED_BYTES: Final = 1 << 20
_NONCE_BYTES: Final = 8
_ANNOUNCED_WITHIN_NS: Final = 3600 * NS  # a publisher that takes longer from manifest to pointer sees that it is gone
_HINT = "the publisher can put it right: remove it, then mkmeta publish"


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """What a pointer file says."""

    serial: int  # one more with every `publish`
    generation: int
    id: ObjectId
    published: str  # RFC 3339, UTC
    manifest: bytes  # a name in the pointer's directory
    rollback: bool  # clients on a newer generation go back to this one


def read_pointer(path: bytes) -> Pointer:
    """Reads a pointer. Raises StoreError with its path, whatever the bytes are, and whatever else is there."""
    return parse_pointer(pointer_record(path))


def pointer_record(path: bytes) -> Record:
    """The record of a pointer, as it is. Raises StoreError."""
    try:
        return Record.read(path, _KIND, hint=_HINT, follow=False)
    except FileNotFoundError:
        raise StoreError("there is no such pointer", path=path, hint="mkmeta publish makes one") from None


def parse_pointer(record: Record) -> Pointer:
    """What a record of a pointer says. Raises StoreError."""
    manifest = record.path_of("manifest")
    if not 0 < len(manifest) <= _COMPONENT_MAX or b"/" in manifest or manifest in (b".", b".."):
        record.damaged("'manifest' is not the name of a file")
    return Pointer(
        serial=record.integer("serial"),
        generation=record.integer("generation"),
        id=record.object_id("id"),
        published=record.time("published")[0],
        manifest=manifest,
        rollback=record.flag("rollback"),
    )


@dataclass(frozen=True, kw_only=True)
class Published:
    """What `publish` did."""

    pointer: Pointer
    written: bool = True  # False: the pointer named it already
    stubborn: tuple[tuple[bytes, str], ...] = ()  # old manifests that cannot be removed, and why


class _Manifest(NamedTuple):
    """A manifest to be announced, and the number of the generation it is."""

    path: bytes
    id: ObjectId
    number: int

    @property
    def name(self) -> bytes:
        """As generations are named."""
        return Generation(b"", self.number, self.id.hex()[:SHORT_ID_DIGITS]).name


def lock_of(pointer_path: bytes) -> bytes:
    """The lock of those who publish to a pointer, which is beside it."""
    directory, name = os.path.split(os.path.abspath(pointer_path))
    return os.path.join(os.path.realpath(directory), b".%b.lock" % name)


def publish(
    store: Store,
    pointer_path: bytes,
    generation: Generation,
    *,
    rollback: bool,
    wait: float,
    note: Note,
    again: bool = True,
) -> Published:
    """Announces a generation: its manifest appears beside the pointer, then the pointer names it. Hold `publish_lock`.

    `rollback` allows a number below the one announced, and has clients go back. Without `again`, nothing is written if
    the pointer names it already. Waits for others who publish to the same pointer, from a store of their own, up to
    `wait` seconds. Raises StoreError, LockedError, and MkmetaError when something cannot be written; the pointer that
    was there is then still good. The pointer's directory is made, if the one above is there and not empty.
    """
    with _pointer_at(pointer_path, wait, note) as (path, before):
        old = read_pointer(path) if before is not None else None
        found = _Manifest(generation.manifest, generation.about().id, generation.number)
        if old is not None:
            _check_successor(pointer_path, old, found, rollback=rollback)
            if not again and (old.id, old.generation) == found[1:]:
                return Published(pointer=old, written=False)
        # clients that missed the first word of it must still go back, until what they have is no longer the newest
        back = rollback or bool(old and old.rollback and generation.number < store.last_number())
        return _announce(pointer_path, path, before, old, found, rollback=back)


def publish_manifest(manifest: bytes, pointer_path: bytes, *, wait: float, note: Note, again: bool = True) -> Published:
    """Announces a manifest that is in no store here, for clients to build: as the generation after the one announced.

    Raises as `publish`, and FormatError for what is no manifest.
    """
    with ManifestReader.open(manifest) as reader:
        manifest_id = reader.id
    with _pointer_at(pointer_path, wait, note) as (path, before):
        old = read_pointer(path) if before is not None else None
        if old is None or old.id != manifest_id:
            number = old.generation + 1 if old else 1
            return _announce(pointer_path, path, before, old, _Manifest(manifest, manifest_id, number), rollback=False)
        if not again:
            return Published(pointer=old, written=False)
        found = _Manifest(manifest, manifest_id, old.generation)
        return _announce(pointer_path, path, before, old, found, rollback=old.rollback)


@contextlib.contextmanager
def _pointer_at(pointer_path: bytes, wait: float, note: Note) -> Iterator[tuple[bytes, bytes | None]]:
    """The real path of a pointer, whose directory exists, and what it is now; others keep off."""
    directory, name = os.path.split(os.path.abspath(pointer_path))
    directory = os.path.realpath(directory)
    path = os.path.join(directory, name)
    _check_name(pointer_path, path, name)
    _make_directory_of(pointer_path, directory)
    with _locked(pointer_path, wait, note):
        yield path, _bytes_of(path)


def _announce(
    given: bytes, path: bytes, before: bytes | None, old: Pointer | None, found: _Manifest, *, rollback: bool
) -> Published:
    directory, name = os.path.split(path)
    manifest = b"%b-%b.mkm" % (name, found.name)
    pointer = Pointer(
        serial=old.serial + 1 if old else 1,
        generation=found.number,
        id=found.id,
        published=utc_now(),
        manifest=manifest,
        rollback=rollback,
    )
    _copy_manifest(found, os.path.join(directory, manifest))
    with atomic_output(path, follow=False) as stream:
        stream.write(_encode(pointer))
        if _bytes_of(path) != before:  # only where the filesystem has no locks
            raise StoreError("somebody else published meanwhile", path=given, hint="see what, and try again")
    keep = {manifest, old.manifest if old else manifest}
    return Published(pointer=pointer, stubborn=tuple(_prune(directory, name, keep)))


@contextlib.contextmanager
def _locked(pointer_path: bytes, wait: float, note: Note) -> Iterator[None]:
    """Keeps out others who publish to this pointer, where the volume's filesystem has locks, and we may make one."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(StoreError):
            stack.enter_context(held(lock_of(pointer_path), "publish", wait=wait, note=note))
        yield


def _bytes_of(path: bytes) -> bytes | None:
    """What the pointer is now, as far as one can be; None: there is nothing."""
    try:
        with open(path, "rb", opener=_open_as_is) as stream:
            return stream.read(RECORD_SIZE_MAX + 1) if stat.S_ISREG(os.fstat(stream.fileno()).st_mode) else b""
    except FileNotFoundError:
        return None
    except OSError:
        return b""


def _encode(pointer: Pointer) -> bytes:
    fields: dict[str, object] = {
        "serial": pointer.serial,
        "generation": pointer.generation,
        "id": pointer.id.hex(),
        "published": pointer.published,
        **path_fields(pointer.manifest, "manifest"),
        "rollback": pointer.rollback,
        "nonce": os.urandom(_NONCE_BYTES).hex(),  # no two are alike: a serial may begin again, a second is long
    }
    return encode(_KIND, fields)


def _check_name(given: bytes, path: bytes, name: bytes) -> None:
    if os.path.islink(path):
        raise StoreError("is a symbolic link", path=given, hint="name the file itself: clients look beside it")
    if os.path.isdir(path) or not name:
        raise UsageError("is a directory", path=given, hint="name a file for the pointer")
    if len(name) > _NAME_MAX:
        raise UsageError(f"the name of a pointer has at most {_NAME_MAX} bytes", path=given)


def _make_directory_of(given: bytes, directory: bytes) -> None:
    """Makes the directory of a first pointer, on a volume that is there: an empty one may be not mounted just now."""
    try:
        if os.path.isdir(directory):
            return
        if os.path.isdir(os.path.dirname(directory)) and not os.listdir(os.path.dirname(directory)):
            hint = "mount the volume first; or make the directory, if that is right"
            raise StoreError("would go into a new directory of an empty one", path=given, hint=hint)
        make_directory(directory)
    except OSError as error:
        what = f"the directory it goes into does not exist, and cannot be made: {reason(error)}"
        raise StoreError(what, path=given, hint="make it first") from None


def _check_successor(path: bytes, old: Pointer, found: _Manifest, *, rollback: bool) -> None:
    number = found.number
    if number == old.generation and found.id != old.id:
        raise StoreError(
            f"names another manifest as generation {number}, {old.id.hex()[:12]}",
            path=path,
            hint="a pointer belongs to one store: publish from that, or to a new pointer",
        )
    if number < old.generation and not rollback:
        raise StoreError(
            f"names generation {old.generation}, which is newer than {number}",
            path=path,
            hint="--rollback publishes an older one, and clients go back to it",
        )


def _copy_manifest(found: _Manifest, path: bytes) -> None:
    """Puts a manifest at `path`, unless it is there: clients may be reading it."""
    with ManifestReader.open(found.path) as reader:
        if reader.id != found.id:
            raise StoreError("is not the manifest of this generation", path=found.path)
        if _is_copy(found.path, path):
            with contextlib.suppress(OSError):  # of somebody else: then it is he who looks after it
                os.utime(path, follow_symlinks=False)  # as new: nobody takes it for an old one now
            return
        with atomic_output(path, follow=False) as stream:
            reader.file.copy_to(stream)


def _is_copy(one: bytes, other: bytes) -> bool:
    """Whether `other` is a regular file with the content of `one`."""
    with contextlib.suppress(OSError), open(one, "rb") as a, open(other, "rb", opener=_open_as_is) as b:
        status = os.fstat(b.fileno())
        if stat.S_ISREG(status.st_mode) and os.fstat(a.fileno()).st_size == status.st_size:
            while data := a.read(_COMPARED_BYTES):
                if data != b.read(_COMPARED_BYTES):
                    return False
            return True
    return False


def _open_as_is(path: str | bytes, flags: int) -> int:
    """Opens what is at a path, whoever put it there: no link is followed, no pipe waited for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)


def _prune(directory: bytes, name: bytes, keep: set[bytes]) -> Iterator[tuple[bytes, str]]:
    """Removes manifests of this pointer that nobody is told of any more, and what killed calls left of them.

    A manifest appears before the pointer that names it: those of the last hour may be another publisher's, about to be
    announced. Yields what cannot be removed, and why.
    """
    pattern = re.compile(
        rb"(\.?)" + re.escape(name) + rb"-[0-9]{6,16}-[0-9a-f]{12}\.mkm(\.mkmeta-[0-9a-f]{8})?", re.DOTALL
    )
    try:
        found = sorted(map(os.fsencode, os.listdir(directory)))
        now_ns = os.lstat(os.path.join(directory, name)).st_mtime_ns  # by the server's clock, as theirs are
    except OSError as error:
        yield directory, reason(error)
        return
    for entry in found:
        match = pattern.fullmatch(entry)
        if match is None or bool(match[1]) != bool(match[2]) or entry in keep:
            continue
        path = os.path.join(directory, entry)
        try:
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                yield entry, "not a regular file"
            elif _is_left(path) if match[2] else status.st_mtime_ns < now_ns - _ANNOUNCED_WITHIN_NS:
                os.unlink(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            yield entry, reason(error)


def _is_left(path: bytes) -> bool:
    """Whether nobody is writing this file any more."""
    fd = _open_as_is(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
