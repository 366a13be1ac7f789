"""What a process has freed it does not keep."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_HELD = """
import sys
from mkmeta.linux.memory import give_back_large_buffers

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "give back":
    give_back_large_buffers()
del sys.argv[:]
bytearray(16 << 20)  # freed at once: to glibc a sign that more such are to come
before = resident()
large, small = [], []
for _ in range(64):
    large.append(bytearray(b"x") * (1 << 20))
    small.append(bytearray(b"x") * 1000)  # behind it, and staying there
del large
print(resident() - before)
"""


def _held(how: str) -> int:
    call = [sys.executable, "-c", _HELD, how]
    return int(subprocess.run(call, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the habit is that of glibc")
def test_large_buffers_go_back() -> None:
    assert _held("keep") > 48 << 20, "glibc has lost the habit: the cure can go"
    assert _held("give back") < 8 << 20
