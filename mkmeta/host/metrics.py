"""What monitoring wants to know of the layers of this host (docs/monitoring.md), from what `mkmeta status` finds."""

from __future__ import annotations

import contextlib
import datetime
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Final

from mkmeta.errors import MkmetaError
from mkmeta.host.deactivation import Left
from mkmeta.host.prometheus import Family
from mkmeta.host.status import Status
from mkmeta.linux.asking import NoAnswerError, ask
from mkmeta.linux.mountinfo import mounts, seen_at
from mkmeta.linux.mountstats import Operation, nfs_operations
from mkmeta.manifest.reader import ManifestReader
from mkmeta.store.pointer import Pointer, read_pointer

NS: Final = 10**9
SECONDS: Final = 3.0  # for the pointer, and for a manifest
STATES: Final = ("current", "behind", "degraded", "unknown")


def layer_metrics(
    found: Sequence[Status], left: Sequence[Left], states: Sequence[str], pointer: bytes | None
) -> list[Family]:
    """All of them. `states` has one of STATES for each of `found`; `pointer` names what is published for them all."""
    layers = Family("mkmeta_layers", "gauge", "Layers mounted on this host.")
    layers.add(len(found))
    inner = Family("mkmeta_left_inner_mounts", "gauge", "Inner mounts whose layer is mounted here no more.")
    inner.add(len(left))
    return [layers, inner, *_of_mounts(found, states), *_of_pointer(pointer), *_of_volumes(found)]


def _of_mounts(found: Sequence[Status], states: Sequence[str]) -> list[Family]:
    info = Family("mkmeta_layer_info", "gauge", "What is mounted where: always 1.")
    state = Family("mkmeta_layer_state", "gauge", "1 for the state that mkmeta status finds, 0 for the others.")
    problems = Family("mkmeta_layer_problems", "gauge", "Things that are wrong with the mount.")
    number = Family("mkmeta_layer_generation", "gauge", "The mounted generation.")
    current = Family("mkmeta_layer_current_generation", "gauge", "What mkmeta activate would mount.")
    newest = Family("mkmeta_layer_newest_generation", "gauge", "The newest generation of the store.")
    built = Family("mkmeta_layer_built_timestamp_seconds", "gauge", "When the mounted generation was complete.")
    entries = Family("mkmeta_layer_entries", "gauge", "Names that the mounted layer has.")
    holders = Family(
        "mkmeta_layer_holders", "gauge", "Processes, or their mount namespaces, that still have another generation."
    )
    copies = Family("mkmeta_layer_copies", "gauge", "Bind mounts of this layer, or of earlier ones, here.")
    for one, its_state in zip(found, states, strict=True):
        at = one.live.point
        info.add(
            1,
            mountpoint=at,
            id=one.id.hex() if one.id else one.live.short_id,
            profile=str(one.live.profile),
            verity=str(one.live.verity),
            lower=one.live.lower,
            store=one.store or b"",
        )
        for name in STATES:
            state.add(name == its_state, mountpoint=at, state=name)
        problems.add(len(one.problems), mountpoint=at)
        for family, generation in ((number, one.generation), (current, one.current), (newest, one.newest)):
            if generation is not None:
                family.add(generation.number, mountpoint=at)
        if one.built_ns is not None:
            built.add(one.built_ns / NS, mountpoint=at)
        count = _entries(one)
        if count is not None:
            entries.add(count, mountpoint=at)
        held = Counter(holder.generation for holder in one.holders)
        for generation_number, count in sorted(held.items()):
            holders.add(count, mountpoint=at, generation=str(generation_number))
        copies.add(len(one.copies), mountpoint=at)
    return [info, state, problems, number, current, newest, built, entries, holders, copies]


def _entries(one: Status) -> int | None:
    """None: this user may not read the manifest, or its disk does not answer."""
    if one.generation is None:
        return None
    try:
        return ask(partial(_entries_of, one.generation.manifest), SECONDS)
    except (NoAnswerError, MkmetaError, OSError):
        return None


def _entries_of(manifest: bytes) -> int:
    with ManifestReader.open(manifest) as reader:
        return reader.root.directory.entries


def _of_pointer(path: bytes | None) -> list[Family]:
    """What is published. Where the pointer cannot be read, that alone is said."""
    if path is None:
        return []
    readable = Family("mkmeta_pointer_readable", "gauge", "Whether the pointer can be read.")
    number = Family("mkmeta_published_generation", "gauge", "The generation that the pointer names.")
    published = Family("mkmeta_published_timestamp_seconds", "gauge", "When it was published.")
    pointer: Pointer | None = None
    with contextlib.suppress(NoAnswerError, MkmetaError, OSError):
        pointer = ask(partial(read_pointer, path), SECONDS)
    readable.add(pointer is not None, pointer=path)
    if pointer is not None:
        number.add(pointer.generation, pointer=path)
        published.add(datetime.datetime.fromisoformat(pointer.published).timestamp(), pointer=path)
    return [readable, number, published]


def _of_volumes(found: Sequence[Status]) -> list[Family]:
    """What the NFS client has sent for the volumes, past the layers and beside them."""
    requests = Family("mkmeta_volume_requests_total", "counter", "Requests of the NFS client for the volume, by kind.")
    errors = Family(
        "mkmeta_volume_errors_total", "counter", "Of these, answered by an error: of LOOKUP and OPEN, names not there."
    )
    table = mounts()
    counted: dict[bytes, dict[str, Operation]] = {}
    with contextlib.suppress(OSError):  # no procfs
        counted = nfs_operations()
    for lower in sorted({one.live.lower for one in found}):
        mount = seen_at(lower, table)
        for name, operation in sorted(counted.get(mount.point, {}).items() if mount else ()):
            requests.add(operation.requests, volume=lower, operation=name)
            if operation.errors is not None:
                errors.add(operation.errors, volume=lower, operation=name)
    return [requests, errors]


def verify_metrics(findings: Counter[str], *, path: bytes, entries: int, seconds: float, now: float) -> list[Family]:
    """What `mkmeta verify` found in one layer. `findings` by side."""
    found = Family("mkmeta_verify_findings", "gauge", "What was not as recorded when a layer was last verified.")
    for side in ("layer", "volume", "data"):
        found.add(findings[side], layer=path, side=side)
    when = Family("mkmeta_verify_timestamp_seconds", "gauge", "When a layer was last verified.")
    when.add(now, layer=path)
    compared = Family("mkmeta_verify_entries", "gauge", "Names of the layer that were compared.")
    compared.add(entries, layer=path)
    took = Family("mkmeta_verify_duration_seconds", "gauge", "How long that took.")
    took.add(seconds, layer=path)
    return [found, when, compared, took]
