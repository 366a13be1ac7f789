"""A mode in place of an ACL allows nobody more than the ACL does: as the kernel says, for random ACLs and users."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest

from mkmeta.codec.acl import Tag, mode_without_acl

IDS = [1001, 1002, 1003]  # of users and groups alike
OWNER, GROUP = 1001, 1001


def random_acl(chance: random.Random) -> bytes:
    """An ACL as acl_valid(3) wants it: entries by kind and ID, a mask where one is named."""
    entries = [(Tag.USER_OBJ, chance.randrange(8), 0xFFFFFFFF)]
    users = sorted(chance.sample(IDS, chance.randrange(3)))
    groups = sorted(chance.sample(IDS, chance.randrange(3)))
    entries += [(Tag.USER, chance.randrange(8), user) for user in users]
    entries.append((Tag.GROUP_OBJ, chance.randrange(8), 0xFFFFFFFF))
    entries += [(Tag.GROUP, chance.randrange(8), group) for group in groups]
    if users or groups or chance.randrange(2):
        entries.append((Tag.MASK, chance.randrange(8), 0xFFFFFFFF))
    entries.append((Tag.OTHER, chance.randrange(8), 0xFFFFFFFF))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def allowed(files: list[Path], user: int, group: int, groups: list[int]) -> list[set[int]]:
    """What somebody may do with files: read 4, write 2, execute 1."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setgroups(groups)
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        found = [bytes(bit for bit in (4, 2, 1) if os.access(file, bit)) for file in files]
        os.write(writer, b"\0".join(b"|" + bits for bits in found))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answers = pipe.read().split(b"\0")
    assert os.waitpid(child, 0)[1] == 0
    return [set(answer[1:]) for answer in answers]


@pytest.mark.needs("root")
def test_nobody_may_more(tmp_path: Path) -> None:
    chance = random.Random(20261126)
    tmp_path.chmod(0o755)
    with_acl, with_mode = [], []
    for number in range(60):
        one, other = tmp_path / f"acl{number}", tmp_path / f"mode{number}"
        for file in (one, other):
            file.touch()
            os.chown(file, OWNER, GROUP)
        acl = random_acl(chance)
        os.setxattr(one, "system.posix_acl_access", acl)
        other.chmod(mode_without_acl(one.stat().st_mode, acl) & 0o7777)
        assert other.stat().st_mode & 0o700 == one.stat().st_mode & 0o700
        with_acl.append(one)
        with_mode.append(other)
    lost = 0
    for user in [*IDS, 1004]:
        for _ in range(8):
            group, groups = chance.choice([*IDS, 1004]), chance.sample(IDS, chance.randrange(3))
            may, may_now = (allowed(files, user, group, groups) for files in (with_acl, with_mode))
            for file, before, after in zip(with_acl, may, may_now, strict=True):
                assert after <= before, (file, user, group, groups)
                lost += len(before - after)
    assert lost < 60 * 32, "and not just nothing"


@pytest.mark.parametrize(
    "acl", [b"", b"\2\0\0\0", b"\1\0\0\0" + bytes(24), b"\2\0\0\0" + bytes(7), b"\2\0\0\0" + bytes(24)]
)
def test_what_is_no_acl(acl: bytes) -> None:
    with pytest.raises(ValueError, match="ACL"):
        mode_without_acl(0o100644, acl)
