"""What doctor says of NFS mounts: from lines of the mount table as clients write them."""

from __future__ import annotations

import pytest

from mkmeta.host.finding import Level
from mkmeta.host.nfs_advice import COSTS, NFS_TYPES, nfs_findings
from mkmeta.linux.mountinfo import parse

LINE = (
    b"36 22 0:45 / /mnt/sw rw,nosuid,relatime shared:20 - %s server:/export/sw ro,vers=%s,rsize=1048576,"
    b"wsize=1048576,namlen=255,%s,proto=tcp,timeo=600,retrans=2,sec=%s,clientaddr=10.0.0.2,local_lock=none,"
    b"addr=10.0.0.1%s"
)
USUAL = {"nfs-cto": "note", "nfs-attribute-cache": "note"}


def levels(
    options: bytes = b"",
    fstype: bytes = b"nfs4",
    vers: bytes = b"4.2",
    hard: bytes = b"hard",
    sec: bytes = b"sys",
    userxattr: bool = False,
) -> dict[str, str]:
    """What is not well of a mount with these options."""
    found = list(nfs_findings(parse(LINE % (fstype, vers, hard, sec, options))[0], userxattr=userxattr))
    assert all(finding.path == b"/mnt/sw" and "{" not in finding.message for finding in found)
    assert all(bool(finding.hint) == (finding.level is not Level.OK) for finding in found)
    identifiers = [finding.id for finding in found]
    assert len(set(identifiers)) == len(identifiers)
    assert {"nfs-version", "nfs-cto", "nfs-attribute-cache", "nfs-lookupcache", "nfs-soft"} <= set(identifiers)
    return {finding.id: finding.level.value for finding in found if finding.level is not Level.OK}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"", USUAL),
        (b",nocto", {"nfs-attribute-cache": "note"}),
        (b",acregmin=600,acregmax=600,acdirmin=600,acdirmax=600", {"nfs-cto": "note"}),
        (b",actimeo=600", {"nfs-cto": "note"}),
        (b",nocto,acregmin=3600,acregmax=3600,acdirmin=3600,acdirmax=3600", {"nfs-pointer": "note"}),
        (b",acregmin=1,acregmax=1,acdirmin=1,acdirmax=1", {"nfs-cto": "note", "nfs-attribute-cache": "warning"}),
        (b",acregmin=0,acregmax=0,acdirmin=0,acdirmax=0,noac", {"nfs-cto": "note", "nfs-attribute-cache": "warning"}),
        (b",lookupcache=none", {**USUAL, "nfs-lookupcache": "warning"}),
        (b",lookupcache=pos", {**USUAL, "nfs-lookupcache": "note"}),
        (b",lookupcache=positive", {**USUAL, "nfs-lookupcache": "note"}),
        (b",acregmax=nonsense", USUAL),
    ],
)
def test_options(options: bytes, expected: dict[str, str]) -> None:
    assert levels(options) == expected


def test_the_rest_of_the_line() -> None:
    assert levels(fstype=b"nfs", vers=b"3") == {**USUAL, "nfs-version": "note"}
    assert levels(vers=b"4.0") == USUAL
    assert levels(hard=b"soft") == {**USUAL, "nfs-soft": "warning"}
    assert levels(hard=b"softerr") == {**USUAL, "nfs-soft": "warning"}
    assert levels(sec=b"krb5p") == {**USUAL, "nfs-security": "warning"}
    assert levels(userxattr=True) == {**USUAL, "nfs-getxattr": "note"}
    assert levels(userxattr=True, vers=b"4.1") == USUAL


def test_numbers_are_those_of_the_mount() -> None:
    found = {
        finding.id: finding.message
        for finding in nfs_findings(
            parse(LINE % (b"nfs4", b"4.1", b"hard", b"sys", b",nocto,acregmin=7,acregmax=900"))[0]
        )
    }
    assert "7 to 900 s" in found["nfs-attribute-cache"]
    assert "NFSv4.1" in found["nfs-version"]
    assert COSTS["nfs-nocto"] in found["nfs-cto"]


def test_every_cost_is_told_somewhere() -> None:
    told = []
    for options in (b"", b",nocto", b",noac", b",lookupcache=none", b",lookupcache=pos"):
        for fstype, version in ((b"nfs", b"3"), (b"nfs4", b"4.2")):
            (line,) = parse(LINE % (fstype, version, b"hard", b"sys", options))
            assert line.fstype in NFS_TYPES
            told += [finding.message for finding in nfs_findings(line, userxattr=True)]
    for cost in COSTS.values():
        assert any(cost.partition("{")[0] in message for message in told), cost
