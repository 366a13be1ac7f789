"""What an ELF file says of the libraries it needs (gABI 4.1; elf.h): DT_NEEDED, DT_RPATH, DT_RUNPATH, the interpreter.

The file is anybody's. Of any bytes, this gives what they say or None; it reads at most five MiB of them.
"""

from __future__ import annotations

import os
import struct
from typing import Final, NamedTuple

_HEAD: Final = 64  # bytes of an Elf64_Ehdr
_SEGMENTS_MAX: Final = 256
_DYNAMIC_MAX: Final = 256 << 10  # bytes; a few hundred entries are usual
_STRING_MAX: Final = 4096  # bytes of a list of directories
_NEEDED_MAX: Final = 1000
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NEEDED, DT_STRTAB, DT_RPATH, DT_RUNPATH = 1, 5, 15, 29


class Needs(NamedTuple):
    """What a program or library needs."""

    needed: tuple[bytes, ...]
    rpath: tuple[bytes, ...]  # not used where there is a runpath
    runpath: tuple[bytes, ...]


class _Form(NamedTuple):
    """Where things are, by class."""

    header: struct.Struct  # phoff, phentsize, phnum, from the beginning
    segment: struct.Struct
    fields: tuple[int, int, int, int]  # places of type, offset, vaddr, filesz in a segment
    dynamic: struct.Struct


def needs(fd: int) -> Needs | None:
    """What an open file needs; None when it is no ELF file with dynamic linking, or a damaged one. Raises OSError."""
    head = os.pread(fd, _HEAD, 0)
    if len(head) < 52 or head[:4] != b"\x7fELF" or head[4] not in (1, 2) or head[5] not in (1, 2):
        return None
    form = _form(wide=head[4] == 2, order="<" if head[5] == 1 else ">")
    if len(head) < form.header.size:
        return None
    at, size, count = form.header.unpack_from(head)
    if size != form.segment.size or not 0 < count <= _SEGMENTS_MAX:
        return None
    table = _read(fd, at, size * count)
    segments = [form.segment.unpack_from(table, n) for n in range(0, len(table) - size + 1, size)]
    kind, offset, address, length = form.fields
    loads = [(one[address], one[offset], one[length]) for one in segments if one[kind] == PT_LOAD]
    for one in segments:
        if one[kind] == PT_DYNAMIC:
            return _needs(fd, form, loads, _read(fd, one[offset], min(one[length], _DYNAMIC_MAX)))
    return None


def _needs(fd: int, form: _Form, loads: list[tuple[int, int, int]], dynamic: bytes) -> Needs | None:
    entries: list[tuple[int, int]] = []
    for at in range(0, len(dynamic) - form.dynamic.size + 1, form.dynamic.size):
        tag, value = form.dynamic.unpack_from(dynamic, at)
        if tag == 0:
            break
        entries.append((tag, value))
    tables = [value for tag, value in entries if tag == DT_STRTAB]
    if len(tables) != 1:
        return None
    places = [tables[0] - address + offset for address, offset, size in loads if address <= tables[0] < address + size]
    if not places:
        return None

    def string(at: int) -> bytes:
        return _read(fd, places[0] + at, _STRING_MAX).partition(b"\0")[0]

    def directories(tag: int) -> tuple[bytes, ...]:
        found = [value for known, value in entries if known == tag][:1]
        return tuple(name for at in found for name in string(at).split(b":") if name)

    needed = [value for tag, value in entries if tag == DT_NEEDED][:_NEEDED_MAX]
    return Needs(tuple(name for name in map(string, needed) if name), directories(DT_RPATH), directories(DT_RUNPATH))


def _read(fd: int, at: int, size: int) -> bytes:
    return os.pread(fd, size, at) if 0 <= at < 2**62 else b""


def _form(*, wide: bool, order: str) -> _Form:
    if wide:
        header = struct.Struct(order + "32xQ14xHH")
        return _Form(header, struct.Struct(order + "IIQQQQQQ"), (0, 2, 3, 5), struct.Struct(order + "QQ"))
    header = struct.Struct(order + "28xI10xHH")
    return _Form(header, struct.Struct(order + "IIIIIIII"), (0, 1, 2, 4), struct.Struct(order + "II"))
