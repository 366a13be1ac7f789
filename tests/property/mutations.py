"""Damages manifests and feeds them to the reader. As a program, in a process of its own with little memory:

    python -m tests.property.mutations SEED COUNT FILE...

makes COUNT mutations of each file, prints how many were accepted and refused, and fails on anything else. Bytes are
changed in the file itself, where digests catch most, and in the decompressed objects, with all digests above made true.
"""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import sys
import tempfile
from pathlib import Path

import zstandard

from mkmeta.codec.container import FOOTER, FRAME_ROW, OBJECT_ROW
from mkmeta.digest import ObjectId, ObjectKind
from mkmeta.errors import FormatError
from mkmeta.manifest.check import check
from mkmeta.manifest.reader import ManifestReader
from tests.vectors.assemble import Parts, compress

MEMORY = 768 << 20  # bytes of address space: Python and its libraries take a quarter of it
SECONDS = 20  # for one mutation


def accepts(data: bytes) -> bool:
    """Whether a complete check finds nothing. Anything but FormatError gets through."""
    with tempfile.TemporaryFile() as stream:
        stream.write(data)
        stream.flush()
        fd = os.dup(stream.fileno())
        try:
            reader = ManifestReader(fd)
        except FormatError:
            os.close(fd)
            return False
        with reader:
            try:
                check(reader)
            except FormatError:
                return False
        return True


def mutate(data: bytes, dice: random.Random) -> bytes:
    """The data with one to three changes."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        at = dice.randrange(len(changed) + 1)
        match dice.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << dice.randrange(8)
            case 1:
                changed[at : at + 1] = dice.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\xdd", b"\x91"))
            case 2:
                del changed[at : at + dice.choice((1, 2, 16, 1000))]
            case 3:
                changed[at:at] = dice.randbytes(dice.choice((1, 4, 32)))
            case 4:
                changed[at : at + 4] = dice.choice((b"\xff" * 4, b"\0" * 4, (1 << 28).to_bytes(4, "little")))
            case _:
                start = dice.randrange(len(changed) + 1)
                changed[at : at + 32] = changed[start : start + 32]
    return bytes(changed)


class Taken:
    """A valid file taken apart, so that its objects can be changed and its digests made true again."""

    def __init__(self, data: bytes) -> None:
        footer = FOOTER.unpack(data[-FOOTER.size :])
        frame_table, frames, _, object_table, objects, self.root_id, *places = footer[:-1]
        rows = [FRAME_ROW.unpack_from(data, frame_table + number * FRAME_ROW.size) for number in range(frames)]
        self.frames = [zstandard.decompress(data[offset : offset + size]) for offset, size, _ in rows]
        self.info, self.facts = tuple(places[:3]), tuple(places[3:])
        self.objects: dict[bytes, bytes] = {}
        self.records = sorted({self.info[0], self.facts[0]} if self.facts[2] else {self.info[0]})
        starts = range(object_table, object_table + objects * OBJECT_ROW.size, OBJECT_ROW.size)
        self.rows = [list(OBJECT_ROW.unpack_from(data, start)) for start in starts]
        for name, frame, offset, length in self.rows:
            self.objects[name] = self.frames[frame][offset : offset + length]

    def with_object(self, victim: bytes, content: bytes) -> bytes:
        """The file with other bytes in one object, and new IDs in everything that refers to it."""
        objects = dict(self.objects)
        kinds = {name: _kind(name, bytes_) for name, bytes_ in objects.items()}
        renamed: dict[bytes, bytes] = {}
        objects[victim] = content
        pending = [victim]
        while pending:
            old = pending.pop()
            current = renamed.get(old, old)
            new = kinds[old].id_of(objects[old])
            renamed[old] = new
            for name, bytes_ in objects.items():
                if name != old and current in bytes_:
                    objects[name] = bytes_.replace(current, new)
                    pending.append(name)
        data = b""
        rows = []
        for name, bytes_ in objects.items():
            rows.append([renamed.get(name, name), len(self.frames), len(data), len(bytes_)])
            data += bytes_
        return self._file([*self.frames, data], sorted(rows), renamed.get(self.root_id, self.root_id))

    def with_record(self, frame: int, content: bytes) -> bytes:
        """The file with another frame of records."""
        frames = list(self.frames)
        frames[frame] = content
        return self._file(frames, self.rows, self.root_id)

    def _file(self, frames: list[bytes], rows: list[list[object]], root_id: bytes) -> bytes:
        parts = Parts(frames=[compress(frame) for frame in frames], sizes=[len(frame) for frame in frames])
        parts.object_rows = rows
        parts.footer = {"id": root_id, "info": self.info, "facts": self.facts}
        return parts.encode()


def _kind(name: bytes, data: bytes) -> ObjectKind:
    return next(kind for kind in ObjectKind if kind.id_of(data) == ObjectId(name))


def run(path: Path, dice: random.Random, count: int) -> tuple[int, int]:
    """Accepted and refused of `count` mutations of a file, a third of them of each sort."""
    data = path.read_bytes()
    taken = Taken(data)
    accepted = 0
    for number in range(count):
        match number % 3:
            case 0:
                mutant = mutate(data, dice)
            case 1:
                victim = dice.choice(sorted(taken.objects))
                mutant = taken.with_object(victim, mutate(taken.objects[victim], dice))
            case _:
                frame = dice.choice(taken.records)
                mutant = taken.with_record(frame, mutate(taken.frames[frame], dice))
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            accepted += accepts(mutant)
        except BaseException:
            Path(tempfile.gettempdir(), "mkmeta-fuzz-finding.mkm").write_bytes(mutant)
            raise
        faulthandler.cancel_dump_traceback_later()
    return accepted, count - accepted


def main(arguments: list[str]) -> None:
    """See the module."""
    seed, count, *files = arguments
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    dice = random.Random(int(seed))
    totals = [run(Path(file), dice, int(count)) for file in files]
    sys.stdout.write(f"{sum(one for one, _ in totals)} {sum(two for _, two in totals)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
