"""Runs the program anew where the environment, meant for other programs, would make this another one.

Only what Python has loaded before any program is needed here: a module of the same name may lie in PYTHONPATH.
"""

from __future__ import annotations

import _frozen_importlib_external
import os
import sys

_NEEDED = ("mkmeta", "msgpack", "zstandard", "blake3", "tqdm")


def restart_apart() -> None:
    """Begins again, as the same process, with options of Python's that put right what is wrong. Returns where nothing
    is, and where /proc does not tell the arguments.

    - Python decodes arguments and names by an encoding that loses some, such as Big5: in UTF-8.
    - PYTHONPATH has places where modules of users' programs, for another Python perhaps, would be taken for ours:
      without it, unless mkmeta or what it needs is found through it alone.
    - PYTHONINSPECT would have Python ask for commands at the end, and end with another exit code: without it.

    What mkmeta runs has the environment as it is.
    """
    odd_encoding = sys.getfilesystemencoding() != "utf-8"
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    disturbed = bool(places or os.environ.get("PYTHONINSPECT")) and not sys.flags.ignore_environment
    apart = disturbed and _is_found_without(places)
    if not (odd_encoding or apart):
        return
    try:
        with open("/proc/self/cmdline", "rb") as stream:
            program, *arguments = stream.read().split(b"\0")[:-1]
        options = [b"-X", b"utf8", *([b"-E"] if apart else [])]  # PYTHONUTF8 is not heard then
        os.execve(os.fsencode(sys.executable), [program, *options, *arguments], os.environb)
    except (OSError, ValueError):
        return


def _is_found_without(places: list[str]) -> bool:
    """Whether all that is needed is found where nobody's PYTHONPATH leads."""
    led = {os.path.abspath(place) for place in places}
    path = [place for place in sys.path if os.path.abspath(place) not in led]
    find = _frozen_importlib_external.PathFinder.find_spec
    return all(find(name, path) is not None for name in _NEEDED)
