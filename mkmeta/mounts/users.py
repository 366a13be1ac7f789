"""Who uses a layer: mounts of any namespace, and processes with something open (formats/mounts.md section 4)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mkmeta.errors import printable
from mkmeta.linux.asking import watched
from mkmeta.linux.mountinfo import Mount
from mkmeta.linux.namespaces import Proc, Table, Tables, Unseen, denied, host_tables, open_proc
from mkmeta.mounts.holding import Found, Held, Looker
from mkmeta.mounts.likeness import Layer, Likeness
from mkmeta.mounts.live import Layers, layers_of
from mkmeta.mounts.profile import INNER_SOURCE, SOURCE

_PASSES: Final = 5  # over the processes, until there are no new ones; a host that forks faster is not waited for
_OF_STORE = re.compile(rb"(?:^|/)(?:current/|\.\.?/|)(?:private/)?(?:layer|\.\.?)(?:/|$)")


@dataclass(frozen=True)
class Usage:
    """All mounts of this host and what processes have open, as they were for a moment."""

    tables: list[Table]
    held: list[Held]
    unseen: list[Unseen]
    like: dict[int, frozenset[bytes] | None]  # device of an overlay: which of the layers it has on top; None: any

    @property
    def in_doubt(self) -> bool:
        """Whether something could not be looked at, or not be told: perhaps only because it went away meanwhile."""
        open_on_any = any(item.layers is None for item in self.held)
        return bool(self.unseen) or open_on_any or None in self.like.values()


def look(layers: Sequence[bytes] = ()) -> Usage:
    """Looks at the whole host; `layers` are paths of layers that what is found is compared with.

    Of no file that is not on overlayfs is anything asked, and nothing hangs: what gives no answer is `unseen`. Holds no
    lock and changes nothing. Raises OSError when there is no proper /proc.
    """
    compared = [layer for path in layers if (layer := Layer.at(path)) is not None]
    with open_proc() as proc:
        host = host_tables(proc)
        unseen = [*host.unseen, *host.partly]
        looker = Looker(proc, host.tables, compared)
        held: list[Held] = []
        trees: list[Table] = []
        closed: list[int] = []
        for process, found in _processes(proc, looker):
            if found is None:
                what = f"process {proc.command(process)} cannot be looked into: no answer, perhaps of a dead server"
                unseen.append(Unseen(what, "end it, or see to the server"))
            else:
                held += found.held
                trees += found.trees
                unseen += found.unseen
                closed += [process] if found.closed else []
        unseen += denied(proc, closed)
        tables = [*host.tables, *trees]
        return Usage(tables, held, list(dict.fromkeys(unseen)), _likenesses(proc, tables, compared, unseen))


def mount_tables() -> Tables:
    """The mount tables of this host. Raises OSError when there is no proper /proc."""
    with open_proc() as proc:
        return host_tables(proc)


def command_of(process: int) -> str:
    """The name of a process's command, printable: a process gives itself any; empty when it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{process}/comm", "rb") as file:
        return printable(file.read().removesuffix(b"\n"))
    return ""


def lowers_named() -> frozenset[bytes] | None:
    """The lower layers of all overlays of this host, as they were named; None when there may be others.

    Raises OSError when there is no proper /proc.
    """
    host = mount_tables()
    if host.unseen:
        return None
    return frozenset(lower for table in host.tables for mount in table.mounts for lower in layers_of(mount).lowers)


def uses(mount: Mount, short_id: str, name: bytes, device: int, root: bytes) -> bool:
    """Whether a mount says that it uses the generation `name`, which is the directory `root` of a filesystem.

    By its source; by the name of a layer, in which the generation's own occurs, wherever its store was then; by the
    directory that it shows.
    """
    if mount.source in (SOURCE + short_id.encode(), INNER_SOURCE + short_id.encode()):
        return True
    if any(name in path.split(b"/") for path in _named(layers_of(mount))):
        return True
    return mount.device == device and (mount.root == root or mount.root.startswith(root + b"/"))


def may_be_of_any(mount: Mount, *, identified: bool) -> bool:
    """Whether a layer may be of any generation: named through `current`, or by a relative path.

    `identified`: of one of the names it is known what it is.
    """
    doubtful = [
        path
        for path in _named(layers_of(mount))
        if _OF_STORE.search(path) and (not path.startswith(b"/") or b"current" in path.split(b"/"))
    ]
    return len(doubtful) > identified


def is_identified(mount: Mount) -> bool:
    """Whether an overlay says by its source that it is mkmeta's, and of which manifest."""
    return mount.source.startswith((SOURCE, INNER_SOURCE))


def _named(layers: Layers) -> list[bytes]:
    return [*layers.lowers, *layers.data, *([layers.upper] if layers.upper else ())]


def _processes(proc: Proc, looker: Looker) -> Iterator[tuple[int, Found | None]]:
    """What each process holds, those included that are made meanwhile."""
    done: set[int] = set()
    for _ in range(_PASSES):
        ahead = [process for process in proc.processes() if process not in done]
        if not ahead:
            return
        done.update(ahead)
        yield from watched(looker.look, ahead, keep=[proc.fd])


def _likenesses(
    proc: Proc, tables: list[Table], layers: list[Layer], unseen: list[Unseen]
) -> dict[int, frozenset[bytes] | None]:
    """Which layers overlays of other makers have on top: asked of each overlay, not of each of its mounts."""
    ahead: dict[int, list[tuple[Table, Mount]]] = {}
    for table in tables:
        for mount in table.mounts:
            if mount.fstype == b"overlay" and not is_identified(mount):
                ahead.setdefault(mount.device, []).append((table, mount))
    likeness = Likeness(proc, layers)
    found: dict[int, frozenset[bytes] | None] = {}
    if layers:
        for places, like in watched(likeness.of_mounted, list(ahead.values()), keep=[proc.fd]):
            found[places[0][1].device] = like.layers if like is not None else None
    return found
