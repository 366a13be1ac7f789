"""Real mounts of a layer over a volume, made by hand as formats/mounts.md section 1 says; fit for hypothesis."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def mounted(layer: Path, volume: Path, profile: str) -> Iterator[Path]:
    """Where the layer is mounted over the volume, by `merge` or `nested`."""
    with contextlib.ExitStack() as stack:

        def overlay(options: str) -> Path:
            where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mkmeta-model-")))
            environment = {**os.environ, "LIBMOUNT_FORCE_MOUNT2": "always"}
            command = ["mount", "-t", "overlay", "-o", f"ro,{options}", "mkmeta-test", str(where)]
            subprocess.run(command, check=True, capture_output=True, env=environment)
            stack.callback(subprocess.run, ["umount", str(where)], check=True, capture_output=True)
            return where

        if profile == "merge":
            yield overlay(f"metacopy=on,lowerdir={layer}:{volume}")
        else:
            inner = overlay(f"metacopy=on,lowerdir={layer}::{volume}")
            yield overlay(f"lowerdir={inner}:{volume}")
