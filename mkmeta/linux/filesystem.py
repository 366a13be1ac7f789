"""What the kernel says in /proc of the filesystem behind a descriptor."""

from __future__ import annotations


def filesystem_type(fd: int) -> str:
    """The type as in /proc/filesystems: `ext4`, `xfs`, `nfs4`; "this filesystem" where /proc does not tell."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            mount_id = next(line.split()[1] for line in file if line.startswith(b"mnt_id:"))
        with open("/proc/self/mountinfo", "rb") as file:
            fields = next(line.split() for line in file if line.split(None, 1)[0] == mount_id)
    except (OSError, StopIteration):
        return "this filesystem"
    return fields[fields.index(b"-") + 1].decode(errors="replace")
