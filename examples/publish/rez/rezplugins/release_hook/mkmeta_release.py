"""A release hook of rez: what was released is in the layers of all hosts (README.md beside `rezplugins`)."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from rez.exceptions import ReleaseHookCancellingError
from rez.release_hook import ReleaseHook
from rez.utils.logging_ import print_warning


class MkmetaReleaseHook(ReleaseHook):  # type: ignore[misc]
    """Calls `mkmeta release` for the package, all of its variants at once."""

    @classmethod
    def name(cls) -> str:
        """By which `release_hooks` names it."""
        return "mkmeta_release"

    def post_release(self, user: str, install_path: str, variants: Any, **kwargs: Any) -> None:
        """Publishes. rez drops all errors of hooks but this one, which ends `rez-release` before it tags."""
        paths = sorted({str(variant.parent.base) for variant in variants})
        if not paths:
            return
        program = os.environ.get("MKMETA", "mkmeta")
        config = os.environ.get("MKMETA_CONFIG", "/etc/mkmeta/sw.toml")
        try:
            code = subprocess.run([program, "release", "--config", config, *paths], check=False).returncode
            problem = f"exit code {code}" if code else ""
        except OSError as error:
            problem = str(error)
        if not problem:
            return
        text = f"released, but not published by mkmeta ({problem}): {' '.join(paths)}"
        if os.environ.get("MKMETA_MUST") == "1":
            raise ReleaseHookCancellingError(text)
        print_warning(text)


def register_plugin() -> type[MkmetaReleaseHook]:
    """For rez."""
    return MkmetaReleaseHook
