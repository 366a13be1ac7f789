"""The file that describes a layer, `layer.toml` (formats/layer.toml.md): read once, strictly, by every verb that takes
`--config FILE`.

`mkmeta.config_keys` lists what such a file may say.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from mkmeta.config_keys import KEYS, Key
from mkmeta.errors import UsageError, printable, reason
from mkmeta.linux.ownership import who_else_may_write
from mkmeta.model import DigestName

CONFIG_SIZE_MAX: Final = 64 << 10  # bytes; thousands of patterns are better kept in a file for --select-from


# What people may call a key that has another name
_OTHER_NAMES: Final = {
    "lower": "volume",
    "root": "volume",
    "output": "manifest",
    "mountpoint": "mount-point",
    "point": "mount-point",
    "follow": "pointer",
    "digest": "digests",
}


class ConfigError(UsageError):
    """A layer file that cannot be read, or says what no layer file may say; the message names the line."""


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """What a layer file says; None, and an empty list of patterns: nothing. Paths are absolute, times in seconds."""

    path: bytes  # of the file
    volume: bytes | None = None
    manifest: bytes | None = None
    store: bytes | None = None
    pointer: bytes | None = None
    reports: bytes | None = None
    staging: tuple[bytes, ...] = ()
    marker: bytes | None = None
    quiet: float | None = None
    mount_point: bytes | None = None
    select: tuple[bytes, ...] = ()
    hide: tuple[bytes, ...] = ()
    drop_xattr: tuple[bytes, ...] = ()
    digests: tuple[DigestName, ...] | None = None
    hard_links: str | None = None
    inline: tuple[str, ...] = ()
    format: str | None = None
    userxattr: bool | None = None
    no_verity: bool | None = None
    redirect_prefix: bytes | None = None
    profile: str | None = None
    verity: str | None = None
    options: tuple[bytes, ...] = ()
    over: bool | None = None
    allow_setid: bool | None = None
    allow_gap: bool | None = None
    other_root: bool | None = None
    run_dir: bytes | None = None
    keep: int | None = None
    min_age: float | None = None

    def need(self, *names: str) -> None:
        """Raises ConfigError unless the file says all of these keys."""
        for name in names:
            key = next(key for key in KEYS if key.name == name)
            if getattr(self, key.field) in (None, ()):
                hint = f"add a line such as: {name} = {key.example}"
                raise ConfigError(f"does not say '{name}', which is needed here", path=self.path, hint=hint)


def read_config(path: bytes) -> LayerConfig:
    """Reads and checks a layer file. Raises ConfigError: of one that somebody else may write to, too."""
    return parse_config(_read(path), path)


def parse_config(data: bytes, path: bytes) -> LayerConfig:
    """What the bytes of a layer file say; `path` is named in errors, which are ConfigError."""
    if len(data) > CONFIG_SIZE_MAX:
        hint = "keep long lists of patterns in a file for --select-from"
        raise ConfigError(f"has more than {CONFIG_SIZE_MAX >> 10} KiB", path=path, hint=hint)
    text = data.decode("utf-8", "surrogateescape")  # names are bytes: what is not UTF-8 stays as it is
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, tomllib.TOMLDecodeError):
            what = _lower(str(error))
        else:  # a plain ValueError is Python's refusal of an integer with thousands of digits
            what = "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
        raise ConfigError(f"is not TOML: {printable(what.encode(errors='surrogateescape'))}", path=path) from None
    return _Checked(path, text).config(tables)


@dataclass(frozen=True)
class _Checked:
    """One file while it is being checked."""

    path: bytes
    text: str

    def config(self, tables: dict[str, object]) -> LayerConfig:
        """All of it."""
        keys = {key.name: key for key in KEYS}
        headers = {name.partition(".")[0] for name in keys if "." in name}
        fields: dict[str, Any] = {}
        for name, value in tables.items():
            if name in headers and isinstance(value, dict):
                for inner, one in value.items():
                    self._take(keys, f"{name}.{inner}", one, fields)
            else:
                self._take(keys, name, value, fields)
        return LayerConfig(path=self.path, **fields)

    def _take(self, keys: dict[str, Key], name: str, value: object, fields: dict[str, Any]) -> None:
        key = keys.get(name)
        if key is None:
            self._unknown(keys, name)
        try:
            fields[key.field] = key.kind.read(value)
        except ValueError as error:
            self._bad(name, f"{name!r} {error}", f"'{name}' is {key.kind.words}, such as: {name} = {key.example}")

    def _unknown(self, keys: dict[str, Key], name: str) -> NoReturn:
        table, _, last = name.rpartition(".")
        if table and last in keys:
            what = f"{last!r} stands in the table [{table}]: it goes above the first [table]"
            self._bad(name, what, "move the line up")
        meant = _OTHER_NAMES.get(name.replace("_", "-").lower())
        close = [meant] if meant else difflib.get_close_matches(name.replace("_", "-").lower(), keys, 1)
        shown = printable(name[:80].encode("utf-8", "surrogateescape"))
        mean = f": did you mean '{close[0]}'?" if close else ""
        hint = "the keys are: " + ", ".join(keys)
        self._bad(name, f"there is no key '{shown}'{mean}", None if close else hint)

    def _bad(self, name: str, what: str, hint: str | None) -> NoReturn:
        line = _line_of(self.text, name)
        raise ConfigError(f"line {line}: {what}" if line else what, path=self.path, hint=hint)


def _line_of(text: str, name: str) -> int | None:
    """On which line a key is set, as far as that shows without parsing once more; None: it does not."""
    table, _, last = name.rpartition(".")
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*[\"']?([^]\"']+?)[\"']?\s*\]", line)
        if header and "=" not in line[: header.end()]:
            current = header[1]
            if current == name:
                return number
        elif current == table and re.match(rf"\s*([\"']?){re.escape(last)}\1\s*[=.]", line):
            return number
    return None


def _read(path: bytes) -> bytes:
    real = os.path.realpath(path)
    try:
        fd = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check(os.fstat(fd), real, path)
            with open(fd, "rb", closefd=False) as stream:
                return stream.read(CONFIG_SIZE_MAX + 1)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise ConfigError("there is no such file", path=path, hint="mkmeta init writes one") from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {reason(error)}", path=path) from None


def _check(status: os.stat_result, real: bytes, path: bytes) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError("is not a regular file", path=path)
    found = who_else_may_write(status, real)
    if found is not None:
        where, why = found
        raise ConfigError(
            f"{printable(where)} {why}: whoever may write the file decides what is scanned and mounted",
            path=path,
            hint="it and the directories above it must be for root alone to write to, or for who runs this",
        )


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
