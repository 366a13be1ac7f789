"""Recognises what is mounted: which layer, in which profile, over which volume. Reads mount tables and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mkmeta.errors import printable
from mkmeta.linux.mountinfo import Mount, visible_at
from mkmeta.mounts.image import INNER_PLACE, image_of, is_placed_image
from mkmeta.mounts.profile import INNER_SOURCE, SOURCE, Profile, Verity


class Layers(NamedTuple):
    """The directories an overlay is made of, as it was told them."""

    lowers: list[bytes]  # ordinary ones, topmost first
    data: list[bytes]  # data-only ones
    upper: bytes | None


@dataclass(frozen=True, kw_only=True)
class LiveMount:
    """A layer over a volume, mounted."""

    mount: Mount  # the one users see
    inner: Mount | None  # of the nested profile, while it is reachable
    inner_path: bytes | None  # where it was mounted, and the image
    image: Mount | None  # of a layer that is one, while it is reachable
    profile: Profile
    short_id: str
    layer: bytes  # directory or image; empty where it cannot be told
    lower: bytes

    @property
    def point(self) -> bytes:
        """Where it is."""
        return self.mount.point

    @property
    def verity(self) -> Verity:
        """The option it was mounted with."""
        values = (self.inner or self.mount).values(b"verity")
        return next((one for one in Verity if values[:1] == [one.encode()]), Verity.OFF)

    @property
    def userxattr(self) -> bool:
        """Whether it reads the `user.` namespace."""
        return bool(self.mount.values(b"userxattr"))


def live_mounts(among: Iterable[Mount]) -> list[LiveMount]:
    """The mounts of layers in a mount table, in its order: whole ones, visible or not, those made by bind included."""
    table = list(among)
    inner = {mount.point: mount for mount in table if is_inner(mount)}
    images = {mount.point: mount for mount in table if is_placed_image(mount)}
    return [_live(mount, inner, images) for mount in table if is_layer(mount)]


def live_at(
    point: bytes, among: list[Mount], is_copy: Callable[[Mount], bool] = lambda _mount: False
) -> list[LiveMount]:
    """Those on top of each other at the top of what is visible at a path, the visible one last.

    None where another mount is on top, or on a directory above. `is_copy` says of which mounts it is known that they
    were made by bind from one elsewhere: these are somebody else's.
    """
    live = {found.mount.id: found for found in live_mounts(among)}
    stack: list[LiveMount] = []
    for mount in reversed(visible_at(point, among)):
        if mount.id not in live or is_copy(mount):
            break
        stack.insert(0, live[mount.id])
    return stack


def is_layer(mount: Mount) -> bool:
    """Whether a mount shows a whole layer to users. A bind mount of a directory in one has the same source and type."""
    return mount.fstype == b"overlay" and mount.source.startswith(SOURCE) and mount.root == b"/"


def is_inner(mount: Mount) -> bool:
    """Whether a mount is the inner one of a nested layer."""
    return mount.fstype == b"overlay" and mount.source.startswith(INNER_SOURCE) and mount.root == b"/"


def layers_of(mount: Mount) -> Layers:
    """The layers in the options of an overlay, escapes removed; none for other filesystems."""
    if mount.fstype != b"overlay":
        return Layers([], [], None)
    upper = mount.values(b"upperdir")
    lowers, data = mount.values(b"lowerdir+"), mount.values(b"datadir+")
    for value in mount.values(b"lowerdir"):
        ordinary, *rest = re.split(rb"(?<!\\)((?:\\\\)*)::", value, maxsplit=1)
        lowers += [_plain(path) for path in _split(ordinary + (rest[0] if rest else b""))]
        data += [_plain(path) for path in _split(rest[1].replace(b"::", b":"))] if rest else []
    escaped = mount.values(b"lowerdir")
    return Layers(lowers, data, (_plain(upper[0]) if escaped else upper[0]) if upper else None)


def _split(text: bytes) -> list[bytes]:
    """At colons without a backslash."""
    return re.findall(rb"(?:[^\\:]|\\.)+", text, re.DOTALL)


def _plain(escaped: bytes) -> bytes:
    return re.sub(rb"\\(.)", rb"\1", escaped, flags=re.DOTALL)


def _live(mount: Mount, inner: dict[bytes, Mount], images: dict[bytes, Mount]) -> LiveMount:
    """What a mount with our source is. Anybody may have made it, of anything."""
    layers = layers_of(mount)
    top, lowest = (layers.lowers[0], layers.lowers[-1]) if layers.lowers else (b"", b"")
    if layers.upper is not None:
        profile, layer, lower = Profile.UPPER, layers.upper, top
    elif layers.data:
        profile, layer, lower = Profile.DATA_ONLY, top, layers.data[0]
    elif top in inner or (INNER_PLACE.fullmatch(top) and not mount.values(b"metacopy")):
        below = layers_of(inner[top]).lowers if top in inner else []
        profile, layer, lower = Profile.NESTED, below[0] if below else b"", lowest
    else:
        profile, layer, lower = Profile.MERGE, top, lowest
    image = images.get(layer)
    place = top if profile is Profile.NESTED or INNER_PLACE.fullmatch(layer) else None
    if place is not None and INNER_PLACE.fullmatch(layer):
        layer = image_of(image) if image is not None else b""
    return LiveMount(
        mount=mount,
        inner=inner.get(top),
        inner_path=place,
        image=image,
        profile=profile,
        short_id=printable(mount.source.removeprefix(SOURCE)),
        layer=layer,
        lower=lower,
    )
