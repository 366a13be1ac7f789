"""What a layer file may say (formats/layer.toml.md): every key, the values it takes, and what it means.

A key `name` in a table `[table]` is `table.name` here, and `table_name` a field of `mkmeta.config.LayerConfig`. To add
one: a Key here, a field there. The page, `mkmeta init` and layer.toml(5) follow this list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from mkmeta.model import DigestName, HardLinks
from mkmeta.mounts.profile import Profile, Verity
from mkmeta.sinks.protocol import LayerKind

LIST_MAX: Final = 4096  # values in one list
_PATH_SIZE_MAX: Final = 4095  # bytes; the kernel's PATH_MAX, less the NUL
_COUNT_MAX: Final = 1_000_000
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}  # seconds
_SPAN: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([smhdw]?)", re.ASCII)
_SIZE: Final = re.compile(r"([0-9]{1,12})([KMG]?)", re.ASCII)
_INLINE: Final = re.compile(r"(?:.+=)?[0-9]{1,12}[KMG]?", re.ASCII | re.DOTALL)


def span(text: str) -> float:
    """Seconds of a time span: a number, or one with a unit: `90`, `15m`, `2d`. Raises ValueError."""
    match = _SPAN.fullmatch(text)
    value = float(match[1]) * _UNITS[match[2]] if match else math.inf
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a time span, such as 90, 15m or 2d")
    return value


# --- kinds of values: each gives what a TOML value means, or raises ValueError ---


class Kind(NamedTuple):
    """What values a key takes."""

    words: str  # for people: "an absolute path"
    read: Callable[[Any], object]


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("is not a string")
    if not value:
        raise ValueError("is empty")
    if "\0" in value:
        raise ValueError("holds a NUL character")
    return value


def _raw(value: object) -> bytes:
    """A string as the bytes that the file has for it, which need not be UTF-8."""
    return _string(value).encode("utf-8", "surrogateescape")


def _path(value: object) -> bytes:
    raw = _raw(value)
    if not raw.startswith(b"/"):
        raise ValueError("is not an absolute path, which starts with /")
    if len(raw) > _PATH_SIZE_MAX:
        raise ValueError(f"is a path of more than {_PATH_SIZE_MAX} bytes")
    return raw


def _below(value: object) -> bytes:
    raw = _raw(value)
    if len(raw) > _PATH_SIZE_MAX or b".." in raw.split(b"/"):
        raise ValueError("is not a path below the lower layer")
    return raw


def _name(value: object) -> bytes:
    raw = _raw(value)
    if b"/" in raw or raw in (b".", b".."):
        raise ValueError("is not the name of a file, without directories")
    return raw


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 1 <= value <= _COUNT_MAX:
        raise ValueError(f"is not a number from 1 to {_COUNT_MAX}")
    return value


def _span(value: object) -> float:
    if type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("is not a time span, such as 90, '15m' or '2d'")
    return span(value)


def _list_of(one: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def read(value: object) -> tuple[Any, ...]:
        values = value if isinstance(value, list) else [value]
        if len(values) > LIST_MAX:
            raise ValueError(f"has more than {LIST_MAX} values")
        return tuple(one(item) for item in values)

    return read


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def read(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"is not one of {', '.join(allowed)}")
        return allowed[allowed.index(str(value))]

    return read


def _inline(value: object) -> str:
    if type(value) is int:
        value = str(value)
    text = _string(value)
    if not _INLINE.fullmatch(text):
        raise ValueError("is not a size such as '64K', nor PATTERN=SIZE")
    return text


def inline_rule(text: str) -> tuple[bytes, int]:
    """What a value of `inline` means: the pattern, empty where there is none, and the size in bytes."""
    pattern, _, size = text.rpartition("=")
    return pattern.encode("utf-8", "surrogateescape"), size_of(size)


def size_of(text: str) -> int:
    """Bytes of a size: a number, or one with a unit, a power of 1024: `16K`, `1M`, `1G`. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size, such as 64K")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def _digests(value: object) -> tuple[DigestName, ...]:
    if not isinstance(value, list):
        raise ValueError("is not a list, such as ['verity', 'blake3'], or [] for none")
    names = {_one_of(*DigestName)(item) for item in value}
    return tuple(name for name in DigestName if name in names)


PATH = Kind("an absolute path", _path)
PATTERNS = Kind("a pattern, or a list of them", _list_of(_raw))
FLAG = Kind("true or false", _flag)
COUNT = Kind("a number, at least 1", _count)
SPAN = Kind("a time span: seconds, or a string such as '15m', '2d'", _span)


def choice(*allowed: str) -> Kind:
    """One of some words."""
    return Kind("one of " + ", ".join(f"'{word}'" for word in allowed), _one_of(*allowed))


class Key(NamedTuple):
    """Something that a layer file may say."""

    name: str  # `name`, or `table.name`
    kind: Kind
    means: str  # one sentence for people, without its full stop
    example: str  # a value as TOML has it

    @property
    def field(self) -> str:
        """The attribute of LayerConfig."""
        return re.sub(r"[.-]", "_", self.name)


KEYS: Final = (
    Key(
        "volume", PATH, "Where the volume is mounted: what is scanned, and what the layer is mounted over", '"/mnt/sw"'
    ),
    Key("manifest", PATH, "The file that scan writes and build reads", '"/var/lib/mkmeta/sw.mkm"'),
    Key("store", PATH, "Where built layers are kept, on a local filesystem", '"/var/lib/mkmeta/sw"'),
    Key(
        "pointer",
        PATH,
        "The file on the volume by which publish tells clients what to mount",
        '"/mnt/sw/.mkmeta/sw.json"',
    ),
    Key("reports", PATH, "The directory where hosts say which generation they have", '"/mnt/sw/.mkmeta/reports"'),
    Key("staging", PATTERNS, "What is never a release: places to copy to first", '["**/.*", "**/*.partial"]'),
    Key("marker", Kind("the name of a file", _name), "What a release has in it when it is complete", '".complete"'),
    Key("quiet", SPAN, "How long nothing in a release has changed before watch takes it", '"1m"'),
    Key("mount-point", PATH, "Where users find the software: an empty directory outside of the volume", '"/sw"'),
    Key("select", PATTERNS, "What to record; without it, everything", '["grp/*/v*/lib", "tools/**/python"]'),
    Key(
        "hide",
        PATTERNS,
        "What to leave out: inside a recorded directory it is invisible through the mount",
        '["**/.git"]',
    ),
    Key("drop-xattr", PATTERNS, "Extended attributes not to record, by name", '["security.selinux"]'),
    Key(
        "digests",
        Kind("a list of 'verity' and 'blake3', or []", _digests),
        "What to compute of file contents",
        '["verity", "blake3"]',
    ),
    Key("hard-links", choice(*HardLinks), "Which names of one inode stay one in the layer", '"subtree"'),
    Key(
        "inline",
        Kind("a size such as '64K', PATTERN=SIZE, or a list of them", _list_of(_inline)),
        "Up to which size the content of files is recorded as well",
        '["64K", "**/*.py=1M"]',
    ),
    Key("format", choice(*LayerKind), "What a generation of the store is", '"directory"'),
    Key("userxattr", FLAG, "Layers for mounts in user namespaces", "false"),
    Key("no-verity", FLAG, "Leave the fs-verity digests out of the layer", "false"),
    Key("redirect-prefix", Kind("a path", _below), "Where the scanned directory is below the lower layer", '"sw"'),
    Key("profile", choice("auto", *Profile), "How layer and volume are put together", '"auto"'),
    Key(
        "verity",
        choice(*Verity),
        "Whether the fs-verity digest of data files is compared when they are opened",
        '"off"',
    ),
    Key("options", Kind("a string, or a list of them", _list_of(_raw)), "More options for the overlay", '["xino=on"]'),
    Key("over", FLAG, "Mount it although that hides something at the mount point", "false"),
    Key("allow-setid", FLAG, "Let set-ID bits, capabilities and devices of the layer take effect", "false"),
    Key("allow-gap", FLAG, "Before Linux 6.5: take the old mount away before the new one comes", "false"),
    Key("other-root", FLAG, "The manifest may have been made from a directory of another name", "false"),
    Key("run-dir", PATH, "For inner mounts and locks; the same for all layers of a host", '"/run/mkmeta"'),
    Key("keep", COUNT, "How many of the newest generations gc leaves", "3"),
    Key("min-age", SPAN, "gc leaves what was built less than this ago", '"2d"'),
)
