"""Invariant 1 when any call of the kernel's fails, once or always, wherever it is: left out and said, or exact."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from mkmeta.model import DigestName, Directory, DirectoryKind, path_within
from mkmeta.scanner import directory, looking
from tests.scanner.helpers import Scanned, scan_tree

pytestmark = pytest.mark.needs("user xattrs")
GONE: Final = (errno.ENOENT, errno.ESTALE)  # what it is about changed, and is looked at once more
BROKEN: Final = (errno.EIO, errno.EACCES)
FILES: Final = ("lib/a", "lib/deep/b", "z")
# Where each call is made that the scanner makes of what is in a subtree
CALLS: Final[dict[str, tuple[object, tuple[str, ...]]]] = {
    "lstat": (os, (*FILES, "lib/link", "lib/deep")),
    "listxattr": (os, (*FILES, "lib/link", "lib/.", "lib/deep/.")),
    "getxattr": (os, (*FILES, "lib/.", "lib/deep/.")),
    "readlink": (os, ("lib/link",)),
    "fstat": (os, FILES),
    "fchdir": (os, ("lib", "lib/deep")),
    "list_names": (looking, ("lib", "lib/deep")),
    "open_beneath": (directory, ("lib", "lib/deep")),
    "open_content": (looking, FILES),
}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Two releases alike; whatever fails, fails in `bad`."""
    root = tmp_path / "volume"
    for release in ("bad", "good"):
        (root / release / "lib/deep").mkdir(parents=True)
        for name in FILES:
            (root / release / name).write_text(f"{release} {name}")
        (root / release / "lib/link").symlink_to("a")
        for name in (*FILES, "lib", "lib/deep"):
            os.setxattr(root / release / name, "user.note", b"yes")
    return root


class Fault:
    """A call that fails so many times, or always, where it is about one path: in any process."""

    def __init__(self, real: Callable[..., Any], root: Path, path: str, number: int, times: int, log: Path) -> None:
        self._real = real
        self._root = os.fsencode(root)
        self._path = os.fsencode(path)
        self._number = number
        self._times = times
        self._log = log
        log.write_bytes(b"")

    def __call__(self, what: bytes | int, *args: Any, **more: Any) -> Any:
        if self._is_about(what) and self.met < self._times:
            with self._log.open("ab") as log:
                log.write(b"x")
            raise OSError(self._number, os.strerror(self._number), what)
        return self._real(what, *args, **more)

    @property
    def met(self) -> int:
        return self._log.stat().st_size

    def _is_about(self, what: bytes | int) -> bool:
        wanted = self._root + b"/" + self._path
        if isinstance(what, int):
            return os.readlink(b"/proc/self/fd/%d" % what) == wanted
        if type(what) is not bytes or what.startswith(b"/"):
            return False
        here = os.getcwdb()
        return here + b"/" + what == wanted or (here != self._root and what == self._path)


def check_nothing_is_hidden(scanned: Scanned, whole: dict[bytes, Any]) -> None:
    nodes, left_out = scanned.nodes(), scanned.left_out()
    assert set(left_out) <= {b"bad"}
    missing = whole.keys() - nodes.keys()
    assert missing == {path for path in whole if any(path_within(path, top) for top in left_out)}
    for path, node in nodes.items():
        if isinstance(node, Directory):
            assert node.kind is DirectoryKind.OPAQUE
        assert node == whole[path]


@pytest.mark.parametrize("times", [1, 99])
@pytest.mark.parametrize("call", CALLS)
def test_what_is_not_exact_is_left_out(volume: Path, monkeypatch: pytest.MonkeyPatch, call: str, times: int) -> None:
    where, names = CALLS[call]
    real = getattr(where, call)
    whole = scan_tree(volume).nodes()
    rng = random.Random(call)
    for number in (rng.choice(GONE), rng.choice(BROKEN)):
        fault = Fault(real, volume, f"bad/{rng.choice(names)}", number, times, volume.parent / "log")
        with monkeypatch.context() as patch:
            patch.setattr(where, call, fault)
            options = {"open_content": fault} if call == "open_content" else {}
            scanned = scan_tree(volume, **options)
        assert fault.met, "the call is made there"
        check_nothing_is_hidden(scanned, whole)
        if number in GONE and times == 1:
            assert not scanned.left_out()
        if times > 1:
            said = "changed while it was read, twice" if number in GONE else os.strerror(number).lower()
            assert said in scanned.left_out()[b"bad"]


@pytest.mark.parametrize("digests", [(), (DigestName.BLAKE3,)])
def test_no_descriptor_is_kept(volume: Path, digests: tuple[DigestName, ...]) -> None:
    """More directories and files than a process may have open: one of its own, which has no other descriptors."""
    for number in range(2 * SPARE):
        (volume / f"many/{number}").mkdir(parents=True)
        (volume / f"many/{number}/file").write_text("content")
    command = [sys.executable, "-c", WITH_FEW_DESCRIPTORS, str(volume), str(SPARE), *digests]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr


SPARE: Final = 100  # descriptors that may be open
WITH_FEW_DESCRIPTORS = """
import resource, sys
from pathlib import Path
from mkmeta.model import DigestName
from mkmeta.scanner import worker
from tests.scanner.helpers import scan_tree

worker.LANES_MAX = 1  # each has some of its own
volume, spare, *digests = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(spare), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
scanned = scan_tree(Path(volume), digests=tuple(map(DigestName, digests)))
assert not scanned.left_out() and scanned.report.counts.files >= 2 * int(spare), (scanned.left_out(), scanned.report)
"""
