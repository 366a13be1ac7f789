"""Puts manuals and completions into a wheel's data files; made of the parsers and pages of this very source."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Hook(BuildHookInterface):  # type: ignore[type-arg, misc, unused-ignore]
    """Of hatchling: an editable wheel needs none of this, and is made without it."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is written."""
        if version == "editable":
            return
        sys.path.insert(0, self.root)
        from tools import completion, manuals

        self._made = tempfile.TemporaryDirectory(prefix="mkmeta-share-")
        share = Path(self._made.name)
        manuals.write(share / "man")
        completion.write(share)
        build_data["shared_data"].update(
            {str(path): f"share/{path.relative_to(share)}" for path in share.rglob("*") if path.is_file()}
        )

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called when it is there."""
        if version != "editable":
            self._made.cleanup()
