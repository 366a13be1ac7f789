"""Checks in a process of their own, with a deadline: a server that does not answer must not hang the doctor.

System calls on a hard NFS mount wait for ever, but not in a process that was killed (nfs(5), "intr").
"""

from __future__ import annotations

import os
import pickle
import select
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Final

from mkmeta.host.finding import Check, Finding, failure, findings_of
from mkmeta.linux.process import end_child, fork_with_pipe

SECONDS: Final = 30.0  # for all checks of one call: hundreds of requests on a slow line take less
_GRACE: Final = 0.5  # seconds to die in
_SIZE = struct.Struct("=I")  # of the message that follows


def bounded(checks: Sequence[Check], seconds: float = SECONDS) -> Iterator[Finding]:
    """What checks find, one after the other; ends after `seconds`, and says which check had not."""
    child, reader = fork_with_pipe(lambda writer: _run(checks, writer))
    ended = False
    current = checks[0].id
    try:
        for message in _messages(reader, time.monotonic() + seconds):
            if isinstance(message, Finding):
                yield message
            elif message is None:
                ended = True
            else:
                current = str(message)
    except TimeoutError:
        ended = True
        yield failure(
            current,
            f"no answer within {seconds:g} s",
            "see whether the server is up and reachable, and `dmesg`; the checks after this one were not made",
        )
    finally:
        os.close(reader)
        end_child(child, _GRACE)
    if not ended:
        yield failure(
            current, "the check died", "that is a bug in mkmeta, or the kernel ran out of memory: see `dmesg`"
        )


def _messages(reader: int, deadline: float) -> Iterator[object]:
    """What the child sends, until it closes its end. Raises TimeoutError."""
    buffer = b""
    while True:
        while len(buffer) >= _SIZE.size:
            end = _SIZE.size + _SIZE.unpack_from(buffer)[0]
            if len(buffer) < end:
                break
            yield pickle.loads(buffer[_SIZE.size : end])  # both ends are this program
            buffer = buffer[end:]
        if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        if not (received := os.read(reader, 65536)):
            return
        buffer += received


def _run(checks: Sequence[Check], writer: int) -> None:
    """In the child: sends the identifier of each check, and what it finds; None at the end."""
    for check in checks:
        _send(writer, check.id)
        for finding in findings_of(check):
            _send(writer, finding)
    _send(writer, None)


def _send(writer: int, message: object) -> None:
    data = pickle.dumps(message)
    data = _SIZE.pack(len(data)) + data
    while data:
        data = data[os.write(writer, data) :]
