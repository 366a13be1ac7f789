"""A real application over NFS: thousands of Python modules from popular distributions, each in a directory of its own.

    python -m tests.bench.app                    NFS 4.2 and 3, in a kernel of its own: requests and seconds
    python -m tests.bench.app --distance         the FUSE stand-in of tests.bench.distance: seconds (root, gcc)
    python -m tests.bench.app --json FILE        the figures, once more

Any user; the distributions come with pip, once, into .cache/app (some 100 MB). They are unpacked and compiled, as an
installation leaves them, and every module that can be imported is, in one process, up to `MODULES`: what that takes is
measured, with cold caches, a millisecond away. Without a layer, and with the layers of `MOUNTS`.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from mkmeta.linux.mount import leave_mount_namespace
from tests.bench.distance import compiled, served
from tests.bench.measure import Figure
from tests.host.hosts import Host
from tests.nfs.hosts import NfsHost
from tests.nfs.server import VERSIONS, Client, Server, latency, round_trip
from tests.uml.__main__ import TOP, boot

DISTRIBUTIONS: Final = (
    "aiohttp attrs babel black botocore celery click cryptography dask django docutils fastapi flask fsspec ipython "
    "jedi jinja2 jsonschema lxml marshmallow networkx numpy openpyxl pillow pydantic pygments pytest requests rich "
    "scrapy setuptools sphinx sqlalchemy sympy tornado twisted"
)
MODULES: Final = 3000
CACHE: Final = TOP / ".cache" / "app"
MEMORY: Final = 4096  # MiB of the guest: the volume, and each layer with content, are in memory
SIZES: Final = ("", "16K", "64K", "1M")  # content up to that in the manifest
KINDS: Final = {  # of requests, on NFS 3 and 4.2
    "opens": ("OPEN", "OPEN_NOATTR", "CLOSE"),
    "reads": ("READ",),
}


@dataclass(frozen=True)
class Mounting:
    """How the volume is used."""

    profile: str  # empty: as it is
    kind: str = "directory"
    inline: str = ""
    on_volume: bool = False  # the image: no store, no disk

    def __str__(self) -> str:
        if not self.profile:
            return "local disk" if self.kind == "local" else "plain"
        image = "image, " if self.kind == "erofs" else ""
        return (
            f"{image}`{self.profile}`"
            + (f", files up to {self.inline} inside" if self.inline else "")
            + (", on the volume" if self.on_volume else "")
        )


MOUNTS: Final = (
    Mounting("", "local"),
    Mounting(""),
    Mounting("merge"),
    Mounting("nested"),
    Mounting("nested", "erofs"),
    Mounting("nested", "erofs", "16K"),
    Mounting("merge", "erofs", "64K"),
    Mounting("nested", "directory", "64K"),
    Mounting("nested", "erofs", "64K"),
    Mounting("nested", "erofs", "1M"),
    Mounting("nested", "erofs", "64K", on_volume=True),
)

# Imports all modules that a file names, and says how many there are then. A few cannot be, whatever they are on.
_IMPORT = """
import importlib, sys, warnings
warnings.simplefilter("ignore")
for name in open(sys.argv[1]).read().split():
    try:
        importlib.import_module(name)
    except Exception:
        pass
print("modules", len(sys.modules))
"""
# Tries to import everything below the search path, and prints the names of what could be.
_TRY = """
import contextlib, importlib, io, os, sys, warnings
warnings.simplefilter("ignore")
limit, good = int(sys.argv[1]), []
for top in os.environ["PYTHONPATH"].split(":"):
    for directory, below, files in os.walk(top):
        below[:] = sorted(name for name in below if name.isidentifier() and name not in ("tests", "test", "testing"))
        package = os.path.relpath(directory, top).replace("/", ".").lstrip(".")
        for name in sorted(files):
            stem = name[:-3]
            if not name.endswith(".py") or stem in ("__main__", "setup", "conftest") or not stem.isidentifier():
                continue
            module = ".".join(filter(None, (package, "" if stem == "__init__" else stem)))
            if module and len(sys.modules) < limit:
                try:
                    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                        importlib.import_module(module)
                    good.append(module)
                except BaseException:
                    pass
print("\\n".join(good))
"""


class AppFigure(Figure):
    """The application once, over one mount."""

    def of_kind(self, kind: str) -> int:
        """Requests of a kind: `opens`, `reads`, or `others`, which are for misses, attributes and listings."""
        if kind != "others":
            return sum(self.rpcs.get(operation, 0) for operation in KINDS[kind])
        return self.total - sum(self.of_kind(one) for one in KINDS)


def main() -> int:
    """Runs the benchmark, or what of it is inside the guest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", metavar="VERSION", help="one of .cache/uml (default: the newest)")
    parser.add_argument("--distance", action="store_true", help="the FUSE stand-in, on this machine")
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(reversed(VERSIONS)))
    parser.add_argument("--only", metavar="TEXT", default="", help="mounts that have this in their description")
    parser.add_argument("--json", metavar="FILE", type=Path, help="where the figures go as well")
    parser.add_argument("--inside", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return _inside(args.inside, args.versions, _chosen(args.only))
    volume = prepared()
    with tempfile.TemporaryDirectory(prefix="mkmeta-app-", dir="/var/tmp") as work:  # which the guest does not cover
        if args.distance:
            figures = _distance(volume, Path(work), _chosen(args.only))
            _report(figures, "FUSE, a millisecond away", args.json)
            return 0
        answer = Path(work) / "app.json"
        command = [sys.executable, "-m", "tests.bench.app", "--inside", str(answer), "--versions", *args.versions]
        command += ["--only", args.only]
        code = boot(command, kernel=args.kernel, memory=MEMORY, time_limit=3600)
        if code == 0 and args.json:
            shutil.copyfile(answer, args.json)
    return code


def _chosen(text: str) -> list[Mounting]:
    """Those that are to be measured; `plain` is, whatever is asked for: the others are compared with it."""
    return [one for one in MOUNTS if text in str(one) or str(one) == "plain"]


def prepared() -> Path:
    """The directory of unpacked distributions, beside which are the list of modules and a manifest for each size."""
    volume, done = CACHE / "volume", CACHE / "done"
    if not done.exists():
        shutil.rmtree(CACHE, ignore_errors=True)
        wheels = CACHE / "wheels"
        wheels.mkdir(parents=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--only-binary", ":all:", "-d", str(wheels)]
        subprocess.run([*pip, *DISTRIBUTIONS.split()], check=True)
        for wheel in sorted(wheels.iterdir()):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(volume / "-".join(wheel.name.split("-")[:2]))
        compileall.compile_dir(str(volume), quiet=2, workers=2)
        names = _python(volume, _TRY, str(MODULES))
        (CACHE / "modules").write_text(names)
        done.write_text(_python(volume, _IMPORT, str(CACHE / "modules")))
    for size in (size for size in SIZES if not _manifest(size).exists()):
        inline = ["--inline", size] if size else []
        scan = [sys.executable, "-m", "mkmeta", "scan", "-q", str(volume), *inline, "-o", str(_manifest(size))]
        subprocess.run(scan, check=True)
    return volume


def _manifest(size: str) -> Path:
    return CACHE / f"app{size}.mkm"


def _python(root: Path, script: str, *args: str) -> str:
    """Runs a script with every distribution below `root` in its search path."""
    search = ":".join(str(path) for path in sorted(root.iterdir()))
    environment = {
        "PYTHONPATH": search,
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
        "HOME": "/",
        "PATH": os.environ["PATH"],
    }
    command = [sys.executable, "-S", "-s", "-c", script, *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"the application ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def application(root: Path) -> None:
    """All of it, as it was when it was unpacked. Raises OSError."""
    if _python(root, _IMPORT, str(CACHE / "modules")) != (CACHE / "done").read_text():
        raise OSError("not every module could be imported")


def _inside(answer: Path, versions: list[str], mountings: list[Mounting]) -> int:
    """In the guest: measures over NFS."""
    leave_mount_namespace()
    server = Server()
    server.start()
    top = Path(tempfile.mkdtemp())
    volume = top / "volume"
    shutil.copytree(CACHE / "volume", volume, symlinks=True)
    figures = []
    with server.exporting(volume):
        for version in versions:
            where = top / f"nfs{version}"
            where.mkdir()
            client = Client(version, volume, where, "")
            client.mount()
            host = NfsHost(top / f"host{version}", client=client)
            with latency():
                trip = round_trip(client)
                for mount in mountings:
                    figures.append(_over_nfs(host, client, mount, volume))
                    print(f"{version} {figures[-1].mount}: {figures[-1].total} {figures[-1].seconds}", flush=True)
            client.unmount()
            _report([one for one in figures if one.version == version], f"NFS {version}, {trip * 1000:.1f} ms", None)
    answer.write_text(json.dumps([asdict(one) for one in figures], indent=1) + "\n")
    return 0


def _over_nfs(host: NfsHost, client: Client, mount: Mounting, local: Path) -> AppFigure:
    with _mounted(host, mount, local, client.remount) as root, client.rpcs() as sent:
        started = time.perf_counter()
        application(root)
        seconds = time.perf_counter() - started
    rpcs = {key: count for key, count in sent.items() if count}
    return AppFigure(version=client.version, mount=str(mount), rpcs=rpcs, seconds=round(seconds, 2))


def _distance(volume: Path, work: Path, mountings: list[Mounting]) -> list[AppFigure]:
    """Seconds over the FUSE stand-in."""
    leave_mount_namespace()
    program = compiled(work)
    host = Host(work / "host")
    figures = []
    with served(program, volume, host.volume, 1000):
        for mount in mountings:
            with _mounted(host, mount, volume, _drop_caches) as root:
                started = time.perf_counter()
                application(root)
                seconds = time.perf_counter() - started
            figures.append(AppFigure(version="FUSE", mount=str(mount), rpcs={}, seconds=round(seconds, 2)))
            print(f"{mount}: {seconds:.2f} s", flush=True)
    return figures


def _drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


@contextlib.contextmanager
def _mounted(host: Host, mount: Mounting, local: Path, forget: Callable[[], None]) -> Iterator[Path]:
    """Where the application is to be found, all caches cold."""
    forget()
    if not mount.profile:
        yield local if mount.kind == "local" else host.volume
        return
    options = ("--lower", host.volume, "--profile", mount.profile, "--other-root")
    if mount.on_volume:
        layer = local / "app.erofs"
        host.call("build", "-q", _manifest(mount.inline), layer, "--format", mount.kind)
        host.call("activate", host.volume / layer.name, host.point, *options)
    else:
        layer = host.top / "store"
        host.call("build", "-q", _manifest(mount.inline), "--store", layer, "--format", mount.kind)
        host.call("activate", layer, host.point, *options)
    _drop_caches()
    yield host.point
    host.call("deactivate", host.point)
    if mount.on_volume:
        layer.unlink()
    else:
        shutil.rmtree(layer)


def _report(figures: list[AppFigure], what: str, answer: Path | None) -> None:
    """The table for people; and the figures, into a file."""
    plain = next(one for one in figures if one.mount == "plain")
    print(f"| {what} | requests | misses, attributes | opens | reads | seconds | of plain |")
    print("|---|---|---|---|---|---|---|")
    for one in figures:
        kinds = " | ".join(f"{one.of_kind(kind):,}" for kind in ("others", "opens", "reads"))
        share = f"{one.total / max(1, plain.total):.2f}x, {one.seconds / plain.seconds:.2f}x"
        print(f"| {one.mount} | {one.total:,} | {kinds} | {one.seconds:.1f} | {share} |", flush=True)
    if answer is not None:
        answer.write_text(json.dumps([asdict(one) for one in figures], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
