"""Events of names that come and go: what the kernel tells, and what it could never tell."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest

from mkmeta.linux.descriptors import closing
from mkmeta.linux.fanotify import NameEvents, parse_events
from mkmeta.linux.handles import Handle, open_by_handle
from mkmeta.linux.mount import umount2
from tests.conftest import Mount

METADATA, INFO, HANDLE = "=IBxHQii", "=BxHii", "=Ii"  # the module has the table
CREATE, MOVED_TO, ONDIR, OVERFLOW = 0x100, 0x80, 0x40000000, 0x4000


def test_sizes_are_those_of_the_table() -> None:
    assert [struct.calcsize(one) for one in (METADATA, INFO, INFO + "Ii")] == [24, 12, 20]


def event(mask: int, handle: bytes = b"", before: bytes = b"") -> bytes:
    """As the kernel writes one; `before` is a record that comes first."""
    record = struct.pack(HANDLE, len(handle), 7) + handle
    record += bytes(-len(record) % 4)
    info = before + struct.pack(INFO, 3, struct.calcsize(INFO) + len(record), 1, 2) + record if handle else b""
    size = struct.calcsize(METADATA)
    return struct.pack(METADATA, size + len(info), 3, size, mask, -1, 4711) + info


def test_events_are_read_as_they_are_written() -> None:
    other = struct.pack("=BxHi", 4, 8, 0)  # a record of another kind, FAN_EVENT_INFO_TYPE_PIDFD
    data = (
        event(CREATE, b"abcde")
        + event(OVERFLOW)
        + event(MOVED_TO | ONDIR, b"x" * 128, before=other)
        + event(MOVED_TO, b"f")
    )
    assert parse_events(data) == [
        (Handle(7, b"abcde"), False),
        (None, False),
        (Handle(7, b"x" * 128), True),
        (Handle(7, b"f"), False),
    ]
    assert parse_events(b"") == []


def test_what_no_kernel_says_is_an_error() -> None:
    """Cut off anywhere, or with any byte another: events, or EBADMSG; never anything else."""
    data = event(CREATE, b"handle") + event(MOVED_TO | ONDIR, b"another handle")
    chance = random.Random(3)
    refused = 0
    for number in range(3000):
        hostile = bytearray(data)
        for _ in range(chance.randrange(1, 4)):
            hostile[chance.randrange(len(data))] = chance.choice((0, 1, 255, chance.randrange(256)))
        given = bytes(hostile) if number % 2 else data[: chance.randrange(1, len(data))]
        try:
            assert len(parse_events(given)) <= 3
        except OSError as error:
            assert error.errno == errno.EBADMSG
            refused += 1
    assert refused > 1000
    with pytest.raises(OSError, match="cannot be read"):
        parse_events(event(CREATE))


@pytest.mark.needs("root")
def test_one_event_for_each_directory_however_many_names(mount: Mount) -> None:
    top = os.fsencode(mount("tmpfs"))
    names = [b"plain", b"line\nbreak", b"\xff\xfe", b"gone (deleted)", b"d" * 255]
    with closing(os.open(top, os.O_RDONLY)) as fd, contextlib.closing(NameEvents(fd)) as events:
        for name in names:
            os.mkdir(os.path.join(top, name))
        deep = os.path.join(top, names[1], names[2])
        os.mkdir(deep)
        for number in range(20_000):  # more than the queue holds events
            os.close(os.open(os.path.join(deep, b"%d" % number), os.O_CREAT | os.O_WRONLY))
        os.rename(os.path.join(top, names[0]), os.path.join(deep, names[3]))
        found, lost = events.read()
        assert not lost
        paths = {}
        for handle, moved in found.items():
            with closing(open_by_handle(fd, handle)) as there:
                paths[os.readlink(b"/proc/self/fd/%d" % there)] = moved
        assert paths == {top: False, os.path.join(top, names[1]): False, deep: True}
        assert events.read() == ({}, False)


@pytest.mark.needs("root")
def test_what_is_lost_is_said(mount: Mount) -> None:
    top = mount("tmpfs")
    limit = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip(f"fs.fanotify.max_queued_events is {limit:,} here: too many directories for a test")
    with closing(os.open(top, os.O_RDONLY)) as fd, contextlib.closing(NameEvents(fd)) as events:
        for number in range(limit + 1):
            os.mkdir(top / f"{number}")
            os.mkdir(top / f"{number}/x")
        found, lost = events.read()
        assert lost
        assert len(found) <= limit
        os.mkdir(top / "one more")
        assert [lost for _, lost in [events.read()]] == [False], "it goes on hearing"


@pytest.mark.needs("root")
def test_listening_does_not_keep_a_filesystem_mounted(mount: Mount) -> None:
    top = mount("tmpfs")
    with closing(os.open(top, os.O_RDONLY)) as fd:
        events = NameEvents(fd)
    with contextlib.closing(events):
        assert events.is_marked()
        umount2(os.fsencode(top), 0)
        assert not events.is_marked()
        assert events.read() == ({}, False)
        subprocess.run(["mount", "-t", "tmpfs", "again", top], check=True)  # which the fixture will unmount
        assert not events.is_marked(), "another filesystem"


def test_who_may_not_is_told_so(tmp_path: Path) -> None:
    """No rights, or no such thing on this filesystem: an OSError with the kernel's reason; no descriptor is left."""
    before = len(os.listdir("/proc/self/fd"))
    with closing(os.open("/proc", os.O_RDONLY)) as fd, pytest.raises(OSError, match=r"^\[Errno \d+\] ") as found:
        NameEvents(fd)
    assert found.value.errno in (errno.EPERM, errno.ENODEV, errno.EOPNOTSUPP, errno.EINVAL)
    assert len(os.listdir("/proc/self/fd")) == before
