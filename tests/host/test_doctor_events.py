"""What `mkmeta doctor` says of events: what `mkmeta watch` will say, and what is missing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mkmeta.host import event_checks
from mkmeta.host.event_checks import events
from mkmeta.publisher.hearing import Events, listen
from tests.conftest import Mount


@pytest.mark.needs("root")
def test_it_says_what_watch_will_do(mount: Mount) -> None:
    top = os.fsencode(mount("tmpfs"))
    hearing, how = listen(top, Events.AUTO)
    (finding,) = events(top, b"tmpfs")
    assert (finding.level == "ok") == (hearing is not None), (finding, how)
    if hearing is not None:
        hearing.close()
        assert how in finding.message.replace(" `watch`", "")


def test_nothing_of_what_others_change(tmp_path: Path) -> None:
    assert [finding for fstype in (b"nfs4", b"overlay", b"fuse.x") for finding in events(bytes(tmp_path), fstype)] == []


@pytest.mark.parametrize("number", [*event_checks._MISSING, errno.ENOMEM])
@pytest.mark.parametrize("call", ["NameEvents", "_check_handles"])
def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str) -> None:
    class Silent:
        def __init__(self, _fd: int) -> None: ...
        def close(self) -> None: ...

    def refuse(_fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(event_checks, "NameEvents", Silent)
    monkeypatch.setattr(event_checks, call, refuse)
    (finding,) = events(bytes(tmp_path), b"ext4")
    assert (finding.id, finding.level, finding.path) == ("lower-events", "note", bytes(tmp_path))
    assert finding.hint
    assert os.strerror(number)[1:] in finding.message


@pytest.mark.needs("root")
def test_without_the_capability_no_handle_is_opened(tmp_path: Path) -> None:
    """As the kernel has it: the check tells a process that may not from one that may."""
    fd = os.open(tmp_path, os.O_RDONLY)
    event_checks._check_handles(fd)
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        try:
            event_checks._check_handles(fd)
        except PermissionError:
            os._exit(7)
        os._exit(0)
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
