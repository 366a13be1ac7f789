"""Makes a deb and an rpm: `python -m tools.packages OUT [--python-version 3.11]`, with the extra `dev` installed.

Everything that mkmeta imports is inside, in /opt/mkmeta/lib, so that a package needs nothing but the distribution's
Python. Some of that is compiled for one version of Python: the package is for hosts whose /usr/bin/python3 has that.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from mkmeta import __version__

TOP: Final = Path(__file__).resolve().parents[1]
LAUNCHER: Final = """\
#!/usr/bin/python3 -IB
import sys

sys.path.insert(0, "/opt/mkmeta/lib")

from mkmeta.__main__ import console_script

sys.exit(console_script())
"""
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}  # as nfpm names them


def system_python() -> str:
    """The version of this machine's own Python: what `--python-version` is by default."""
    command = ["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def make(out: Path, version: str) -> list[Path]:
    """Makes both; returns where they are."""
    out.mkdir(parents=True, exist_ok=True)
    before = set(out.iterdir())
    with tempfile.TemporaryDirectory(prefix="mkmeta-packages-") as name:
        work = Path(name)
        _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(work), str(TOP))
        (wheel,) = work.glob("mkmeta-*.whl")
        tree = work / "tree"
        library = tree / "opt/mkmeta/lib"
        _run(
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(library)),
            *("--only-binary=:all:", "--python-version", version, "--implementation", "cp", str(wheel)),
        )
        shutil.move(library / "share", tree / "usr/share")
        shutil.rmtree(library / "bin", ignore_errors=True)  # launchers of what pip installed there
        launcher = tree / "opt/mkmeta/bin/mkmeta"
        launcher.parent.mkdir(parents=True)
        launcher.write_text(LAUNCHER)
        launcher.chmod(0o755)
        documents = tree / "usr/share/doc/mkmeta"
        documents.mkdir(parents=True)
        for file in ("LICENSE", "README.md", "CHANGELOG.md"):
            shutil.copy(TOP / file, documents / file)
        shutil.copytree(TOP / "docs", documents / "docs")
        shutil.copytree(TOP / "examples", documents / "examples", ignore=shutil.ignore_patterns("__pycache__"))
        for path in tree.rglob("*"):
            path.chmod(0o755 if path.is_dir() or path == launcher else 0o644)
        settings = work / "nfpm.yaml"
        settings.write_text(json.dumps(_settings(tree, version)))  # JSON is YAML
        for kind in ("deb", "rpm"):
            _run("nfpm", "package", "--config", str(settings), "--packager", kind, "--target", str(out))
    return sorted(set(out.iterdir()) - before)


def _settings(tree: Path, version: str) -> dict[str, object]:
    major, minor = map(int, version.split("."))
    machine = os.uname().machine
    return {
        "name": "mkmeta",
        "arch": _MACHINES.get(machine, machine),
        "platform": "linux",
        "version": __version__,
        "section": "admin",
        "priority": "optional",
        "license": "MIT",
        "maintainer": "the mkmeta project",
        "description": "Overlayfs metadata layers for read-only software volumes\n"
        "Answers failed lookups, listings and stats of an NFS volume on the client.",
        "contents": [
            {"src": f"{tree}/", "dst": "/", "type": "tree"},
            {"src": "/opt/mkmeta/bin/mkmeta", "dst": "/usr/bin/mkmeta", "type": "symlink"},
        ],
        "overrides": {
            "deb": {"depends": [f"python3 (>= {version})", f"python3 (<< {major}.{minor + 1})"]},
            "rpm": {"depends": [f"python(abi) = {version}"]},
        },
    }


def _run(*command: str) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    subprocess.run(command, check=True, env=environment, cwd=TOP)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="tools.packages", description="Makes a deb and an rpm of mkmeta.")
    parser.add_argument("out", metavar="OUT", type=Path, help="directory for them")
    parser.add_argument("--python-version", metavar="X.Y", default=None, help="default: that of /usr/bin/python3")
    args = parser.parse_args()
    for path in make(args.out, args.python_version or system_python()):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
