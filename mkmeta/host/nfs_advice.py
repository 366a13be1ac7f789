"""What the options of an NFS mount cost below a layer. Pure: it reads one line of the mount table.

From nfs(5) ("Data and metadata coherence", "soft / hard") and, where a figure stands, measured on Linux 6.12: a small
file one directory below the root of plain NFS (tests/nfs/test_costs.py). All figures are in `COSTS`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from mkmeta.host.finding import Finding, Level
from mkmeta.linux.mountinfo import Mount

NFS_TYPES: Final = (b"nfs", b"nfs4")

# What it costs, by the finding's identifier. Sentences are completed with the figures that were measured.
COSTS: Final = {
    "nfs-cto": "every open asks the server for the file's attributes, also for what is cached (1 GETATTR)",
    "nfs-nocto": "on NFSv3, opening a file again asks nothing while its attributes are cached; the same as cto on 4.2",
    "nfs-noac": "every stat and every step of a path that reaches the volume asks the server: 10 GETATTR to open a "
    "cached file again on NFSv3, 5 on 4.2, and 4 for a name that is not there",
    "nfs-actimeo": "attributes are asked for again after {low:g} to {high:g} s: then 3 GETATTR open a cached file on "
    "NFSv3, 2 on 4.2, where 1 is sent before",
    "nfs-lookupcache": "every name that reaches the volume is asked for again: 2 LOOKUP for a file one directory down",
    "nfs-lookupcache-pos": "names that are not there are asked for again: 1 LOOKUP each time",
    "nfs-getxattr": "every file that shows through costs one GETXATTR when it is first looked up",
    "nfs-open": "the first open of a file is ACCESS, OPEN, READ and CLOSE; again at once it is 1 GETATTR",
    "nfs-open-v3": "the first open of a file is 2 ACCESS, LOOKUP and READ; again at once it is 1 GETATTR",
}
_SHORT: Final = 30.0  # seconds; half of the kernel's default for acregmax
_LONG: Final = 600.0  # seconds; files of releases do not change, so that ten minutes and more hurt nobody

# Seconds, when the option is not in the table: NFS_DEF_ACREGMIN and so on in linux/nfs_fs.h
_DEFAULTS: Final = {"acregmin": 3.0, "acregmax": 60.0, "acdirmin": 30.0, "acdirmax": 60.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class NfsOptions:
    """The options of an NFS mount that matter here."""

    version: str  # 3, 4.2
    cto: bool
    attributes: bool  # are cached at all
    acregmin: float  # seconds
    acregmax: float
    acdirmax: float
    lookupcache: str  # all, pos, none
    soft: bool
    security: str  # sys, krb5 ...
    userxattr: bool  # of the layer, not of the mount

    @classmethod
    def of(cls, mount: Mount, *, userxattr: bool = False) -> NfsOptions:
        """Those of one NFS mount, as mountinfo (or fstab) has them."""

        def text(*keys: bytes) -> str:
            return next((value.decode(errors="replace") for key in keys for value in mount.values(key)), "")

        def seconds(name: str) -> float:
            try:
                return float(text(name.encode(), b"actimeo") or _DEFAULTS[name])
            except ValueError:
                return _DEFAULTS[name]

        noac = bool(mount.values(b"noac"))
        version = text(b"vers", b"nfsvers") or ("4" if mount.fstype == b"nfs4" else "3")
        minor = text(b"minorversion")
        return cls(
            version=f"{version}.{minor}" if minor and "." not in version else version,
            cto=not mount.values(b"nocto"),
            attributes=not noac,
            acregmin=0.0 if noac else seconds("acregmin"),
            acregmax=0.0 if noac else seconds("acregmax"),
            acdirmax=0.0 if noac else seconds("acdirmax"),
            lookupcache={"": "all", "positive": "pos"}.get(text(b"lookupcache"), text(b"lookupcache")),
            soft=any(mount.values(key) for key in (b"soft", b"softerr")),
            security=text(b"sec") or "sys",
            userxattr=userxattr,
        )


class _Advice(NamedTuple):
    """A row: when it holds, it is a finding. `message` and `hint` may name fields of NfsOptions."""

    id: str
    applies: Callable[[NfsOptions], bool]
    level: Level
    message: str
    hint: str | None = None


def _cost(key: str) -> str:
    return COSTS[key].replace("{low:g}", "{acregmin:g}").replace("{high:g}", "{acregmax:g}")


_VOLUMES_NEVER_CHANGE = "on a volume whose files never change in place, mount it with {options}: see nfs(5)"
_ADVICE: Final = (
    _Advice(
        "nfs-version",
        lambda nfs: not nfs.version.startswith("4"),
        Level.NOTE,
        f"NFSv{{version}}: {_cost('nfs-open-v3')} (measured on Linux 6.12)",
        "a file that is held open while it is removed on the server cannot be read on, which NFSv4.2 allows",
    ),
    _Advice(
        "nfs-version",
        lambda nfs: nfs.version.startswith("4"),
        Level.OK,
        f"NFSv{{version}}: {_cost('nfs-open')} (measured on Linux 6.12)",
    ),
    _Advice(
        "nfs-cto",
        lambda nfs: nfs.cto,
        Level.NOTE,
        f"nocto is not set: {_cost('nfs-cto')}",
        _VOLUMES_NEVER_CHANGE.replace("{options}", "nocto"),
    ),
    _Advice("nfs-cto", lambda nfs: not nfs.cto, Level.OK, f"nocto: {_cost('nfs-nocto')}"),
    _Advice(
        "nfs-attribute-cache",
        lambda nfs: not nfs.attributes,
        Level.WARNING,
        f"noac: {_cost('nfs-noac')}",
        "mount the volume without noac",
    ),
    _Advice(
        "nfs-attribute-cache",
        lambda nfs: nfs.attributes and nfs.acregmax < _SHORT,
        Level.WARNING,
        f"short attribute timeouts: {_cost('nfs-actimeo')}",
        _VOLUMES_NEVER_CHANGE.replace("{options}", "actimeo=600 or more"),
    ),
    _Advice(
        "nfs-attribute-cache",
        lambda nfs: nfs.attributes and _SHORT <= nfs.acregmax < _LONG,
        Level.NOTE,
        _cost("nfs-actimeo"),
        _VOLUMES_NEVER_CHANGE.replace("{options}", "actimeo=600 or more"),
    ),
    _Advice(
        "nfs-attribute-cache",
        lambda nfs: nfs.attributes and nfs.acregmax >= _LONG,
        Level.OK,
        f"long attribute timeouts: {_cost('nfs-actimeo')}",
    ),
    _Advice(
        "nfs-pointer",
        lambda nfs: not nfs.cto and nfs.acdirmax >= _LONG,
        Level.NOTE,
        "with nocto, a newly published pointer is seen up to {acdirmax:g} s late",
        "keep the pointer on a mount with cto, or wait that long before you rely on it",
    ),
    _Advice(
        "nfs-lookupcache",
        lambda nfs: nfs.lookupcache == "none",
        Level.WARNING,
        f"lookupcache=none: {_cost('nfs-lookupcache')}",
        "mount the volume without lookupcache=none; it does not make new names visible through a layer, `refresh` does",
    ),
    _Advice(
        "nfs-lookupcache",
        lambda nfs: nfs.lookupcache == "pos",
        Level.NOTE,
        f"lookupcache=positive: {_cost('nfs-lookupcache-pos')}",
        "mount the volume without it; it does not make new names visible through a layer, `refresh` does",
    ),
    _Advice(
        "nfs-lookupcache",
        lambda nfs: nfs.lookupcache == "all",
        Level.OK,
        "names are kept, those that are not there too (lookupcache=all)",
    ),
    _Advice(
        "nfs-soft",
        lambda nfs: nfs.soft,
        Level.WARNING,
        "soft: when the server is slow programs get I/O errors, and mapped libraries crash them (SIGBUS)",
        "mount the volume hard, the default",
    ),
    _Advice("nfs-soft", lambda nfs: not nfs.soft, Level.OK, "hard: when the server is slow, programs wait"),
    _Advice(
        "nfs-security",
        lambda nfs: nfs.security.startswith("krb5"),
        Level.WARNING,
        "sec={security}: the server sees who mounted the overlay, not the user; layers were not tested with Kerberos",
        "make sure root's machine credential may read the volume, then try one file as a user",
    ),
    _Advice(
        "nfs-security",
        lambda nfs: not nfs.security.startswith("krb5"),
        Level.OK,
        "sec={security}: the server sees who mounted the overlay, not the user",
    ),
    _Advice(
        "nfs-getxattr",
        lambda nfs: nfs.userxattr and nfs.version == "4.2",
        Level.NOTE,
        f"userxattr over NFSv4.2: {_cost('nfs-getxattr')}",
        "mount the volume with vers=4.1, which has no xattrs, unless you need them",
    ),
)


def nfs_findings(mount: Mount, *, userxattr: bool = False) -> Iterator[Finding]:
    """What the options of an NFS mount mean for a layer over it."""
    nfs = NfsOptions.of(mount, userxattr=userxattr)
    fields = {name: getattr(nfs, name) for name in NfsOptions.__slots__}
    for advice in _ADVICE:
        if advice.applies(nfs):
            yield Finding(
                id=advice.id,
                level=advice.level,
                message=advice.message.format(**fields),
                hint=advice.hint.format(**fields) if advice.hint else None,
                path=mount.point,
            )
