"""Images beside what else makes them, or the same layer as a directory; prints one JSON object.

    python -m tests.bench.images [--files 350000] [--inodes 1000000] [--nodes 64000] [--dump tree.dump] [--dir DIR]

`--files`: an image and a directory layer of the same manifest. `--inodes`: an image alone. `--nodes`: a composefs-dump
text, or with `--dump` one that is there, made into an image by mkmeta and by mkcomposefs. 0 leaves one out. A ratio is
the median of those of neighbours in time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from mkmeta.manifest.reader import ManifestReader
from tests.bench.diff import write_manifest
from tests.bench.measure import Comparison, Run, compare, run

MKMETA: Final = (sys.executable, "-m", "mkmeta")
_PER_DIRECTORY: Final = 12  # files; a distribution's /usr has 10
_LABELS: Final = (b"bin_t", b"lib_t", b"usr_t", b"etc_t", b"man_t", b"locale_t")


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=350_000)
    parser.add_argument("--inodes", type=int, default=1_000_000)
    parser.add_argument("--nodes", type=int, default=64_000)
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--dir", type=Path, help="holds images and layers (default: the temporary directory)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    result: dict[str, object] = {"load": os.getloadavg()[0], "processors": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory(prefix="mkmeta-bench-", dir=args.dir) as name:
        work = Path(name)
        if args.nodes or args.dump:
            result["dump"] = _dump(work, args.dump, args.nodes, args.rounds)
        if args.files:
            result["directory"] = _directory(work, args.files, args.rounds)
        if args.inodes:
            result["image"] = _image(work, args.inodes, args.rounds)
    print(json.dumps(result, indent=1))


def _image(work: Path, inodes: int, rounds: int) -> dict[str, object]:
    manifest = write_manifest(work / "image.mkm", inodes * _PER_DIRECTORY // (_PER_DIRECTORY + 1))
    with ManifestReader.open(str(manifest)) as reader:
        entries = reader.root.directory.entries
    image = work / "image"
    found = {}
    for name, options in (("digests", ()), ("no digests", ("--no-verity",))):
        command = [*MKMETA, "build", "-q", "--swap", "--format", "erofs", *options, str(manifest), str(image)]
        runs = sorted((run(command) for _ in range(rounds)), key=lambda one: one.seconds)
        found[name] = _figures(runs[0]) | {"bytes_per_entry": round(image.stat().st_size / entries, 1)}
    return {"entries": entries, **found}


def _directory(work: Path, files: int, rounds: int) -> dict[str, object]:
    manifest = write_manifest(work / "directory.mkm", files)
    image, layer = work / "image", work / "layer"

    def clear() -> None:
        shutil.rmtree(layer, ignore_errors=True)
        image.unlink(missing_ok=True)

    ours = [*MKMETA, "build", "-q", "--format", "erofs", str(manifest), str(image)]
    theirs = [*MKMETA, "build", "-q", str(manifest), str(layer)]
    found = _comparison(compare(ours, theirs, rounds=rounds, before=clear))
    clear()
    return {"files": files, **found}


def _dump(work: Path, given: Path | None, nodes: int, rounds: int) -> dict[str, object]:
    text = given or _write_dump(work / "tree.dump", nodes)
    ours, theirs = work / "ours", work / "theirs"
    found = compare(
        [*MKMETA, "build", "-q", "--swap", "--format", "composefs", str(text), str(ours)],
        ["mkcomposefs", "--from-file", str(text), str(theirs)],
        rounds=rounds,
    )
    if ours.read_bytes() != theirs.read_bytes():
        raise OSError("the images differ")
    with text.open("rb") as stream:
        return {"nodes": sum(1 for _ in stream), "start": run([*MKMETA, "--version"]).seconds, **_comparison(found)}


def _write_dump(path: Path, nodes: int) -> Path:
    """The text of something like a distribution: files of objects, links, labels."""
    numbers = random.Random(20261126)
    with path.open("wb") as out:
        out.write(b"/ 4096 40755 2 0 0 0 1700000000.0 - - - security.selinux=system_u:object_r:root_t:s0\\x00\n")
        directory = b"/usr"
        for number in range(nodes - 1):
            label = b"security.selinux=system_u:object_r:%s:s0\\x00" % numbers.choice(_LABELS)
            owner = b"0 0 0 %d.0" % numbers.choice((1700000000, 1690000000, numbers.randrange(1700000000)))
            if number % _PER_DIRECTORY == 0:
                parent = directory if number < 60 * _PER_DIRECTORY else b"/usr/d%d" % numbers.randrange(1, 60)
                directory = b"/usr" if not number else b"%s/d%d" % (parent.split(b"/d")[0], number // _PER_DIRECTORY)
                out.write(b"%s 4096 40755 2 %s - - - %s\n" % (directory, owner, label))
            elif number % _PER_DIRECTORY == 1:
                out.write(b"%s/link%d 12 120777 1 %s ../lib/file0 - - %s\n" % (directory, number, owner, label))
            else:
                digest = numbers.randbytes(32).hex().encode()
                size = int(numbers.lognormvariate(8, 2)) + 1
                where = b"%s/%s" % (digest[:2], digest[2:])
                out.write(b"%s/file%d %d 100644 1 %s %s - %s %s\n" % (
                    directory, number, size, owner, where, digest, label))  # fmt: skip
    return path


def _comparison(found: Comparison) -> dict[str, object]:
    return {"ours": _figures(found.ours), "theirs": _figures(found.theirs), "ratio": round(found.ratio, 2)}


def _figures(one: Run) -> dict[str, float]:
    return {
        "seconds": round(one.seconds, 2),
        "processor_seconds": round(one.processor_seconds, 2),
        "peak_mib": one.peak >> 20,
    }


if __name__ == "__main__":
    main()
