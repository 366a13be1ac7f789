"""What this kernel and this process may do: found by trying, but for the few kernels that are known to crash or lie."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mkmeta.errors import MountError, reason
from mkmeta.host.finding import Finding, failure, note, ok, warning
from mkmeta.linux.mount import FilesystemContext
from mkmeta.mounts.image import IMAGE_TYPE
from mkmeta.mounts.probe import Abilities
from mkmeta.mounts.profile import Profile

_LOOP_CONTROL = Path("/dev/loop-control")
_CAP_SYS_ADMIN = 1 << 21  # linux/capability.h
_ALL_IDS = ["0", "0", "4294967295"]  # /proc/self/uid_map of the initial user namespace
_EXPORTS = Path("/sys/module/overlay/parameters/nfs_export")
_SELINUX = Path("/sys/fs/selinux/enforce")
_BETTER_KERNEL = "boot a newer kernel ({version}), or go without"

_PROFILE_NEEDS: Final = {
    Profile.NESTED: "Linux 6.7, or 5.14 of RHEL 9.5; 6.16 with user.* layers",
    Profile.MERGE: "Linux 4.19 with overlayfs",
    Profile.DATA_ONLY: "Linux 6.5; 6.16 with user.* layers",
    Profile.UPPER: "Linux 4.19 with overlayfs",
}


def rights(*, userxattr: bool) -> Iterator[Finding]:
    """Whether this process may mount, and which layers."""
    status = Path("/proc/self/status").read_text()
    capabilities = int(re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    initial = Path("/proc/self/uid_map").read_text().split() == _ALL_IDS
    yield rights_finding(may_mount=bool(capabilities & _CAP_SYS_ADMIN), initial=initial, userxattr=userxattr)


def rights_finding(*, may_mount: bool, initial: bool, userxattr: bool) -> Finding:
    """`initial`: in the initial user namespace."""
    if not may_mount:
        return failure(
            "rights",
            "this process may not mount (no CAP_SYS_ADMIN)",
            "run doctor as root; an ordinary user needs namespaces: "
            "unshare --user --map-root-user --mount mkmeta doctor --userxattr",
        )
    if initial:
        return ok("rights", "this process may mount (CAP_SYS_ADMIN in the initial user namespace)")
    if userxattr:
        return ok("rights", "this process may mount layers built with --userxattr (a user namespace of its own)")
    return failure(
        "rights",
        "trusted.* attributes do not exist in a user namespace: files of a layer would read as zeros",
        "run as root on the host, or build layers with --userxattr and give it to doctor too",
    )


def run_directory(given: bytes | None, runtime_dir: bytes | None) -> Iterator[Finding]:
    """Whether mkmeta can keep its inner mounts and locks here; makes nothing."""
    places = [given] if given is not None else [b"/run/mkmeta", *([runtime_dir + b"/mkmeta"] if runtime_dir else [])]
    for place in places:
        existing = os.path.abspath(place)
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        if os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK):
            yield ok("run-dir", "inner mounts and locks can be kept here", path=place)
            return
    yield failure(
        "run-dir", "cannot be made or written to", "name a directory you may write to with --run-dir", path=places[0]
    )


def overlay_abilities(able: Abilities, *, userxattr: bool) -> Iterator[Finding]:
    """What the probe found out."""
    for profile in Profile:
        if userxattr and profile in (Profile.MERGE, Profile.UPPER):
            continue  # they cannot follow the redirects of a user.* layer
        yield _profile(profile, able)
    try:
        best = able.best()
    except MountError as error:
        yield failure(
            "profile-auto",
            f"no profile works that lets the volume show through: {error.message}",
            "boot Linux 6.7 or newer with overlayfs (6.16 for user.* layers); a container needs CAP_SYS_ADMIN",
        )
    else:
        lost = f", and without nested {best.lacks}" if best.lacks else ""
        yield ok("profile-auto", f"`activate` takes {best}{lost}")
        if best is Profile.NESTED:
            yield note(
                "containers",
                "nested mounts use the kernel's whole stacking depth: no overlay can have one as a layer",
                "give containers a bind mount (rslave, of the directory above the mount point); or use --profile merge",
            )
        elif best is Profile.MERGE:
            yield note(
                "merge-costs",
                "a layer without content is a loss for programs that open what they look for: merge looks files up on "
                "the volume as well, which is more requests than without a layer",
                "scan with --inline 64K: what is whole in a layer is looked up nowhere else; or boot Linux 6.7",
            )
    if not able.beneath:
        yield warning(
            "switching",
            f"a mount cannot be exchanged in one step: {_why(able, 'beneath')}",
            "boot Linux 6.5 or newer; `activate --allow-gap` takes the old mount away first, for an instant",
        )
    else:
        yield ok("switching", "a new layer replaces the old one without a gap (MOVE_MOUNT_BENEATH)")
    yield _feature(
        able,
        able.verity,
        "verity",
        "verity-option",
        "the mount option verity is known; it takes a volume with fs-verity",
        "6.6",
        "--verity cannot be used",
    )
    yield _feature(
        able,
        able.by_descriptor,
        "descriptor",
        "layers-by-descriptor",
        "layers are passed as descriptors: their paths may have any length",
        "6.13",
        "layers are passed as paths, of at most 255 bytes each",
    )
    yield _feature(
        able,
        able.refresh,
        "refresh",
        "refresh",
        "names that were not found can be forgotten without a new mount (fspick)",
        "5.2",
        "`refresh` has to use mount(2)",
    )


def images() -> Iterator[Finding]:
    """Whether layers that are images can be mounted: fsopen(2) loads the module where there is one."""
    try:
        with FilesystemContext.open(IMAGE_TYPE):
            pass
    except OSError as error:
        yield note(
            "images",
            f"EROFS images cannot be mounted: {reason(error)}",
            "load or install the module erofs, or build directories; it takes root outside of user namespaces",
        )
        return
    if os.path.exists(_LOOP_CONTROL):
        yield ok("images", "EROFS images can be mounted")
    else:
        yield note(
            "images",
            "EROFS images can be mounted as they are only, by Linux 6.12 and not from tmpfs: there are no loop devices",
            "load the module loop",
        )


def _profile(profile: Profile, able: Abilities) -> Finding:
    identifier = f"profile-{profile}"
    if profile in able.profiles:
        lost = f"; {profile.lacks}" if profile.lacks else ": lookups, stats and listings are local"
        return ok(identifier, f"{profile} mounts work{lost}")
    message = f"{profile} mounts do not work: {_why(able, profile)}"
    hint = _BETTER_KERNEL.format(version=_PROFILE_NEEDS[profile])
    return (warning if profile is Profile.NESTED else note)(identifier, message, hint)


def _feature(
    able: Abilities, works: bool, name: str, identifier: str, message: str, version: str, lacking: str
) -> Finding:
    if works:
        return ok(identifier, message)
    return note(identifier, f"{lacking} ({_why(able, name)})", _BETTER_KERNEL.format(version=f"Linux {version}"))


def _why(able: Abilities, name: str) -> str:
    return able.failures.get(name, "unknown")


def verity_defects(release: str) -> Iterator[Finding]:
    """Kernels that are known to misread fs-verity, by `uname -r`: nothing but the version tells them."""
    if re.match(r"7\.0(?!\d)", release):
        yield warning(
            "kernel-verity",
            f"Linux {release} may say that a file has no fs-verity although it has (early 7.0)",
            "leave --verity away, or boot another kernel",
        )
    else:
        yield ok("kernel-verity", f"Linux {release} is not known to read fs-verity wrongly")


def nfs_defects(release: str, version: str, nfs_version: str | None) -> Iterator[Finding]:
    """Kernels that are known to crash, or were not tested, with data on NFS; `nfs_version` None: not known."""
    major_minor = re.match(r"\d+\.\d+", release)
    kernel = major_minor[0] if major_minor else release
    ubuntu = "ubuntu" in version.lower()
    if nfs_version is not None and not nfs_version.startswith("4"):
        yield ok("kernel-nfs", f"Linux {release} is not known to crash with NFSv{nfs_version}")
    elif kernel == "5.15" and ubuntu:
        level = warning if nfs_version is None else failure
        yield level(
            "kernel-nfs",
            f"Ubuntu's Linux {release} crashes when a file of a layer is read from NFSv4 (nfs4_file_open)",
            "boot the hardware enablement kernel (6.5 or newer) before mounting a layer over NFSv4",
        )
    elif kernel in ("5.15", "5.14", "4.18"):
        yield note(
            "kernel-nfs",
            f"Linux {release} was not tested over NFSv4, and Ubuntu's 5.15 crashes there",
            "try it on one host that may crash: mount, then read one file of the layer",
        )
    else:
        yield ok("kernel-nfs", f"Linux {release} is not known to crash with layers over NFSv4")


def nfs_export(*, userxattr: bool) -> Iterator[Finding]:
    """Whether overlays can be exported over NFS by default: above data-only layers, such clients may read zeros."""
    try:
        exported = _EXPORTS.read_text().strip() == "Y"
    except FileNotFoundError:
        return  # no overlayfs, or built without parameters
    if exported and userxattr:
        yield warning(
            "nfs-export",
            "overlayfs has nfs_export=on by default here: exported by NFS, such a mount may answer with zeros",
            "set the option nfs_export=N of the module overlay (/etc/modprobe.d)",
        )
    else:
        yield ok("nfs-export", "mounts of layers cannot be exported by NFS")


def selinux() -> Iterator[Finding]:
    """Whether SELinux enforces."""
    try:
        enforcing = _SELINUX.read_text().strip() == "1"
    except FileNotFoundError:
        enforcing = False
    except OSError as error:
        yield note("selinux", f"whether SELinux enforces cannot be read: {reason(error)}", "run doctor as root")
        return
    if enforcing:
        yield note(
            "selinux",
            "SELinux enforces; layers were not tested with it",
            "after the first mount look for denials (ausearch -m avc)",
        )
    else:
        yield ok("selinux", "SELinux does not enforce")
