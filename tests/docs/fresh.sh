#!/bin/sh
# fresh.sh STATE SCRIPT: runs SCRIPT as root of a host that has never seen mkmeta: this machine's system, seen through an
# overlay in a mount namespace of its own. What it writes goes to STATE; nothing of it is seen outside. A volume is mounted
# at /mnt/sw. To be started by `unshare --mount`.
set -eu
state=$1 script=$2 here=$(pwd)
mount --make-rprivate /
mkdir -p "$state/disk" "$state/work" "$state/root" "$state/lib" "$state/volume"
mount -t overlay host -o "lowerdir=/,upperdir=$state/disk,workdir=$state/work" "$state/root"
root=$state/root
mkdir -p "$root/mnt/sw" "$root$here"
mount --bind "$state/lib" "$root/var/lib"  # an overlay cannot be the upper part of another
mount --bind "$state/volume" "$root/mnt/sw"
mount -o remount,bind,nodev "$root/mnt/sw"
for directory in "$here" $BINDS; do
    mkdir -p "$root$directory"
    mount --rbind "$directory" "$root$directory"
done
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
exec chroot "$root" /bin/sh -euc "cd / && . '$script'"
