"""Verifying in tests: a layer, or a volume, in one call; and what a mutation of a tree is."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from mkmeta.build import BuildOptions, build, sink_for
from mkmeta.manifest.reader import ManifestReader
from mkmeta.plan import Plan
from mkmeta.verifier.findings import Finding, Findings
from mkmeta.verifier.verify import VerifyOptions, verify


def found(manifest: Path, layer: Path, plan: Plan | None = None, **options: Any) -> list[Finding]:
    """The findings of a verification."""
    return found_and_counted(manifest, layer, plan, **options)[0]


def found_and_counted(
    manifest: Path, layer: Path, plan: Plan | None = None, **options: Any
) -> tuple[list[Finding], Counter[str]]:
    """The findings of a verification, and what it counts."""
    if "lower" in options:
        options["lower"] = os.fsencode(options["lower"])
    chosen = VerifyOptions(layer=os.fsencode(layer), plan=plan or Plan(), **options)
    before = os.stat(".")
    with ManifestReader.open(str(manifest)) as reader, Findings() as findings:
        counts = verify(reader, chosen, findings).counts
        assert os.path.samestat(os.stat("."), before), "a call leaves the working directory what it is"
        return list(findings), counts


def brief(findings: list[Finding]) -> list[tuple[str, str, str]]:
    """Side, path and what of each finding."""
    return [(str(one.side), os.fsdecode(one.path), one.what) for one in findings]


def make_layer(manifest: Path, layer: Path, **plan: Any) -> Path:
    """Builds a layer."""
    with ManifestReader.open(str(manifest)) as reader:
        options = BuildOptions(plan=Plan(**plan))
        build(reader, sink_for(os.fsencode(layer), options), options)
    return layer
