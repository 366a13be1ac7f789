"""Does the least that a pointer on the volume asks for (formats/store.md section 5): nothing, a refresh, a switch."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from mkmeta.build import BuildOptions
from mkmeta.errors import MountError, RefusedError, StoreError, printable, reason
from mkmeta.host.activation import Action, Activated, Note, Request, activate, store_of
from mkmeta.host.volume import is_outdated
from mkmeta.manifest.output import atomic_output
from mkmeta.manifest.reader import ManifestReader
from mkmeta.mounts.live import LiveMount
from mkmeta.mounts.refresh import Refreshed, refresh
from mkmeta.mounts.run import RunDirectory
from mkmeta.mounts.switch import layers_at
from mkmeta.store.adding import add
from mkmeta.store.lock import held
from mkmeta.store.pointer import Pointer, read_pointer
from mkmeta.store.record import Record, encode
from mkmeta.store.store import Store

_MEMORY = "mkmeta-followed"


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

    When nothing was published since the last time, that is one stat of the pointer.
    """
    point = os.path.realpath(request.point)
    memory = _Memory(run, point)
    live = next(reversed(layers_at(point, run)), None)
    anew = False
    try:
        status = os.stat(pointer_path)
        identity = _identity(status)
        anew = live is not None and is_outdated(live, run.placed(live.mount.device), pointer_path, status)
        if live is not None and not anew and memory.identity == identity and memory.id.startswith(live.short_id):
            return Followed(step=Step.NOTHING)
        pointer = read_pointer(pointer_path)
    except (OSError, StoreError) as error:
        return _without(pointer_path, error, request, live, run, note)
    if live is not None and not anew and pointer.id.hex().startswith(live.short_id):
        done = _refresh_once(live, pointer, memory, run, request, note)
    else:
        done = _switch(request, pointer_path, pointer, live, run, note, options=options, progress=progress)
    memory.keep(identity, pointer)
    return done


def _refresh_once(
    live: LiveMount, pointer: Pointer, memory: _Memory, run: RunDirectory, request: Request, note: Note
) -> Followed:
    if memory.serial == pointer.serial:
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
    """What was last done for one mount point, in RUN/followed. Lost when the host stops, like the mounts it is of."""

    def __init__(self, run: RunDirectory, point: bytes) -> None:
        name = hashlib.sha256(point).hexdigest()[:32].encode()
        self._path = run.path + b"/followed/" + name
        fields: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError, StoreError):  # then nothing is known, and the pointer is read
            fields = Record.read(self._path, _MEMORY, hint="").fields
        self.identity = fields.get("identity")
        self.serial = fields.get("serial")
        self.id = str(fields.get("id"))

    def keep(self, identity: list[int], pointer: Pointer) -> None:
        """Remembers that the mount is as this pointer asks."""
        os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
        fields: dict[str, object] = {"identity": identity, "serial": pointer.serial, "id": pointer.id.hex()}
        with atomic_output(self._path, follow=False) as stream:
            stream.write(encode(_MEMORY, fields))
