"""`mkmeta diff` of two manifests, whole calls; prints one JSON object.

    python -m tests.bench.diff [--files 350000] [--changed 0.01]
    python -m tests.bench.diff --manifest-a old.mkm --manifest-b new.mkm

Without manifests, some are written that have the shape of the tree of `tests.bench.tree` and made-up digests. They
differ in a share of the files: in the newest releases, as publishing changes a volume, and once more spread evenly over
all directories, the worst that can be for a comparison along the tree.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path

from mkmeta.codec.container import Location
from mkmeta.codec.facts import PageFacts
from mkmeta.codec.info import Info
from mkmeta.digest import ContentDigest, VerityDigest
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import NO_COUNTS, Counts, DigestName, Directory, DirectoryKind, Entry, Node, RegularFile, Root
from tests.bench.measure import Run, run
from tests.bench.tree import DIRECTORIES_PER_RELEASE, FILES_PER_DIRECTORY, RELEASES_PER_GROUP
from tests.vectors.trees import add_directory, add_directory_facts, total_of

_MTIME = 1_700_000_000_123_456_789
_DIFFERENT = 4  # exit code


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest-a", type=Path)
    parser.add_argument("--manifest-b", type=Path)
    parser.add_argument("--files", type=int, default=350_000)
    parser.add_argument("--changed", type=float, default=0.01, help="share of the files (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    result: dict[str, object] = {"load": os.getloadavg()[0], "start": _figures(["--version"], args.rounds)}
    if args.manifest_a and args.manifest_b:
        result["given"] = _figures(["diff", str(args.manifest_a), str(args.manifest_b), "-q"], args.rounds)
    else:
        result |= {"files": args.files, "changed": int(args.files * args.changed)}
        with tempfile.TemporaryDirectory(prefix="mkmeta-bench-") as work:
            result |= _generated(Path(work), args.files, args.changed, args.rounds)
    print(json.dumps(result, indent=1))


def _generated(work: Path, files: int, share: float, rounds: int) -> dict[str, object]:
    changed = int(files * share)
    base = write_manifest(work / "base.mkm", files)
    twin = write_manifest(work / "twin.mkm", files)
    one = write_manifest(work / "one.mkm", files, changed={files // 2})
    newest = write_manifest(work / "newest.mkm", files, changed=set(range(files - changed, files)))
    spread = write_manifest(work / "spread.mkm", files, changed=set(random.Random(1).sample(range(files), changed)))
    cases = {"equal": twin, "one file": one, "newest releases": newest, "spread": spread}
    return {
        name: {
            how: _figures(["diff", str(base), str(other), *options], rounds)
            for how, options in (("lines", []), ("quiet", ["-q"]), ("stat", ["--stat"]))
        }
        for name, other in cases.items()
    }


def _figures(arguments: list[str], rounds: int) -> dict[str, object]:
    """Median and best: other load on the machine only ever adds."""
    command = [sys.executable, "-m", "mkmeta", *arguments]
    runs: list[Run] = [run(command, accepted=(0, _DIFFERENT)) for _ in range(rounds)]
    return {
        "seconds": round(statistics.median(run.seconds for run in runs), 3),
        "best": round(min(run.seconds for run in runs), 3),
        "processor_seconds": round(statistics.median(run.processor_seconds for run in runs), 3),
        "peak_mib": max(run.peak for run in runs) >> 20,
    }


def write_manifest(path: Path, files: int, changed: set[int] | frozenset[int] = frozenset()) -> Path:
    """A manifest of `files` files in the shape of the benchmark's tree; those in `changed` have another content."""
    digests = random.Random(files)
    made = 0
    with path.open("wb") as stream, ManifestWriter(stream) as writer:
        groups: list[_Built] = []
        group = 0
        while made < files:
            releases = []
            for release in range(RELEASES_PER_GROUP):
                kinds: dict[bytes, list[_Built]] = {b"bin": [], b"lib": [], b"python": []}
                for package in range(DIRECTORIES_PER_RELEASE):
                    count = min(FILES_PER_DIRECTORY, files - made)
                    if not count:
                        break
                    kind = (b"lib", b"bin", b"python")[package % 3]
                    numbers = range(made, made + count)
                    built: list[_Built] = [
                        (b"module_%02d.py" % n, _file(digests, number in changed), None, NO_COUNTS)
                        for n, number in enumerate(numbers)
                    ]
                    kinds[kind].append(_directory(writer, b"package%02d" % package, built, DirectoryKind.OPAQUE))
                    made += count
                below = [
                    _directory(writer, kind, packages, DirectoryKind.OPAQUE)
                    for kind, packages in sorted(kinds.items())
                    if packages
                ]
                if below:
                    releases.append(_directory(writer, b"rel-%02d" % release, below, DirectoryKind.OPAQUE))
            groups.append(_directory(writer, b"grp%04d" % group, releases, DirectoryKind.MERGE))
            group += 1
        _, top, place, _ = _directory(writer, b"", groups, DirectoryKind.MERGE)
        assert isinstance(top, Directory)
        info = Info(root=b"/mnt/sw", created=_MTIME, tool="mkmeta bench")
        writer.finish(Root(directory=top, links=None, digests=tuple(DigestName)), info, place)
    return path


_Built = tuple[bytes, Node, Location | None, Counts]  # with the facts of a directory, and what they count


def _directory(writer: ManifestWriter, name: bytes, built: list[_Built], kind: DirectoryKind) -> _Built:
    entries = [Entry(name, node) for name, node, _, _ in built]
    children = add_directory(writer, entries)
    below = [(place, counts) for _, node, place, counts in built if isinstance(node, Directory)]
    facts = PageFacts(
        inodes=[int.from_bytes(children[:4], "big") + number for number in range(len(built))],
        change_times=[_MTIME] * len(built),
        children=[place for place, _ in below],
    )
    place, counts = add_directory_facts(writer, entries, facts, kind, [counts for _, counts in below])
    node = Directory(
        mode=0o040755, uid=0, gid=0, mtime_ns=_MTIME, children=children, entries=total_of(entries), kind=kind
    )
    return name, node, place, counts


def _file(digests: random.Random, changed: bool) -> RegularFile:
    content, verity, size = digests.randbytes(32), digests.randbytes(32), digests.randrange(100_000)
    if changed:
        content, verity = verity, content
    return RegularFile(
        mode=0o100644,
        uid=0,
        gid=0,
        mtime_ns=_MTIME + changed,
        size=size + changed,
        blake3=ContentDigest(content),
        verity=VerityDigest(verity),
    )


if __name__ == "__main__":
    main()
