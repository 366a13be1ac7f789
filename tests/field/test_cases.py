"""What users of neighbouring tools ran into, as scripts that lie beside a checkout: tried where they are.

Each case's right value is a test of its own elsewhere as well; this is somebody else's word for it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

TOP: Final = Path(__file__).parents[2]
CASES: Final = TOP.parent / "shared" / "field-cases"
LACKS: Final = 77
# Names of one inode in several subtrees are to be one file in the layer: then one subtree hangs on another, which
# `scan --hard-links all` alone does
CONTRADICTS: Final = {"tree/hardlink_primary_not_recorded"}


def _cases() -> list[object]:
    scripts = [path for path in CASES.glob("*/*.sh") if path.name != "lib.sh"]
    names = sorted(str(path.relative_to(CASES).with_suffix("")) for path in scripts)
    if not names:
        skip = pytest.mark.skip(reason="no field cases beside this checkout")
        return [pytest.param("none", marks=skip)]
    wrong = dict.fromkeys(CONTRADICTS, "another law")
    marked = [pytest.mark.xfail(reason=wrong[name], strict=True) if name in wrong else () for name in names]
    return [pytest.param(name, marks=mark) for name, mark in zip(names, marked, strict=True)]


@pytest.mark.slow
@pytest.mark.needs("root", "overlay")
@pytest.mark.parametrize("name", _cases())
def test_field_case(name: str) -> None:
    done = subprocess.run(
        ["bash", str(CASES / f"{name}.sh")],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "MK": str(Path(sys.executable).with_name("mkmeta")),
            "TMPDIR": "/tmp",
            "LC_ALL": "C.UTF-8",
        },
    )
    if done.returncode == LACKS:
        pytest.skip(done.stderr.strip().splitlines()[-1] if done.stderr else "this machine lacks something")
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
