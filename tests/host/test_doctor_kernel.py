"""What doctor says of kernels: from what a probe found, and from the few version strings it believes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mkmeta.errors import MountError
from mkmeta.host import kernel_checks
from mkmeta.host.bounded import bounded
from mkmeta.host.finding import Check, Finding, Level, findings_of, ok
from mkmeta.mounts.probe import Abilities
from mkmeta.mounts.profile import Profile

ALL = frozenset(Profile)
SHORT = {Level.OK: "", Level.NOTE: "note", Level.WARNING: "warning", Level.FAILURE: "failure"}


def levels(found: Iterator[Finding]) -> dict[str, str]:
    """What is not well, by identifier; every such finding says what to do."""
    listed = list(found)
    assert all(finding.hint for finding in listed if finding.level is not Level.OK)
    assert all(not finding.message.endswith(".") for finding in listed)
    return {finding.id: SHORT[finding.level] for finding in listed if finding.level is not Level.OK}


@pytest.mark.parametrize(
    ("able", "userxattr", "expected"),
    [
        (
            Abilities(profiles=ALL, verity=True, beneath=True, by_descriptor=True, refresh=True),
            False,
            {"containers": "note"},
        ),
        (
            Abilities(profiles=frozenset({Profile.MERGE, Profile.UPPER}), refresh=True, failures={"beneath": "x"}),
            False,
            {
                "profile-nested": "warning",
                "profile-data-only": "note",
                "merge-costs": "note",
                "switching": "warning",
                "verity-option": "note",
                "layers-by-descriptor": "note",
            },
        ),
        (
            Abilities(profiles=frozenset({Profile.DATA_ONLY}), verity=True, beneath=True, by_descriptor=True),
            False,
            {
                "profile-nested": "warning",
                "profile-merge": "note",
                "profile-upper": "note",
                "profile-auto": "failure",
                "refresh": "note",
            },
        ),
        (
            Abilities(profiles=frozenset({Profile.NESTED, Profile.DATA_ONLY}), beneath=True, refresh=True),
            True,
            {"containers": "note", "verity-option": "note", "layers-by-descriptor": "note"},
        ),
        (
            Abilities(),
            True,
            {
                "profile-nested": "warning",
                "profile-data-only": "note",
                "profile-auto": "failure",
                "switching": "warning",
                "verity-option": "note",
                "layers-by-descriptor": "note",
                "refresh": "note",
            },
        ),
    ],
)
def test_what_the_probe_found(able: Abilities, userxattr: bool, expected: dict[str, str]) -> None:
    assert levels(kernel_checks.overlay_abilities(able, userxattr=userxattr)) == expected


def test_what_is_lost_without_nested() -> None:
    able = Abilities(profiles=frozenset({Profile.MERGE}), failures={Profile.NESTED: "no such option"})
    found = {finding.id: finding for finding in kernel_checks.overlay_abilities(able, userxattr=False)}
    assert "no such option" in found["profile-nested"].message
    assert "the first stat of every file asks the volume" in found["profile-auto"].message
    assert "more requests than without a layer" in found["merge-costs"].message
    assert "--inline" in (found["merge-costs"].hint or "")


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_checks, "_LOOP_CONTROL", tmp_path / "none")
    monkeypatch.setattr(kernel_checks, "IMAGE_TYPE", b"tmpfs")
    assert levels(kernel_checks.images()) == {"images": "note"}
    monkeypatch.setattr(kernel_checks, "_LOOP_CONTROL", tmp_path)
    assert levels(kernel_checks.images()) == {}
    monkeypatch.setattr(kernel_checks, "IMAGE_TYPE", b"nosuchfs")
    assert levels(kernel_checks.images()) == {"images": "note"}


@pytest.mark.parametrize(
    ("may_mount", "initial", "userxattr", "level", "word"),
    [
        (True, True, False, Level.OK, "initial"),
        (True, True, True, Level.OK, "initial"),
        (True, False, True, Level.OK, "user namespace"),
        (True, False, False, Level.FAILURE, "zeros"),
        (False, True, False, Level.FAILURE, "CAP_SYS_ADMIN"),
        (False, False, True, Level.FAILURE, "CAP_SYS_ADMIN"),
    ],
)
def test_rights(may_mount: bool, initial: bool, userxattr: bool, level: Level, word: str) -> None:
    found = kernel_checks.rights_finding(may_mount=may_mount, initial=initial, userxattr=userxattr)
    assert (found.level, word in found.message) == (level, True)


UBUNTU = "#213-Ubuntu SMP Thu Aug 14 12:00:00 UTC 2026"
DEBIAN = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-1"


@pytest.mark.parametrize(
    ("release", "version", "nfs", "expected"),
    [
        ("5.15.0-203-generic", UBUNTU, "4.2", "failure"),
        ("5.15.0-203-generic", UBUNTU, "4.1", "failure"),
        ("5.15.0-203-generic", UBUNTU, None, "warning"),
        ("5.15.0-203-generic", UBUNTU, "3", ""),
        ("5.15.180", "#1 SMP", "4.2", "note"),
        ("5.14.0-503.el9.x86_64", "#1 SMP", None, "note"),
        ("4.18.0-553.el8_10.x86_64", "#1 SMP", "4.0", "note"),
        ("6.1.0-40-amd64", DEBIAN, "4.2", ""),
        ("6.8.0-149-generic", UBUNTU, "4.2", ""),
        ("6.15.0", "#1 SMP", "4.2", ""),
        ("5.150.1", UBUNTU, "4.2", ""),
    ],
)
def test_kernels_that_crash_over_nfs(release: str, version: str, nfs: str | None, expected: str) -> None:
    found = levels(kernel_checks.nfs_defects(release, version, nfs))
    assert found == ({"kernel-nfs": expected} if expected else {})


@pytest.mark.parametrize(
    ("release", "lies"),
    [("7.0.0", True), ("7.0.3-arch1", True), ("7.0", True), ("7.2.12", False), ("6.7.0", False), ("17.0.1", False)],
)
def test_kernels_that_misread_verity(release: str, lies: bool) -> None:
    assert levels(kernel_checks.verity_defects(release)) == ({"kernel-verity": "warning"} if lies else {})


@pytest.mark.parametrize(
    ("content", "userxattr", "expected"),
    [("Y\n", True, {"nfs-export": "warning"}), ("Y\n", False, {}), ("N\n", True, {}), (None, True, {})],
)
def test_nfs_export(
    content: str | None,
    userxattr: bool,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parameter = tmp_path / "nfs_export"
    if content is not None:
        parameter.write_text(content)
    monkeypatch.setattr(kernel_checks, "_EXPORTS", parameter)
    assert levels(kernel_checks.nfs_export(userxattr=userxattr)) == expected


@pytest.mark.parametrize(("content", "expected"), [("1", {"selinux": "note"}), ("0", {}), (None, {})])
def test_selinux(
    content: str | None, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "enforce").write_text(content)
    monkeypatch.setattr(kernel_checks, "_SELINUX", tmp_path / "enforce")
    assert levels(kernel_checks.selinux()) == expected


def test_run_directory(tmp_path: Path) -> None:
    missing, file = os.fsencode(tmp_path / "a" / "b"), os.fsencode(tmp_path / "file")
    (tmp_path / "file").touch()
    assert levels(kernel_checks.run_directory(missing, None)) == {}
    assert levels(kernel_checks.run_directory(file + b"/x", None)) == {"run-dir": "failure"}
    assert os.listdir(tmp_path) == ["file"]


# --- the frame around checks ---


def test_an_error_nobody_foresaw_is_a_finding() -> None:
    def broken() -> Iterator[Finding]:
        yield ok("broken", "so far")
        raise OSError(5, "Input/output error", b"/mnt/sw/x")

    def refused() -> Iterator[Finding]:
        raise MountError("no", path=b"/p")
        yield

    first, second = findings_of(Check("broken", broken))
    assert (first.level, second.level, second.path) == (Level.OK, Level.WARNING, b"/mnt/sw/x")
    assert "input/output error" in second.message
    (only,) = findings_of(Check("refused", refused))
    assert (only.level, only.path, bool(only.hint)) == (Level.FAILURE, b"/p", True)


def children() -> set[int]:
    """Those of this thread; an earlier test may have left some that could not die at once."""
    return set(map(int, Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()))


def test_a_check_that_hangs_is_left() -> None:
    def hangs() -> Iterator[Finding]:
        yield ok("hangs", "asked")
        time.sleep(1000)

    before = children()
    found = list(bounded([Check("good", lambda: [ok("good", "yes")]), Check("hangs", hangs)], seconds=0.3))
    assert [(finding.id, finding.level) for finding in found] == [
        ("good", Level.OK),
        ("hangs", Level.OK),
        ("hangs", Level.FAILURE),
    ]
    assert "no answer" in found[-1].message
    assert children() <= before


def test_a_check_that_dies_is_noticed(capfd: pytest.CaptureFixture[str]) -> None:
    def dies() -> Iterator[Finding]:
        raise ValueError("a bug")
        yield

    (found,) = bounded([Check("dies", dies)])
    assert (found.id, found.level) == ("dies", Level.FAILURE)
    assert "a bug" in capfd.readouterr().err
