"""What a writer takes over from another manifest without looking into it is not believed until it is looked at."""

from __future__ import annotations

import contextlib
import io
import random

import pytest

from mkmeta.codec.container import FOOTER
from mkmeta.codec.info import Info
from mkmeta.digest import ObjectId, ObjectKind
from mkmeta.errors import FormatError
from mkmeta.manifest import object_file, writer
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import Directory, DirectoryKind, Root
from tests.manifest.opened import opened
from tests.property.mutations import Taken

INFO = Info(root=b"/mnt/sw", created=0, tool="mkmeta test")


def manifest_of(objects: list[bytes], root: Root, *, base: bytes = b"", unread: bool = True) -> bytes:
    """A file with so many objects, whatever they are, on top of those of a base."""
    stream = io.BytesIO()
    with contextlib.ExitStack() as stack:
        taking = stack.enter_context(ManifestWriter(stream))
        if base:
            taking.adopt(stack.enter_context(opened(base)), unread=unread)
        for data in objects:
            taking.add(ObjectKind.DIRECTORY, data)
        taking.finish(root, INFO, None)
    return stream.getvalue()


def damaged(data: bytes, victims: set[bytes]) -> bytes:
    """The file with other bytes in some objects, under the same IDs, in frames that are whole."""
    taken = Taken(data)
    for name, frame, offset, length in taken.rows:
        if name in victims:
            content = bytearray(taken.frames[frame])
            content[offset + length // 2] ^= 1
            taken.frames[frame] = bytes(content)
    return taken.with_record(0, taken.frames[0])


@pytest.mark.parametrize("seed", range(12))
def test_objects_that_are_added_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was damaged, all that is added is found, stored once; what is not added again stays what it was."""
    dice = random.Random(seed)
    monkeypatch.setattr(object_file, "_TABLE_ROWS", dice.choice((1, 2, 5, 128)))
    monkeypatch.setattr(writer, "FRAME_TARGET", dice.choice((50, 1000, 256 << 10)))
    monkeypatch.setattr(writer, "_RECENT_SLOTS", dice.choice((3, 1 << 16)))
    old = [dice.randbytes(dice.randrange(1, 60)) for _ in range(dice.randrange(200))]
    new = [dice.randbytes(dice.randrange(1, 60)) for _ in range(dice.randrange(60))]
    root = _root(dice)
    base = manifest_of(old, root)
    ids = {ObjectKind.DIRECTORY.id_of(data): data for data in old}
    victims = {name for name in ids if dice.random() < 0.3}
    base = damaged(base, set(victims))
    added = dice.sample(old, len(old) // 2) + new
    dice.shuffle(added)
    data = manifest_of([*added, *added[:5]], _root(dice), base=base)
    with opened(data) as reader:
        reader.file.check_tables()
        _ = reader.root
        names = [name for part in reader.file.table_parts() for name in object_file.ids_in(part)]
        assert len(names) == len(set(names)) == reader.file.objects
        for one in added:
            name = ObjectKind.DIRECTORY.id_of(one)
            assert reader.object_of(name, "") == one
            victims.discard(name)
        for name, content in ids.items():
            if name in victims:
                with pytest.raises(FormatError, match="damaged"):
                    reader.object_of(name, "")
            else:
                assert reader.object_of(name, "") == content


def test_what_is_whole_is_not_stored_again() -> None:
    objects = [bytes([number]) * 50 for number in range(100)]
    root = _root(random.Random(1))
    base = manifest_of(objects, root)
    frames = FOOTER.unpack(base[-FOOTER.size :])[1]
    again = manifest_of(objects, root, base=base)
    assert FOOTER.unpack(again[-FOOTER.size :])[1] == frames + 1  # that of the info record


def test_a_damaged_one_is_refused_where_it_is_not_read() -> None:
    objects = [bytes([number]) * 50 for number in range(100)]
    root = _root(random.Random(1))
    base = damaged(manifest_of(objects, root), {ObjectKind.DIRECTORY.id_of(objects[50])})
    with pytest.raises(FormatError, match="damaged"):
        manifest_of([], root, base=base, unread=False)


@pytest.mark.parametrize("unread", [True, False])
def test_a_table_that_does_not_ascend(unread: bool) -> None:
    taken = Taken(manifest_of([b"one", b"two", b"three"], _root(random.Random(1))))
    taken.rows.reverse()
    with pytest.raises(FormatError, match="not sorted"):
        manifest_of([], _root(random.Random(1)), base=taken.with_record(0, taken.frames[0]), unread=unread)


@pytest.mark.parametrize("rows", [1, 128])
def test_made_up_tables(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """IDs that are not spread evenly are found as well, in a number of steps that halving needs."""
    monkeypatch.setattr(object_file, "_TABLE_ROWS", rows)
    taken = Taken(manifest_of([b"one"], _root(random.Random(1))))
    made_up = [(1 << number).to_bytes(32, "big") for number in range(256)]
    taken.rows = sorted([*taken.rows, *([name, 0, 0, number] for number, name in enumerate(made_up))])
    with opened(taken.with_record(0, taken.frames[0])) as reader:
        looks = 0
        table_part = reader.file._table_part

        def look(number: int) -> bytes:
            nonlocal looks
            looks += 1
            return table_part(number)

        monkeypatch.setattr(reader.file, "_table_part", look)
        numbers = {row[0]: number for number, row in enumerate(taken.rows)}
        for name in made_up:
            looks = 0
            assert reader.file.object_number(ObjectId(name), "") == numbers[name]
            assert looks <= 8 + 9  # guesses, and halving 257
        with pytest.raises(FormatError, match="is not in the file"):
            reader.file.object_number(ObjectId((3).to_bytes(32, "big")), "")


def _root(dice: random.Random) -> Root:
    directory = Directory(
        mode=0o040755,
        uid=dice.randrange(1000),
        gid=0,
        mtime_ns=0,
        children=ObjectKind.DIRECTORY.id_of(b"\x90"),
        entries=0,
        kind=DirectoryKind.MERGE,
    )
    return Root(directory=directory, digests=(), links=None)
