"""The small JSON files of a store and its pointer: written durably, read as if they came from an enemy.

Each is one object with `format` and `version`; readers ignore keys they do not know. Names are text, and once more in
base64 under the key with `_b64` when they are not UTF-8.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import errno
import json
import os
import re
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NoReturn, Self

from mkmeta.digest import DIGEST_SIZE, ObjectId, VerityDigest
from mkmeta.errors import StoreError, TooNewError, legible, reason
from mkmeta.linux.replacing import replacing
from mkmeta.model import NS

RECORD_SIZE_MAX: Final = 64 << 10  # bytes; FORMAT: a record holds two paths at most
PATH_SIZE_MAX: Final = 4095  # bytes; FORMAT: the kernel's PATH_MAX, less the NUL
NUMBER_MAX: Final = 2**53 - 1  # FORMAT: what every JSON reader takes for an exact integer
_VERSION = 1
_ATTEMPTS = 3  # at a file that is replaced, on NFS, between being found and being read
_ID = re.compile(rf"[0-9a-f]{{{2 * DIGEST_SIZE}}}")
_WORD = re.compile(r"[a-z]{1,32}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


def encode(kind: str, fields: dict[str, object]) -> bytes:
    """The bytes of a record."""
    return json.dumps({"format": kind, "version": _VERSION, **fields}).encode() + b"\n"


def utc_now() -> str:
    """The time, as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_file(name: bytes, data: bytes, *, dir_fd: int) -> None:
    """Makes or replaces a file, durably, mode 0644; only one process at a time may. Raises OSError.

    Killed, it leaves at most `.NAME`, which the next call removes.
    """
    temporary = b"." + name
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=dir_fd)
    with replacing(name, temporary, dir_fd=dir_fd) as stream:
        os.fchmod(stream.fileno(), 0o644)
        stream.write(data)


@dataclass(frozen=True)
class Record:
    """A record that was read; its methods return what the format allows under a key, or raise StoreError."""

    path: bytes
    fields: dict[str, object]
    hint: str  # what to do when it is damaged
    data: bytes = b""  # as it was read

    @classmethod
    def read(cls, path: bytes, kind: str, *, hint: str, follow: bool = True) -> Self:
        """Reads the record at `path`; without `follow`, no link there. Raises StoreError, and FileNotFoundError."""
        try:
            data = _read_file(path, 0 if follow else os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(error.errno, error.strerror, path) from None
        except OSError as error:
            raise StoreError(f"cannot be read: {reason(error)}", path=path) from None
        if data is None:
            cls(path, {}, hint).damaged("not a regular file")
        return cls.decode(data, kind, path=path, hint=hint)

    @classmethod
    def decode(cls, data: bytes, kind: str, *, path: bytes, hint: str) -> Self:
        """The record that bytes are; `path` says where they are from. Raises StoreError."""
        record = cls(path, {}, hint)
        if len(data) > RECORD_SIZE_MAX:
            record.damaged(f"more than {RECORD_SIZE_MAX} bytes")
        record = cls(path, record._parse(data), hint, data)
        record._check_format(kind)
        return record

    def damaged(self, what: str) -> NoReturn:
        """Raises StoreError."""
        raise StoreError(f"damaged: {what}", path=self.path, hint=self.hint)

    def integer(self, key: str, *, low: int = 1, high: int = NUMBER_MAX) -> int:
        """An integer in a range."""
        value = self.fields.get(key)
        if type(value) is not int or not low <= value <= high:
            self._bad(key, f"is not an integer from {low} to {high}")
        return value

    def flag(self, key: str) -> bool:
        """A boolean."""
        value = self.fields.get(key)
        if type(value) is not bool:
            self._bad(key, "is neither true nor false")
        return value

    def word(self, key: str, *, default: str) -> str:
        """A word of lower-case letters, or `default` when there is none."""
        value = self.fields.get(key, default)
        if not isinstance(value, str) or not _WORD.fullmatch(value):
            self._bad(key, "is not a word")
        return value

    def object_id(self, key: str) -> ObjectId:
        """A manifest ID."""
        value = self.fields.get(key)
        if not isinstance(value, str) or not _ID.fullmatch(value):
            self._bad(key, f"is not an ID of {2 * DIGEST_SIZE} hexadecimal digits")
        return ObjectId(bytes.fromhex(value))

    def verity_digest(self, key: str) -> VerityDigest:
        """An fs-verity digest."""
        value = self.fields.get(key)
        if not isinstance(value, str) or not _ID.fullmatch(value):
            self._bad(key, f"is not a digest of {2 * DIGEST_SIZE} hexadecimal digits")
        return VerityDigest(bytes.fromhex(value))

    def time(self, key: str) -> tuple[str, int]:
        """A time: as it stands there, and in ns since the epoch."""
        value = self.fields.get(key)
        if isinstance(value, str) and _TIME.fullmatch(value):
            with contextlib.suppress(ValueError):
                return value, int(datetime.datetime.fromisoformat(value).timestamp()) * NS
        self._bad(key, "is not a time like 2026-01-31T12:00:00Z")

    def path_of(self, key: str) -> bytes:
        """A name or path: at most 4,095 bytes, none of them NUL."""
        value = self.fields.get(f"{key}_b64", self.fields.get(key))
        found = b"\0"
        if isinstance(value, str):
            with contextlib.suppress(ValueError):  # lone surrogates, and what is not base64
                found = base64.b64decode(value, validate=True) if f"{key}_b64" in self.fields else value.encode()
        if b"\0" in found or len(found) > PATH_SIZE_MAX:
            self._bad(key, "is not a path")
        return found

    def _bad(self, key: str, what: str) -> NoReturn:
        self.damaged(f"'{key}' {what}" if key in self.fields else f"'{key}' is missing")

    def _parse(self, data: bytes) -> dict[str, object]:
        try:
            value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            self.damaged(f"not the JSON it should be: {legible(str(error))}")
        if type(value) is not dict:
            self.damaged("not a JSON object")
        return value

    def _check_format(self, kind: str) -> None:
        if self.fields.get("format") != kind:
            raise StoreError(f"is no {kind} file", path=self.path, hint=self.hint)
        version = self.integer("version")
        if version > _VERSION:
            raise TooNewError(
                f"has version {version} of its format, this mkmeta knows {_VERSION}",
                path=self.path,
                hint="use a newer mkmeta",
            )


def _read_file(path: bytes, flags: int) -> bytes | None:
    """Up to one byte more than allowed; None when it is no regular file."""
    for attempt in range(_ATTEMPTS):
        try:
            if not stat.S_ISREG(os.stat(path, follow_symlinks=not flags).st_mode):
                return None  # opening a device may do something
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | flags)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                return None
            with open(fd, "rb") as stream:
                return stream.read(RECORD_SIZE_MAX + 1)
        except OSError as error:
            if error.errno != errno.ESTALE or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError


def _unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:40]!r} occurs twice")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
