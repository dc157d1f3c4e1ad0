#!/bin/bash
# machine.sh ROOT DISK PROGRAM UNIT TOP TARGET: a machine of its own, whose first process is this host's systemd. To be called as first
# process of new namespaces (unshare in run.sh); ends with the last of them. All of /usr is the host's, and read-only; what is
# below TOP and TARGET is where it is on the host; the filesystem on DISK is mounted where the store is to be.

set -euo pipefail
root=$1 disk=$2 program=$3 unit=$4 top=$5 target=$6

mount --make-rprivate /
mount -t tmpfs -o mode=755 machine "$root"
cd "$root"
mkdir -p usr etc/systemd/system proc sys dev run tmp root var/lib/reflinkd var/log var/tmp opt/reflinkd/bin
chmod 1777 tmp var/tmp
for name in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$name" ]; then cp -a "/$name" .; elif [ -d "/$name" ]; then mkdir "$name" && mount --bind "/$name" "$name"; fi
done
mount --bind /usr usr
mount -o remount,bind,ro usr
# The loader's cache, names of users, and what programs are called by (update-alternatives).
cp -a /etc/ld.so.c* /etc/passwd /etc/group /etc/nsswitch.conf /etc/alternatives /etc/os-release etc/ 2>/dev/null || true
cp /etc/mke2fs.conf etc/ 2>/dev/null || true
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs -o mode=755 run run
for path in "$top" "$target"; do
    mkdir -p ".$path"
    mount --rbind "$path" ".$path"
done
mount -o loop "$disk" var/lib/reflinkd
cp "$program" opt/reflinkd/bin/reflinkd
# As `make install PREFIX=/opt/reflinkd` does.
sed 's,/usr/bin/,/opt/reflinkd/bin/,' "$unit" >etc/systemd/system/reflinkd.service
# Nothing of this host's but what a service depends on by itself.
printf '[Unit]\nDescription=Nothing\n' >etc/systemd/system/nothing.target
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-modules-load.service systemd-sysctl.service \
    systemd-timesyncd.service systemd-networkd.service systemd-resolved.service systemd-logind.service dbus.service dbus.socket \
    getty.target systemd-remount-fs.service; do
    ln -s /dev/null "etc/systemd/system/$unit"
done
mkdir old
pivot_root . old
umount -l /old
rmdir /old
exec env -i container=reflinkd-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=nothing.target --show-status=no --log-target=console --log-level=warning
