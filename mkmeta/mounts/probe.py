"""What this kernel can mount, found out by mounting two tiny trees in a mount namespace of the probe's own.

Version numbers say little: distributions carry features back, and sandboxes take them away.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from mkmeta.codec.metacopy import encode_metacopy, encode_redirect
from mkmeta.errors import MkmetaError, MountError, reason
from mkmeta.linux.asking import Asked
from mkmeta.linux.mount import FilesystemContext, MountFlags, leave_mount_namespace, mount, move_mount
from mkmeta.mounts.overlay import closing, make
from mkmeta.mounts.profile import MountPlan, Profile, Verity
from mkmeta.mounts.run import RunDirectory
from mkmeta.overlay_xattrs import OPAQUE_VALUE, OverlayXattrs, overlay_xattrs

_DATA = b"data\n"
_MTIME = 1_000_000_000  # seconds; recorded in the layer only


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What worked. `failures` says why the rest did not, by the same names."""

    profiles: frozenset[Profile] = frozenset()
    verity: bool = False  # the option is taken; whether the volume has fs-verity is another matter
    beneath: bool = False  # MOVE_MOUNT_BENEATH: mounts can be exchanged without a gap
    by_descriptor: bool = False  # layers are taken as open files: no limit on paths
    refresh: bool = False  # fspick(2)
    failures: dict[str, str] = field(default_factory=dict)

    def best(self) -> Profile:
        """The profile `auto` stands for. Raises MountError."""
        for profile in (Profile.NESTED, Profile.MERGE):
            if profile in self.profiles:
                return profile
        why = self.failures.get(Profile.MERGE) or "unknown"
        raise MountError(f"this kernel can mount no layer with fall-through: {why}", hint="see `mkmeta doctor`")


def probe(run: RunDirectory, *, userxattr: bool = False) -> Abilities:
    """Tries everything, for layers in one xattr namespace. Raises MountError when nothing can be mounted at all."""
    with run.scratch() as directory:
        found, failures = _in_child(lambda: _try_all(directory, run, userxattr=userxattr))
    return Abilities(
        profiles=frozenset(profile for profile in Profile if profile in found),
        verity="verity" in found,
        beneath="beneath" in found,
        by_descriptor="descriptor" in found,
        refresh="refresh" in found,
        failures=failures,
    )


def _in_child(work: Callable[[], tuple[list[str], dict[str, str]]]) -> tuple[list[str], dict[str, str]]:
    """The result of `work` in a child with a mount namespace of its own: its mounts end with it."""
    try:
        with Asked(lambda: _apart(work), alone=True) as asked:
            found, failures = asked.answer(None)
    except ChildProcessError:
        raise MountError("the probe of what this kernel can mount died") from None
    if "namespace" in failures:
        raise MountError(
            f"nothing can be mounted here: {failures['namespace']}",
            hint="mounting takes root, or namespaces of one's own: unshare --user --map-root-user --mount",
        )
    return found, failures


def _apart(work: Callable[[], tuple[list[str], dict[str, str]]]) -> tuple[list[str], dict[str, str]]:
    """In the child."""
    try:
        leave_mount_namespace()
        return work()
    except OSError as error:
        return [], {"namespace": reason(error)}


def _try_all(top: bytes, run: RunDirectory, *, userxattr: bool) -> tuple[list[str], dict[str, str]]:
    mount(b"mkmeta-probe", top, b"tmpfs", 0)
    found: list[str] = []
    failures: dict[str, str] = {}

    def attempt(name: str, work: Callable[[], str | None]) -> None:
        """Notes whether something works: it returns what was wrong."""
        try:
            wrong = work()
        except OSError as error:
            wrong = f"{reason(error)}"
        except MkmetaError as error:
            wrong = error.message
        if wrong is None:
            found.append(name)
        else:
            failures[name] = wrong

    names = overlay_xattrs(userxattr=userxattr)
    try:
        _make_trees(top, names)
    except OSError as error:
        return [], dict.fromkeys(Profile, f"{names.prefix.decode()}* attributes cannot be set here: {reason(error)}")
    for profile in Profile:
        attempt(profile, lambda profile=profile: _try_profile(top, run, profile, userxattr=userxattr))  # type: ignore[misc]
    able = Profile.DATA_ONLY if Profile.DATA_ONLY in found else Profile.MERGE
    attempt("verity", lambda: _try_verity(top, run, able, userxattr=userxattr))
    attempt("descriptor", lambda: _try_descriptor(top))
    attempt("beneath", lambda: _try_beneath(top))
    attempt("refresh", lambda: _try_refresh(top))
    return found, failures


def _make_trees(top: bytes, names: OverlayXattrs) -> None:
    """A volume, and a layer with an opaque directory and a metacopy file in it."""
    for name in (b"volume/dir", b"layer/dir", b"work", b"inner", b"point"):
        os.makedirs(top + b"/" + name)
    for name in (b"volume/dir/file", b"volume/dir/hidden", b"volume/through"):
        with open(top + b"/" + name, "wb") as file:
            file.write(_DATA)
    path = top + b"/layer/dir/file"
    with open(path, "wb") as file:
        file.truncate(len(_DATA))
    os.setxattr(path, names.metacopy, encode_metacopy(None))
    os.setxattr(path, names.redirect, encode_redirect(b"dir/file"))
    os.utime(path, (_MTIME, _MTIME))
    for name in (names.opaque, names.escaped_opaque):
        os.setxattr(top + b"/layer/dir", name, OPAQUE_VALUE)


def _plan(top: bytes, profile: Profile, *, userxattr: bool, verity: Verity = Verity.OFF) -> MountPlan:
    return MountPlan(
        profile=profile,
        layer=top + b"/layer",
        lower=top + b"/volume",
        short_id=b"probe",
        work=top + b"/work",
        userxattr=userxattr,
        verity=verity,
    )


def _try_profile(top: bytes, run: RunDirectory, profile: Profile, *, userxattr: bool) -> str | None:
    plan = _plan(top, profile, userxattr=userxattr)
    inner = plan.inner()
    if inner is not None:
        with closing(make(inner, run.scratch)) as fd:
            move_mount(fd, top + b"/inner")
    with closing(make(plan.outer(top + b"/inner"), run.scratch)) as fd:
        return _wrong(fd, closed=profile is Profile.DATA_ONLY)


def _wrong(fd: int, *, closed: bool) -> str | None:
    """What is wrong with the probe's trees, mounted; None when all is well."""
    if int(os.stat(b"dir/file", dir_fd=fd).st_mtime) != _MTIME:
        return "the layer's attributes do not show"
    file = os.open(b"dir/file", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)
    with open(file, "rb") as stream:
        if stream.read() != _DATA:
            return "a file of the layer does not have the volume's data"
    with closing(os.open(b"dir", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)) as directory:
        if os.listdir(directory) != ["file"]:
            return "a complete directory of the layer is still searched on the volume"
    if not closed:
        os.stat(b"through", dir_fd=fd)
    return None


def _try_verity(top: bytes, run: RunDirectory, profile: Profile, *, userxattr: bool) -> None:
    plan = _plan(top, profile, userxattr=userxattr, verity=Verity.ON)
    os.close(make(plan.inner() or plan.outer(b""), run.scratch))


def _try_descriptor(top: bytes) -> None:
    with FilesystemContext.open(b"overlay") as context, closing(os.open(top, os.O_PATH | os.O_CLOEXEC)) as fd:
        context.set_fd(b"lowerdir+", fd)


def _try_beneath(top: bytes) -> None:
    for beneath in (False, True):
        with FilesystemContext.open(b"tmpfs") as context:
            context.create()
            with closing(context.mount(MountFlags(0))) as fd:
                move_mount(fd, top + b"/point", beneath=beneath)


def _try_refresh(top: bytes) -> None:
    with FilesystemContext.pick(top) as context:
        context.reconfigure()
