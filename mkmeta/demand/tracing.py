"""Runs one program under strace(1), which needs no rights, and counts what it asks for: formats/profile.md, `strace`.

A call that looks up a name takes some 50 microseconds longer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from mkmeta.demand.importers.strace import StraceImporter
from mkmeta.demand.tally import Tally
from mkmeta.errors import MkmetaError, reason

# All that takes a path, what changes what a relative one means, and what makes processes (`?`: where there is such)
_CALLS = "trace=%file,fchdir,?clone,?clone3,?fork,?vfork"


def trace(tally: Tally, command: Sequence[bytes]) -> int:
    """Runs a command, counts, and returns its exit code (128 plus the signal that ended it).

    Raises MkmetaError when there is no strace, or it cannot run the command.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise MkmetaError("there is no strace here", hint="install the package strace, or observe without a COMMAND")
    reading, writing = os.pipe()
    words = [strace, "-f", "-y", "-qq", "-e", _CALLS, "-e", "signal=none", "-o", f"/proc/self/fd/{writing}", "--"]
    with os.fdopen(reading, "rb", buffering=1 << 20) as stream:
        try:
            process = subprocess.Popen([*words, *command], pass_fds=(writing,))
        except OSError as error:
            raise MkmetaError(reason(error), path=os.fsencode(strace)) from None
        finally:
            os.close(writing)
        try:
            StraceImporter(tally, os.getcwdb()).read(stream)
            code = process.wait()
        except BaseException:
            process.terminate()  # strace ends what it started with it
            process.wait()
            raise
    return 128 - code if code < 0 else code
