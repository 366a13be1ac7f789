"""Writes formats/vectors anew: `python -m tests.vectors.make_vectors`.

The compressed bytes depend on the version of zstd; IDs, objects and listings must not change, or the format has.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from mkmeta.errors import FormatError
from mkmeta.manifest.check import check_all
from mkmeta.manifest.reader import ManifestReader
from tests.vectors.cases import CASES, Case
from tests.vectors.explain import explain
from tests.vectors.reject import REJECTED
from tests.vectors.trees import write_tree

TOP = Path(__file__).resolve().parents[2]
VECTORS = TOP / "formats" / "vectors"
EXAMPLE = TOP / "examples" / "read_manifest.py"


def manifest_of(case: Case) -> bytes:
    """The case's manifest file as the writer makes it today."""
    with tempfile.TemporaryFile() as stream:
        write_tree(
            stream,
            case.tree,
            links=case.links,
            digests=case.digests,
            info=case.info,
            facts=case.facts,
            contents=case.contents,
        )
        stream.seek(0)
        return stream.read()


def run_example(manifest: Path) -> subprocess.CompletedProcess[str]:
    """What the reader written from the document alone says of a file."""
    return subprocess.run([sys.executable, EXAMPLE, manifest], capture_output=True, text=True, check=False)


def refusal(manifest: Path) -> str:
    """What mkmeta has against a file. Raises ValueError when it has nothing."""
    try:
        with ManifestReader.open(str(manifest)) as reader:
            check_all(reader)
    except FormatError as error:
        return error.message
    raise ValueError(f"{manifest} was not refused")


def main() -> None:
    """Writes every file below formats/vectors."""
    for name, case in CASES.items():
        directory = VECTORS / name
        directory.mkdir(parents=True, exist_ok=True)
        manifest = directory / "manifest.mkm"
        manifest.write_bytes(manifest_of(case))
        listing = run_example(manifest)
        listing.check_returncode()
        (directory / "tree.txt").write_text(listing.stdout)
        (directory / "id.txt").write_text(listing.stdout.split()[1] + "\n")
        (directory / "why.txt").write_text(case.why + "\n")
    hello = VECTORS / "hello"
    (hello / "explained.txt").write_text(explain((hello / "manifest.mkm").read_bytes()))
    rejected = VECTORS / "reject"
    rejected.mkdir(exist_ok=True)
    for name, data in REJECTED.items():
        (rejected / f"{name}.mkm").write_bytes(data)
        (rejected / f"{name}.txt").write_text(refusal(rejected / f"{name}.mkm") + "\n")


if __name__ == "__main__":
    main()
