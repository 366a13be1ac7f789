"""Everything `mkmeta doctor` looks at, in order. What may hang has a deadline; what is unforeseen is a finding."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from mkmeta.host import kernel_checks
from mkmeta.host.bounded import bounded
from mkmeta.host.finding import Check, Finding, Level, findings_of
from mkmeta.host.lower_checks import LowerChecks
from mkmeta.host.store_checks import StoreChecks
from mkmeta.mounts.probe import Abilities, probe
from mkmeta.mounts.run import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What is to be looked at, besides the kernel."""

    lower: bytes | None = None
    store: bytes | None = None
    run_dir: bytes | None = None
    runtime_dir: bytes | None = None  # $XDG_RUNTIME_DIR
    userxattr: bool = False  # for layers with user.* attributes


def diagnose(patient: Patient) -> Iterator[Finding]:
    """All findings, as they come. Leaves nothing behind, and changes nothing."""
    with tempfile.TemporaryDirectory(prefix="mkmeta-doctor-") as name:
        scratch = RunDirectory(os.fsencode(os.path.realpath(name)))
        os.mkdir(scratch.path + b"/inner")
        kernel = _Kernel(scratch, patient)
        for check in kernel.checks():
            yield from findings_of(check)
        if patient.lower is not None:
            lower = LowerChecks(patient.lower, patient.userxattr, scratch.path, kernel.abilities.profiles)
            yield from bounded(lower.checks())
        if patient.store is not None:
            yield from bounded(StoreChecks(patient.store, patient.userxattr, patient.lower).checks())


class _Kernel:
    """Checks of the kernel and of this process; nothing in them waits for anybody."""

    def __init__(self, scratch: RunDirectory, patient: Patient) -> None:
        self.abilities = Abilities()
        self._scratch = scratch
        self._patient = patient
        self._may_mount = False

    def checks(self) -> list[Check]:
        """In order."""
        patient, release = self._patient, os.uname().release
        found = [
            Check("rights", self._rights),
            Check("run-dir", lambda: kernel_checks.run_directory(patient.run_dir, patient.runtime_dir)),
            Check("kernel", self._probe),
            Check("kernel-verity", lambda: kernel_checks.verity_defects(release)),
        ]
        if patient.lower is None:  # else it is known whether that is on NFS
            version = os.uname().version
            found.append(Check("kernel-nfs", lambda: kernel_checks.nfs_defects(release, version, None)))
        found.append(Check("nfs-export", lambda: kernel_checks.nfs_export(userxattr=patient.userxattr)))
        found.append(Check("selinux", kernel_checks.selinux))
        return found

    def _rights(self) -> Iterator[Finding]:
        for finding in kernel_checks.rights(userxattr=self._patient.userxattr):
            self._may_mount = finding.level is Level.OK
            yield finding

    def _probe(self) -> Iterator[Finding]:
        if not self._may_mount:
            return  # said already
        self.abilities = probe(self._scratch, userxattr=self._patient.userxattr)
        yield from kernel_checks.overlay_abilities(self.abilities, userxattr=self._patient.userxattr)
        yield from kernel_checks.images()
