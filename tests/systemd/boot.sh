#!/bin/sh
# boot.sh STATE UNIT: this machine's own system, booted up to UNIT in namespaces of its own, as a container is. What it
# writes goes to STATE/disk and is there again at the next boot; the machine's own files are only read. STATE/binds has
# lines of a directory and where it is to be seen, with a tab between. To be started as the first process of new pid,
# mount, uts, ipc and cgroup namespaces.
set -eu
state=$1 unit=$2
mount --make-rprivate /
mount -t overlay system -o "lowerdir=/,upperdir=$state/disk,workdir=$state/work" "$state/root"
cd "$state/root"
tab=$(printf '\t')
while IFS=$tab read -r directory where; do
    mkdir -p ".$where"
    mount --bind "$directory" ".$where"
done <"$state/binds"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mount --rbind /dev dev
mount -t tmpfs tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup sys/fs/cgroup
pivot_root . mnt
umount -l /mnt
exec env -i container=mkmeta-tests PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
    /lib/systemd/systemd --system --unit="$unit" --log-target=journal --show-status=false
