"""The commands of README and docs/getting-started.md, word for word, on a host that has nothing of mkmeta's yet."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
FRESH = Path(__file__).with_name("fresh.sh")
GETTING_STARTED = TOP / "docs" / "getting-started.md"
pytestmark = pytest.mark.needs("root", "overlay", "trusted xattrs")

PREPARE = """\
mkdir -p /opt/mkmeta/bin
cat >/opt/mkmeta/bin/mkmeta <<'END'
#!/bin/sh
PYTHONPATH='{top}' exec '{python}' -m mkmeta "$@"
END
chmod 755 /opt/mkmeta/bin/mkmeta
export PATH="/opt/mkmeta/bin:$PATH"
systemctl() {{ echo "systemctl $*" >>/systemctl; }}
release() {{
    mkdir -p "/mnt/sw/grp/paint/$1/lib" "/mnt/sw/grp/paint/$1/doc" /mnt/sw/tools/a/python
    echo "$1" >"/mnt/sw/grp/paint/$1/lib/paint.py"
    echo "$1" >"/mnt/sw/grp/paint/$1/doc/readme"
}}
release v1.0
"""


def blocks(page: Path, heading: str) -> list[str]:
    """The indented blocks of a section, without what stands behind `#` in them."""
    section = re.split(r"(?m)^## ", page.read_text())
    text = next(part for part in section if part.startswith(heading + "\n"))
    found = re.findall(r"(?m)(?:^ {4}\S.*\n)+", text)
    return [re.sub(r"(?m)^ {4}|\s+# .*$", "", block) for block in found]


def run(state: Path, *steps: str) -> str:
    """Runs commands on a fresh host (sh -e: none but the last of `A && B` has to succeed). Returns what they print."""
    script = state / "script"
    text = PREPARE.format(top=TOP, python=sys.executable) + "\n".join(("set -x", *steps))
    script.write_text(text)
    prefixes = dict.fromkeys((sys.prefix, sys.base_prefix))
    binds = " ".join([*prefixes, str(state)])
    done = subprocess.run(
        ["unshare", "--mount", "env", f"BINDS={binds}", "sh", str(FRESH), str(state), str(script)],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_getting_started(tmp_path: Path) -> None:
    """Publish, use, publish again, go back, remove."""
    publish, again = blocks(GETTING_STARTED, "The host that publishes")
    (units,) = blocks(GETTING_STARTED, "The hosts that mount it")
    back, all_back = blocks(GETTING_STARTED, "Back")
    away, units_away = blocks(GETTING_STARTED, "Away")
    assert len(publish.splitlines()) == 5
    run(
        tmp_path,
        publish,
        "grep v1.0 /sw/grp/paint/v1.0/lib/paint.py",
        "ls /sw/grp/paint/v1.0/doc/readme",
        "release v1.1",
        again,
        units,
        "test -e /etc/systemd/system/mkmeta-activate@.service",
        "grep 'enable --now mkmeta-activate@sw' /systemctl",
        "mkmeta activate --config /etc/mkmeta/sw.toml",
        "grep v1.1 /sw/grp/paint/v1.1/lib/paint.py",
        back,
        "mkmeta status /sw --json | grep '\"generation\": 1,'",
        all_back,
        units_away,
        away,
        *(f"test ! -e {path}" for path in ("/sw", "/var/lib/mkmeta/sw", "/etc/mkmeta/sw.toml", "/mnt/sw/.mkmeta")),
        "test -z \"$(find /etc/systemd/system -name 'mkmeta*')\"",
    )


def test_readme(tmp_path: Path) -> None:
    """The first commands, those of a host, and those of a pipeline."""
    readme = TOP / "README.md"
    first = re.findall(r"(?m)(?:^ {4}mkmeta .*\n)+", readme.read_text())[0].replace("    ", "", 1)
    (host,) = blocks(readme, "Run it")
    (pipeline,) = blocks(readme, "Publish again")
    cut = host.index("mkmeta rollback")
    diff = "mkmeta diff old.mkm sw.mkm"
    assert diff in pipeline
    run(
        tmp_path,
        first,
        "cp sw.mkm old.mkm",
        "release v1.2",
        pipeline.replace(diff, f"code=0; {diff} || code=$?; test $code = 4").replace(" && ", "\n"),
        host[:cut],
        "grep v1.2 /sw/grp/paint/v1.2/lib/paint.py",
        host[cut:],
    )
