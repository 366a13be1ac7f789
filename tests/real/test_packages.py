"""The deb and the rpm, as users get them: made, installed on a clean Debian, tried with the tour, and removed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mkmeta import __version__
from tests.real.volumes import install_debian
from tools.packages import make, system_python

TOP = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.needs("root", "debootstrap", "overlay", "trusted xattrs")]

# In a mount namespace of its own; /srv has the packages and the examples. Nothing of this machine's Python is in there.
INSIDE = """\
set -eux
root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 sh -eux -c '
try() {
    test "$(mkmeta --version)" = "mkmeta VERSION"
    mkmeta doctor --lower /srv --store /opt/store
    test -s /usr/share/man/man1/mkmeta-scan.1 -a -s /usr/share/man/man5/layer.toml.5
    test -s /usr/share/bash-completion/completions/mkmeta
    cd /srv && sh examples/tour.sh --inside && cd /
    mkmeta init /srv --name sw -o /root/sw.toml --force --mount-point /sw
    mkmeta units --config /root/sw.toml | grep -q "^ExecStart=/usr/bin/mkmeta activate --config"
}
dpkg -i /srv/*.deb
try
dpkg -P mkmeta
test ! -e /opt/mkmeta -a ! -e /usr/bin/mkmeta -a ! -e /usr/share/man/man1/mkmeta.1
rpm -i --nodeps /srv/*.rpm  # what it depends on is not in the database of rpm here
try
rpm -e mkmeta
test ! -e /opt/mkmeta/bin -a ! -e /usr/bin/mkmeta
'
"""


@pytest.mark.timeout(900)
def test_packages_on_a_clean_debian(tmp_path: Path) -> None:
    root = tmp_path / "debian"
    packages = make(tmp_path / "out", system_python())
    assert {path.suffix for path in packages} == {".deb", ".rpm"}
    install_debian(root, "python3-minimal", "python3", "rpm")
    for path in packages:
        os.link(path, root / "srv" / path.name)
    subprocess.run(["cp", "-r", TOP / "examples", root / "srv"], check=True)
    script = tmp_path / "inside.sh"
    script.write_text(INSIDE.replace("VERSION", __version__))
    done = subprocess.run(
        ["unshare", "--mount", "sh", str(script), str(root)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("no difference") == 4
