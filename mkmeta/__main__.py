"""Entry point of the command line. What it needs is imported when signals do no harm any more."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # what `typing` would say, whose import takes longer than all of this
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line in this process and returns its exit code (`mkmeta.cli.main`)."""
    from mkmeta.cli.main import main as run

    return run(argv)


def console_script() -> int:
    """`main` for a process of its own: sets up streams, and turns signals that end it into an orderly end.

    Those that whoever started it ignores stay ignored (`nohup`, `&` in sh), but for SIGCHLD: it waits for children.
    """
    ends = [number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if not _is_ignored(number)]
    if signal.SIGINT in ends:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing yet to be put in order
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    from mkmeta.cli.restart import restart_apart

    restart_apart()
    from mkmeta.cli.streams import set_up

    set_up()
    from mkmeta.cli.main import Terminated

    def terminate(number: int, _frame: FrameType | None) -> None:
        raise Terminated(number)

    code = 128
    try:
        try:
            for number in ends:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else terminate)
            code = main()
        finally:  # nothing is left to be put in order
            for number in ends:
                signal.signal(number, signal.SIG_DFL)
    except Terminated as stop:  # before `main` had begun to listen, or after it had ended
        code = 128 + stop.number
    except KeyboardInterrupt:  # likewise, or once more while the first was put in order
        code = 128 + signal.SIGINT
    if code == 128 + signal.SIGPIPE:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    return code


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


if __name__ == "__main__":
    sys.exit(console_script())
