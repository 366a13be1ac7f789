"""Checks in a process of their own, with a deadline: a server that does not answer must not hang the doctor.

System calls on a hard NFS mount wait for ever, but not in a process that was killed (nfs(5), "intr").
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from typing import Final

from mkmeta.host.finding import Check, Finding, failure, findings_of
from mkmeta.linux.asking import Child, NoAnswerError, send

SECONDS: Final = 30.0  # for all checks of one call: hundreds of requests on a slow line take less
_GRACE: Final = 0.5  # seconds to die in


def bounded(checks: Sequence[Check], seconds: float = SECONDS) -> Iterator[Finding]:
    """What checks find, one after the other; ends after `seconds`, and says which check had not."""
    child = Child(lambda end: _run(checks, end), keep=(2,))
    deadline = time.monotonic() + seconds
    current = checks[0].id
    try:
        while (message := child.receive(deadline)) is not None:
            if isinstance(message, Finding):
                yield message
            else:
                current = str(message)
    except NoAnswerError:
        yield failure(
            current,
            f"no answer within {seconds:g} s",
            "see whether the server is up and reachable, and `dmesg`; the checks after this one were not made",
        )
    except EOFError:
        yield failure(
            current, "the check died", "that is a bug in mkmeta, or the kernel ran out of memory: see `dmesg`"
        )
    finally:
        child.end(_GRACE)


def _run(checks: Sequence[Check], end: socket.socket) -> None:
    """In the child: sends the identifier of each check, and what it finds; None at the end."""
    for check in checks:
        send(end, check.id)
        for finding in findings_of(check):
            send(end, finding)
    send(end, None)
