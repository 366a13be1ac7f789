"""Files of a store as an enemy, a broken disk or another program leaves them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

VALUES: Final[list[object]] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2**53,
        2**64,
        10**400,
        1.0,
        -0.0,
        1e308,
        "",
        "\0",
        "x",
        "/",
        "//",
        ".",
        "..",
        "a/../b",
    ),
    *(
        "/../../etc",
        "a\nb",
        "\u2028",
        "\ud800",
        "\x1b[31m",
        "a" * 256,
        "/" + "a" * 5000,
        "/a" * 2000,
        "0" * 64,
        "f" * 63,
    ),
    *("9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "0000-00-00T00:00:00Z", "2026-01-01T00:00:00+99:99", "yes"),
    *([], {}, [[]], {"a": 1}, ["a"] * 10),
]
_TEXTS: Final[list[bytes]] = [
    *(
        b"",
        b"\0",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"x"',
        b"{}",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"NaN",
        b'{"a": Infinity}',
    ),
    *(b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b'{"format": "mkmeta-store", "version": 99}', b" " * 70_000),
    *(b'{"version": 1, "version": 1}', b'{"format": 5, "version": 1}', b'{"\\ud800": 1, "\\ud800": 1}'),
]


def _nothing(path: Path) -> None:
    path.unlink()


def _directory(path: Path) -> None:
    path.unlink()
    (path / "in it").mkdir(parents=True)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return make


PLACES: Final[list[Callable[[Path], None]]] = [
    *(
        _nothing,
        _directory,
        _fifo,
        _link("."),
        _link(".."),
        _link("/dev/zero"),
        _link("/dev/null"),
        _link("/proc/self/mem"),
    ),
    _link("/dev/full"),
]


def spoil(path: Path, chance: random.Random) -> str:
    """Makes a record, or a manifest, one of these; returns what was done, for the message of a failing test."""
    is_record = path.suffix != ".mkm"
    record = json.loads(path.read_bytes()) if is_record else {}
    match chance.randrange(8) if is_record else chance.randrange(4):
        case 0:
            how = chance.choice(PLACES)
            how(path)
            return f"{how.__qualname__}"
        case 1:
            path.write_bytes(chance.choice(_TEXTS))
        case 2:
            data = bytearray(path.read_bytes())
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            path.write_bytes(data)
        case 3:
            path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])
        case 4:
            del record[chance.choice(list(record))]
            path.write_text(json.dumps(record))
        case _:
            for _ in range(chance.choice([1, 1, 1, 2])):
                record[chance.choice([*record, "root_b64", "redirect_prefix_b64", "manifest_b64"])] = chance.choice(
                    VALUES
                )
            path.write_text(json.dumps(record))
    return os.fsdecode(path.read_bytes()[:300])
