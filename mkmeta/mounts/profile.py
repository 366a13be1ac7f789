"""What each profile mounts: the layers and options of formats/mounts.md section 1. Pure: opens nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mkmeta.errors import RefusedError, UsageError, printable
from mkmeta.linux.mount import MountFlags

SOURCE: Final = b"mkmeta:"  # of the mount users see; the first digits of the manifest ID follow
INNER_SOURCE: Final = b"mkmeta-inner:"
SHORT_ID_DIGITS: Final = 12

# What users may add with -o. The rest is decided here, or changes what a layer means.
EXTRA_OPTIONS: Final = frozenset((b"xino", b"uuid", b"index", b"fsync", b"volatile"))
_REFUSED_OPTIONS = {
    b"nfs_export": "a file opened by its handle after the caches are dropped would read zeros instead of its data",
    b"verity": "it belongs to one mount of several: use --verity",
    b"userxattr": "it follows from the layer",
    b"metacopy": "it follows from the profile",
    b"redirect_dir": "it follows from the profile",
    b"default_permissions": "overlayfs checks permissions itself",
}


NO_FLAGS: Final = MountFlags(0)


class Profile(StrEnum):
    """A way to put a layer over its volume."""

    NESTED = "nested"
    MERGE = "merge"
    DATA_ONLY = "data-only"
    UPPER = "upper"

    @property
    def lacks(self) -> str:
        """What users of this profile do without, compared to `nested`."""
        return {
            Profile.NESTED: "",
            Profile.MERGE: "the first stat of every file asks the volume",
            Profile.DATA_ONLY: "nothing shows through from the volume: a closed tree",
            Profile.UPPER: "the first stat of every file asks the volume, and changes are written into the layer",
        }[self]


class Verity(StrEnum):
    """Whether overlayfs compares a data file's fs-verity digest with the layer's when it is opened."""

    OFF = "off"
    ON = "on"
    REQUIRE = "require"


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """One overlay mount to be made. Paths are real and absolute."""

    source: bytes
    lowers: tuple[bytes, ...]  # ordinary ones, topmost first
    data: tuple[bytes, ...] = ()  # data-only ones
    upper: bytes | None = None
    work: bytes | None = None
    options: tuple[tuple[bytes, bytes], ...] = ()  # others; a flag has an empty value
    flags: MountFlags = NO_FLAGS


@dataclass(frozen=True, kw_only=True)
class MountPlan:
    """A layer over a volume in one profile. Raises RefusedError for a combination that cannot work."""

    profile: Profile
    layer: bytes  # a directory; while `image` is not mounted, that
    lower: bytes
    short_id: bytes
    image: bytes | None = None  # a file, to be mounted where the layer shall be
    work: bytes | None = None  # for `upper`
    userxattr: bool = False  # the layer's overlayfs xattrs are in the `user.` namespace
    verity: Verity = Verity.OFF
    extra: tuple[tuple[bytes, bytes], ...] = ()
    flags: MountFlags = NO_FLAGS  # nosuid, nodev, noexec of the volume's own mount

    def __post_init__(self) -> None:
        if self.image is not None and self.profile is Profile.UPPER:
            raise RefusedError(
                "an image cannot be written into",
                path=self.image,
                hint="build the manifest as a directory for --profile upper",
            )
        if self.userxattr and self.profile in (Profile.MERGE, Profile.UPPER):
            raise RefusedError(
                f"profile {self.profile} cannot follow the redirects of a layer with user.* attributes",
                path=self.layer,
                hint="use --profile nested or data-only (Linux 6.16), or build the layer without --userxattr",
            )

    def inner(self) -> Overlay | None:
        """The mount that has to exist first; None where there is only one."""
        if self.profile is not Profile.NESTED:
            return None
        return Overlay(
            source=INNER_SOURCE + self.short_id,
            lowers=(self.layer,),
            data=(self.lower,),
            options=self._reading,
            flags=self.flags | MountFlags.RDONLY,
        )

    def outer(self, inner: bytes) -> Overlay:
        """The mount users see; `inner` is where the inner one is mounted, if there is one."""
        source = SOURCE + self.short_id
        extra = self.extra
        read_only = self.flags | MountFlags.RDONLY
        match self.profile:
            case Profile.NESTED:
                options = (((b"userxattr", b""),) if self.userxattr else ()) + extra
                return Overlay(source=source, lowers=(inner, self.lower), options=options, flags=read_only)
            case Profile.MERGE:
                both = (self.layer, self.lower)
                return Overlay(source=source, lowers=both, options=self._reading + extra, flags=read_only)
            case Profile.DATA_ONLY:
                return Overlay(
                    source=source,
                    lowers=(self.layer,),
                    data=(self.lower,),
                    options=self._reading + extra,
                    flags=read_only,
                )
            case Profile.UPPER:
                return Overlay(
                    source=source,
                    lowers=(self.lower,),
                    upper=self.layer,
                    work=self.work,
                    options=self._reading + extra,
                    flags=self.flags,
                )

    @property
    def _reading(self) -> tuple[tuple[bytes, bytes], ...]:
        """Options of the mount that follows the layer's redirects."""
        namespace = (b"userxattr", b"") if self.userxattr else (b"metacopy", b"on")
        verity = ((b"verity", self.verity.encode()),) if self.verity is not Verity.OFF else ()
        return (namespace, *verity)


def parse_extra(texts: list[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """Options from the command line, comma-separated. Raises RefusedError for harmful, UsageError for unknown ones."""
    options = []
    for text in b",".join(texts).split(b","):
        key, _, value = text.partition(b"=")
        if not key:
            continue
        if key == b"nfs_export" and value == b"off":
            continue
        if key in _REFUSED_OPTIONS:
            raise RefusedError(f"mount option {printable(text)}: {_REFUSED_OPTIONS[key]}")
        if key not in EXTRA_OPTIONS:
            allowed = ", ".join(sorted(name.decode() for name in EXTRA_OPTIONS))
            raise UsageError(f"mount option {printable(text)}: not one of {allowed}")
        options.append((key, value))
    return tuple(options)
