"""Does the least that a pointer on the volume asks for (formats/store.md section 5): nothing, a refresh, a switch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any, Final, NoReturn

from mkmeta.build import BuildOptions
from mkmeta.errors import MkmetaError, MountError, RefusedError, StoreError, printable, reason
from mkmeta.host.activation import Action, Activated, Note, Request, activate, store_of
from mkmeta.host.place import real_point
from mkmeta.host.volume import SECONDS, is_outdated
from mkmeta.linux.asking import NoAnswerError, ask, reused
from mkmeta.linux.mountinfo import mount_of, mounts
from mkmeta.manifest.output import atomic_output
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import NS
from mkmeta.mounts.live import LiveMount
from mkmeta.mounts.profile import INNER_SOURCE, SOURCE
from mkmeta.mounts.refresh import Refreshed, refresh
from mkmeta.mounts.run import RunDirectory
from mkmeta.mounts.switch import layers_at
from mkmeta.store.adding import add
from mkmeta.store.lock import held
from mkmeta.store.pointer import Pointer, parse_pointer, pointer_record
from mkmeta.store.record import Record, encode
from mkmeta.store.store import Store

_MEMORY = "mkmeta-followed"
_TIMES: Final = slice(1, 3)  # mtime and ctime in an identity
_SETTLED_NS: Final = 300 * NS  # how far two clocks may be apart, as for scan --base


class Step(StrEnum):
    """The least that was needed."""

    NOTHING = "nothing"
    REFRESHED = "refreshed"
    ACTIVATED = "activated"


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What was done."""

    step: Step
    pointer: Pointer | None = None  # None: it had not changed, and was not read
    refreshed: Refreshed | None = None
    activated: Activated | None = None
    built: bool = False  # a generation was built for it


@reused()
def follow(
    request: Request,
    pointer_path: bytes,
    run: RunDirectory,
    note: Note,
    *,
    options: BuildOptions,
    progress: Callable[[int, int], None],
) -> Followed:
    """Brings a mount to what the pointer names. Raises StoreError, RefusedError for an older generation, as `activate`.

    When nothing was published since the last time, that is one stat of the pointer. Whatever is asked of the volume
    before a manifest is read, a child process asks: a dead server takes `SECONDS`.
    """
    point = real_point(request.point)
    if os.path.abspath(pointer_path).startswith(point.rstrip(b"/") + b"/"):
        _refuse_layer(pointer_path, point)
    memory = _Memory(run, point)
    live = next(reversed(layers_at(point, run)), None)
    anew = False
    looked_ns = time.time_ns()
    try:
        status = ask(partial(os.stat, pointer_path, follow_symlinks=False), SECONDS)
        identity = _identity(status)
        anew = live is not None and is_outdated(live, run.placed(live.mount.device), pointer_path, status)
        if live is not None and not anew and memory.proves(identity) and memory.id.startswith(live.short_id):
            return Followed(step=Step.NOTHING)
        record = ask(partial(_record, pointer_path), SECONDS)
        pointer = parse_pointer(record)
    except NoAnswerError:
        hint = "see whether its server is up and reachable, and `dmesg`; what is mounted stays"
        raise MountError("the pointer's volume does not answer", path=pointer_path, hint=hint) from None
    except (OSError, StoreError) as error:
        return _without(pointer_path, error, request, live, run, note)
    digest = hashlib.sha256(record.data).hexdigest()
    if live is not None and not anew and pointer.id.hex().startswith(live.short_id):
        done = _refresh_once(live, pointer, run, request, note, known=memory.digest == digest)
    else:
        done = _switch(request, pointer_path, pointer, live, run, note, options=options, progress=progress)
    try:
        memory.keep(identity, looked_ns, digest, pointer)
    except (OSError, MkmetaError) as error:  # what was asked for is done
        why = reason(error) if isinstance(error, OSError) else error.message
        note(f"mkmeta: {printable(memory.path)}: cannot be kept ({why}): the next call does it once more")
    return done


def _record(pointer_path: bytes) -> Record:
    """In a child: the pointer as it is."""
    check_outside_layers(pointer_path)
    return pointer_record(pointer_path)


def check_outside_layers(pointer_path: bytes) -> None:
    """Raises RefusedError for a pointer that is named through a layer: that goes on showing the one it has shown.

    Raises OSError when its directory cannot be had.
    """
    directory = os.path.dirname(os.path.abspath(pointer_path))
    mount = mount_of(directory, mounts())
    if mount.source.startswith((SOURCE, INNER_SOURCE)):
        _refuse_layer(pointer_path, mount.point)


def _refuse_layer(pointer_path: bytes, point: bytes) -> NoReturn:
    raise RefusedError(
        f"the pointer is named through the layer at {printable(point)}, which would hide the next one",
        path=pointer_path,
        hint="name it on the volume itself",
    )


def _refresh_once(
    live: LiveMount, pointer: Pointer, run: RunDirectory, request: Request, note: Note, *, known: bool
) -> Followed:
    if known:
        return Followed(step=Step.NOTHING, pointer=pointer)
    with held(run.lock, "refresh", wait=request.wait, note=note):
        return Followed(step=Step.REFRESHED, pointer=pointer, refreshed=refresh(live))


def _switch(
    request: Request,
    pointer_path: bytes,
    pointer: Pointer,
    live: LiveMount | None,
    run: RunDirectory,
    note: Note,
    *,
    options: BuildOptions,
    progress: Callable[[int, int], None],
) -> Followed:
    store = Store.open_or_create(request.store)
    if live is not None and not pointer.rollback:
        with contextlib.suppress(StoreError):  # of another store: their numbers mean nothing to each other
            path, number = store_of(live)
            if path == store.path and pointer.generation < number:
                raise RefusedError(
                    f"the pointer names generation {pointer.generation}, and {number} is mounted",
                    path=pointer_path,
                    hint="to take clients back, publish with --rollback",
                )
    manifest = os.path.join(os.path.dirname(pointer_path), pointer.manifest)
    with ManifestReader.open(manifest) as reader:
        added = add(
            store,
            reader,
            replace(options, expect_id=pointer.id),
            number=pointer.generation,
            make_current=False,
            wait=request.wait,
            note=note,
            progress=progress,
        )
    activated = activate(replace(request, generation=added.generation.number), run, note)
    return Followed(step=Step.ACTIVATED, pointer=pointer, activated=activated, built=added.result is not None)


def _without(
    pointer_path: bytes,
    error: OSError | StoreError,
    request: Request,
    live: LiveMount | None,
    run: RunDirectory,
    note: Note,
) -> Followed:
    """The pointer cannot be had. A host that has just started mounts what it has; a running one says so."""
    why = reason(error) if isinstance(error, OSError) else error.message
    problem = MountError(f"the pointer cannot be read: {why}", path=pointer_path, hint="what is mounted stays")
    if live is not None:
        raise problem from None
    try:
        store = Store.open(request.store)
        if store.current() is None:
            raise problem from None
    except StoreError:
        raise problem from None
    note(f"mkmeta: {printable(pointer_path)}: the pointer cannot be read: {why}; mounting what this host has")
    activated = activate(request, run, note)
    return Followed(
        step=Step.ACTIVATED if activated.action is not Action.UNCHANGED else Step.NOTHING, activated=activated
    )


def _identity(status: os.stat_result) -> list[int]:
    """What changes when another file takes the pointer's name."""
    return [status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size]


class _Memory:
    """What was last done for one mount point, in RUN/followed. Lost when the host stops, like the mounts it is of.

    Only makes calls cheaper: what is damaged, or somebody else's, is as nothing, and the pointer is read.
    """

    def __init__(self, run: RunDirectory, point: bytes) -> None:
        name = hashlib.sha256(point).hexdigest()[:32].encode()
        self.path = run.path + b"/followed/" + name
        fields: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError, StoreError):
            fields = Record.read(self.path, _MEMORY, hint="", follow=False).fields
        self._identity = fields.get("identity")
        self._looked_ns = fields.get("looked")
        self.digest = fields.get("digest")  # SHA-256 of the pointer, as it was
        self.id = str(fields.get("id"))

    def proves(self, identity: list[int]) -> bool:
        """Whether the pointer is the one that was last read, by its inode alone.

        Not when it had just been written then: another one can have the same inode number, size and times, which on
        some servers are whole seconds, by a clock that is not ours.
        """
        if self._identity != identity or type(self._looked_ns) is not int:
            return False
        return self._looked_ns - max(identity[_TIMES]) > _SETTLED_NS

    def keep(self, identity: list[int], looked_ns: int, digest: str, pointer: Pointer) -> None:
        """Remembers that the mount is as this pointer asks. Raises OSError and MkmetaError."""
        os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
        fields: dict[str, object] = {
            "identity": identity,
            "looked": looked_ns,
            "digest": digest,
            "id": pointer.id.hex(),
        }
        with atomic_output(self.path, follow=False) as stream:
            stream.write(encode(_MEMORY, fields))
