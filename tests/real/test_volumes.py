"""The main job on real trees: scan, build, mount; then rsync, the kernel and the programs say whether it is right."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from tests.conftest import Mount
from tests.real.volumes import PACKAGES, VERSION, make_debian, make_python, run_python

# One level of overlay unescapes the attribute meant for the next one (formats/upper.md): root sees it on directories.
UNESCAPED = "--filter=-x trusted.overlay.opaque"
PROFILES = ("merge", "data-only", "nested")


def differences(source: Path, merged: Path) -> list[str]:
    """What rsync would have to change in `merged`: names, content, attributes, links, times to the nanosecond."""
    command = ["rsync", "-aHAXn", "--delete", "--checksum", "--itemize-changes", "--modify-window=-1", UNESCAPED]
    result = subprocess.run(
        [*command, f"{source}/", f"{merged}/"], check=True, capture_output=True, text=True, errors="replace"
    )
    return result.stdout.splitlines()


def compile_layer(volume: Path, work: Path, *select: str) -> Path:
    options = [word for pattern in select for word in ("--select", pattern)]
    # from these trees nothing is deleted: links between what is selected stay links, as rsync -H wants to see
    assert main(["scan", str(volume), "-o", str(work / "sw.mkm"), "-q", "--hard-links", "all", *options]) == 0
    assert main(["build", str(work / "sw.mkm"), str(work / "layer"), "-q"]) == 0
    return work / "layer"


@pytest.fixture(scope="module")
def small_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("python") / "volume"
    make_python(root / "tools", ())
    return root


@pytest.mark.needs("root", "overlay", "trusted xattrs", "rsync")
@pytest.mark.parametrize("profile", PROFILES)
def test_python_through_the_mount(small_python: Path, tmp_path: Path, overlay: Mount, profile: str) -> None:
    merged = overlay(compile_layer(small_python, tmp_path), small_python, profile)
    assert differences(small_python, merged) == []
    assert run_python(merged / "tools", "import json, sqlite3, ssl; print(json.dumps([1]))") == "[1]\n"


@pytest.mark.needs("root", "overlay", "trusted xattrs", "rsync")
@pytest.mark.parametrize("profile", ["merge", "nested"])
def test_part_of_the_volume(small_python: Path, tmp_path: Path, overlay: Mount, profile: str) -> None:
    """Selected directories are closed; everything else, also what comes later, shows through."""
    later = small_python / "tools/lib/later"
    merged = overlay(
        compile_layer(small_python, tmp_path, f"tools/lib/{VERSION}/json", "tools/**/email"), small_python, profile
    )
    try:
        assert differences(small_python, merged) == []
        later.mkdir()
        (later / "module.py").write_text("published after the scan")
        assert (merged / "tools/lib/later/module.py").read_text() == "published after the scan"
        hidden = small_python / "tools/lib" / VERSION / "json/later.py"
        hidden.touch()
        try:
            assert not (merged / "tools/lib" / VERSION / "json/later.py").exists(), "a selected directory is opaque"
            for place in ("tools", f"tools/lib/{VERSION}/json", f"tools/lib/{VERSION}/email/mime"):
                with pytest.raises(FileNotFoundError) as error:
                    os.stat(merged / place / "no-such-name")
                assert error.value.errno == errno.ENOENT
        finally:
            hidden.unlink()
    finally:
        (later / "module.py").unlink(missing_ok=True)
        later.rmdir()


@pytest.mark.needs("data-only userxattr", "user xattrs", "rsync")
def test_ordinary_user_in_a_user_namespace(small_python: Path, tmp_path: Path) -> None:
    """Scan, build and mount without any privilege outside the namespace; the Python runs from there."""
    assert main(["scan", str(small_python), "-o", str(tmp_path / "sw.mkm"), "-q"]) == 0
    work = tmp_path / "work"
    work.mkdir()
    for directory in (tmp_path, *tmp_path.parents[:3], small_python.parent):
        if directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o755)
    inner, merged = work / "inner", work / "merged"
    code = "import json; print(json.dumps([2]))"
    script = f"""
        set -e
        mkdir {inner} {merged}
        {sys.executable} -m mkmeta build {tmp_path}/sw.mkm {work}/layer --userxattr -q >/dev/null
        mount -t overlay mkmeta -o ro,userxattr,lowerdir={work}/layer::{small_python} {inner}
        {inner}/tools/bin/python -B -c '{code}'
        rsync -aHAXn --delete --checksum --itemize-changes --modify-window=-1 --filter='-x user.overlay.opaque' \
            {small_python}/ {inner}/
        mount -t overlay mkmeta -o ro,userxattr,lowerdir={inner}:{small_python} {merged}
        {merged}/tools/bin/python -B -c '{code}'
        umount {merged} {inner}
    """
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    result = subprocess.run([*namespace, "sh", "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "[2]\n[2]\n", "")


@pytest.mark.slow
@pytest.mark.needs("root", "overlay", "trusted xattrs", "rsync")
def test_python_with_tens_of_thousands_of_files(tmp_path: Path, overlay: Mount) -> None:
    volume = tmp_path / "volume"
    make_python(volume / "tools", PACKAGES)
    assert sum(len(files) for _, _, files in os.walk(volume)) > 20_000
    layer = compile_layer(volume, tmp_path)
    for profile in PROFILES:
        merged = overlay(layer, volume, profile)
        assert differences(volume, merged) == []
        assert run_python(merged / "tools", "import numpy; print(numpy.arange(3).sum())") == "3\n"


@pytest.mark.slow
@pytest.mark.needs("root", "overlay", "trusted xattrs", "rsync", "debootstrap", "setcap", "setfacl")
def test_debian_root_file_system(tmp_path: Path, overlay: Mount) -> None:
    volume = tmp_path / "debian"
    make_debian(volume)
    kinds = {(os.lstat(path).st_mode & 0o170000) for path in volume.rglob("*")}
    assert len(kinds) >= 6 and (volume / "bin/su").stat().st_mode & 0o4000, "the tree has what makes it interesting"
    layer = compile_layer(volume, tmp_path)
    for profile in PROFILES:
        merged = overlay(layer, volume, profile)
        assert differences(volume, merged) == []
        listed = subprocess.run(["chroot", merged, "dpkg", "-l", "bash"], check=True, capture_output=True, text=True)
        assert "bash" in listed.stdout
        with pytest.raises(FileNotFoundError):
            os.stat(merged / "usr/lib/no-such-library.so")
