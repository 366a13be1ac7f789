"""Names are bytes: nobody lists a directory in a way that decodes them with loss."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "mkmeta"
CALL = re.compile(r"os\.(?:listdir|scandir|walk|fwalk)\(([^()]*(?:\([^()]*\))?[^()]*)\)")
# Where what is listed is given as bytes, or through `mkmeta.linux.names`, or only whether there is anything is asked
FINE = {
    "linux/names.py": {"fd", 'b"/proc/self/fd/%d" % fd'},
    "linux/namespaces.py": {"fd", "self.fd"},  # of /proc: numbers and words
    "sinks/directory/staging.py": {"fd"},  # is it empty?
}


def test_directories_are_listed_as_bytes() -> None:
    doubtful = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        for argument in CALL.findall(path.read_text()):
            if "listable(" in argument or argument in FINE.get(name, ()):
                continue
            if re.fullmatch(r"(?:self\.|\w+\.)?(?:fd|\w+_fd)", argument):  # a descriptor: names would be text
                doubtful.append((name, argument))
    assert doubtful == []


def test_no_text_comes_from_a_listing_in_another_encoding(tmp_path: Path) -> None:
    """As a library, where nobody has started Python in UTF-8: each name is what it is."""
    names = [b"\xa1\xfe", b"\xa2A", b"\xff", "\u65e5".encode(), b"plain"]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    script = f"""if True:
        import os, sys
        sys.stdout.reconfigure(encoding="ascii")
        from mkmeta.linux.names import list_names
        print(sys.getfilesystemencoding(), sorted(list_names(os.open({str(tmp_path)!r}, os.O_RDONLY))))
    """
    for environment in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "C.UTF-8"}):
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
        encoding, _, listed = done.stdout.decode().strip().partition(" ")
        assert listed == repr(sorted(names)), encoding
