"""Entry point of the command line: signals and foreseen errors become one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from mkmeta.cli.output import report_error
from mkmeta.cli.parser import make_parser
from mkmeta.errors import ExitCode, MkmetaError, reason


class _Terminated(BaseException):
    """SIGTERM or SIGHUP: unwinds like an interrupt, so that what was begun is removed."""

    def __init__(self, number: int) -> None:
        self.number = number


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code. A traceback from here is a bug."""
    try:
        args = make_parser(argv).parse_args(argv)
    except MkmetaError as error:  # in the file that --config names
        report_error(error, as_json="--json" in (sys.argv if argv is None else argv))
        return int(error.exit_code)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except MkmetaError as error:
        report_error(error, as_json=args.json)
        return int(error.exit_code)
    except BrokenPipeError:
        # The reader of our output is gone; nobody wants to hear of it, and the exit's flush must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.FAILED)
    except OSError as error:
        path = os.fsencode(error.filename) if isinstance(error.filename, str | bytes) else None
        report_error(MkmetaError(reason(error), path=path), as_json=args.json)
        return int(ExitCode.FAILED)
    except KeyboardInterrupt:
        report_error(MkmetaError("interrupted"), as_json=args.json)
        return int(ExitCode.INTERRUPTED)
    except _Terminated as stop:
        report_error(MkmetaError(f"ended by {signal.Signals(stop.number).name}"), as_json=args.json)
        return 128 + stop.number
    return code


def console_script() -> int:
    """`main` for a process of its own: also turns termination signals into an orderly end."""

    def terminate(number: int, _frame: FrameType | None) -> None:
        raise _Terminated(number)

    try:
        signal.signal(signal.SIGTERM, terminate)
        signal.signal(signal.SIGHUP, terminate)
        code = main()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to be put in order
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    except _Terminated as stop:  # before `main` had begun to listen, or after it had ended
        return 128 + stop.number
    return code


if __name__ == "__main__":
    sys.exit(console_script())
