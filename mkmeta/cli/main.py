"""Runs a command line: foreseen errors and signals become one line and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence

from mkmeta.cli import streams
from mkmeta.cli.output import begin, report_error
from mkmeta.cli.parser import VERBS, make_parser
from mkmeta.errors import InterruptedByUser, MkmetaError, TerminatedError, reason

_ONLY_TELL = frozenset({"show", "ls", "dump", "explain"})  # verbs that do nothing but print


class Terminated(BaseException):
    """SIGTERM or SIGHUP: unwinds like an interrupt, so that what was begun is removed."""

    def __init__(self, number: int) -> None:
        self.number = number


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code. A traceback from here is a bug.

    A reader that is gone (`| head -1`) is no error to speak of: the code is then that of SIGPIPE, which ends others.
    """
    given = sys.argv[1:] if argv is None else argv
    verb = given[0] if given and given[0] in VERBS else None
    begin(verb, as_json="--json" in given)
    try:
        try:
            code = _run(given, verb)
        except SystemExit:  # --help, --version
            sys.stdout.flush()
            raise
        except MkmetaError as error:
            code = report_error(error)
        except KeyboardInterrupt:
            code = report_error(InterruptedByUser("interrupted"))
        except Terminated as stop:
            code = report_error(TerminatedError(stop.number))
        sys.stdout.flush()
    except BrokenPipeError as error:
        if error.filename != streams.STDOUT:
            return report_error(_foreseen(error))
        _give_up_stdout()
        return 128 + signal.SIGPIPE
    except OSError as error:
        _give_up_stdout()
        return report_error(_foreseen(error))
    return code


def _give_up_stdout() -> None:
    """What is still to be written to it goes nowhere, and so causes no further error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run(argv: Sequence[str], verb: str | None) -> int:
    args = make_parser(argv).parse_args(argv)
    if verb in _ONLY_TELL and streams.is_closed(1):
        raise MkmetaError(
            "is closed, and there is nothing else to do than to write to it", path=streams.STDOUT.encode()
        )
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except OSError as error:
        if error.filename == streams.STDOUT:
            raise
        return report_error(_foreseen(error))
    return code


def _foreseen(error: OSError) -> MkmetaError:
    path = os.fsencode(error.filename) if isinstance(error.filename, str | bytes) else None
    if path is None and error.errno == errno.ENOENT and not _is_somewhere():
        return MkmetaError("the working directory is gone", hint="call it from another one")
    return MkmetaError(reason(error), path=path)


def _is_somewhere() -> bool:
    """Whether the working directory has a name still."""
    try:
        os.getcwdb()
    except FileNotFoundError:
        return False
    return True
