"""A hook of EasyBuild: `eb --hooks=/path/to/mkmeta_hooks.py`. What was installed is in the layers of all hosts."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from easybuild.framework.easyconfig.easyconfig import ActiveMNS
from easybuild.tools.build_log import EasyBuildError, print_warning
from easybuild.tools.config import build_option, install_path, log_path


def post_easyblock_hook(self: Any, *args: Any, **kwargs: Any) -> None:
    """After all steps, and after the logs went into the installation; of what failed as well, which is left alone."""
    recorded = os.path.join(self.installdir, log_path(ec=self.cfg), self.cfg.filename())
    if self.dry_run or not os.path.isfile(recorded):  # EasyBuild's last step: the easyconfig of what succeeded
        return
    modules = install_path("mod")
    module = os.path.relpath(self.mod_filepath, os.path.join(modules, build_option("suffix_modules_path")))
    links = [os.path.join(modules, name, module) for name in ActiveMNS().det_module_symlink_paths(self.cfg)]
    paths = [path for path in (self.installdir, self.mod_filepath, *links) if os.path.lexists(path)]
    program = os.environ.get("MKMETA", "mkmeta")
    config = os.environ.get("MKMETA_CONFIG", "/etc/mkmeta/sw.toml")
    try:
        code = subprocess.run([program, "release", "--config", config, *paths], check=False).returncode
        problem = f"exit code {code}" if code else ""
    except OSError as error:
        problem = str(error)
    if not problem:
        return
    text = f"installed, but not published by mkmeta ({problem}): {self.installdir}"
    if os.environ.get("MKMETA_MUST", "1") == "1":
        raise EasyBuildError("%s", text)
    print_warning("%s", text)
