#!/bin/bash
# Behind `make test-deb`: the package in a Debian that has nothing else (mmdebstrap), installed by apt, used on a Btrfs on
# a loop device as its README says, and removed and purged again: then nothing of it is left but the store.

. "$(dirname "$0")/../tools/lib.sh"

need_root "the package's test" test-deb
suite=bookworm
"$top/driver-tests/deb/build.sh"
need_packages mmdebstrap btrfs-progs util-linux busybox-static curl
package=$(ls "$target"/debian/*.deb)
work=$target/deb-test
root=$work/root
serve_pid=
finish() {
    local status=$?
    trap - EXIT
    if [ -n "$serve_pid" ]; then
        kill "$serve_pid" 2>/dev/null || true
        wait "$serve_pid" 2>/dev/null || true
    fi
    for _ in $(seq 50); do
        awk -v a="$root/" 'index($2, a) == 1 { print $2 }' /proc/mounts | tac |
            while read -r at; do umount "$at" 2>/dev/null || true; done
        grep -qF " $root/" /proc/mounts || break
        sleep 0.2
    done
    grep -qF " $root/" /proc/mounts || rm -rf "$root" "$work/disk"
    [ "$status" = 0 ] || printf '\nthe test failed (status %s)\n' "$status" >&2
    exit "$status"
}
trap finish EXIT
rm -rf "$root"
mkdir -p "$work"

step "A clean Debian ($suite)"
base=$work/$suite.tar
[ -e "$base" ] || run mmdebstrap --quiet --variant=apt --include=systemd,ca-certificates "$suite" "$base"
mkdir "$root"
tar -C "$root" --numeric-owner -xf "$base"
cp "$package" "$root/root/reflinkd.deb"
cp /bin/busybox "$root/root/"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t devtmpfs devtmpfs "$root/dev" 2>/dev/null || mount --bind /dev "$root/dev"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
clean_env=(/usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive)
inside() { chroot "$root" "${clean_env[@]}" "$@"; }
before=$(inside dpkg-query -W -f '${Package}\n' | sort)
files() { (cd "$root" && find etc usr lib var -xdev \( -path var/lib/apt -o -path var/cache -o -path var/log -o -path var/lib/dpkg -o -path var/lib/reflinkd \) -prune -o -print | sort); }
files >"$work/files.before"

step "Installed"
inside apt-get install -y -qq --no-install-recommends /root/reflinkd.deb >"$work/apt.log" 2>&1 || { tail "$work/apt.log"; exit 1; }
inside reflinkd --version
note "new packages: $(comm -13 <(echo "$before") <(inside dpkg-query -W -f '${Package}\n' | sort) | tr '\n' ' ')"
for path in usr/bin/reflinkd usr/share/man/man1/reflinkd.1.gz usr/share/man/man1/reflinkd-serve.1.gz \
    usr/share/bash-completion/completions/reflinkd usr/share/zsh/vendor-completions/_reflinkd \
    usr/share/doc/reflinkd/docs/docker.md; do
    found=$(ls "$root/$path"* 2>/dev/null) || die "the package has no /$path"
    note "${found#"$root"}"
done
for unit in reflinkd.service reflinkd-snapshot.service reflinkd-snapshot.timer; do
    at=$(ls "$root/lib/systemd/system/$unit" "$root/usr/lib/systemd/system/$unit" 2>/dev/null | head -n 1)
    [ -n "$at" ] || die "the package has no $unit"
    inside systemd-analyze verify --man=no "${at#"$root"}"
    ! ls "$root"/etc/systemd/system/*/"$unit" >/dev/null 2>&1 || die "$unit is enabled by the installation"
    note "$unit: systemd minds nothing, and it is off"
done

step "Used"
truncate -s 2G "$work/disk"
mkfs.btrfs -q -f "$work/disk"
mkdir -p "$root/var/lib/reflinkd"
mount -o loop "$work/disk" "$root/var/lib/reflinkd"
inside reflinkd init
mkdir "$work/tree" 2>/dev/null || true
mkdir -p "$work/tree/bin"
cp /bin/busybox "$work/tree/bin/sh"
tar -C "$work/tree" -c . | inside reflinkd import - base
rm -rf "$work/tree"
inside reflinkd create --image base web1 >/dev/null
[ "$(inside chroot "$(inside reflinkd mount web1)" /bin/sh -c 'echo hello')" = hello ] || die "nothing runs in the container"
# Not by the function, which would be a shell around it.
chroot "$root" "${clean_env[@]}" reflinkd serve &
serve_pid=$!
socket=$root/run/docker/plugins/reflinkd.sock
for _ in $(seq 100); do [ ! -S "$socket" ] || break; sleep 0.1; done
# The path may be longer than a socket's name can be.
cd "$root/run/docker/plugins"
answer=$(curl -sS --unix-socket reflinkd.sock -X POST http://d/Plugin.Activate)
cd "$top"
[ "$answer" = '{"Implements":["GraphDriver"]}' ] || die "serve answered: $answer"
note "it makes containers, and answers Docker: $answer"
kill "$serve_pid"
wait "$serve_pid"
serve_pid=

step "Removed"
inside apt-get purge -y -qq reflinkd >"$work/apt.log" 2>&1 || { tail "$work/apt.log"; exit 1; }
umount "$root/var/lib/reflinkd"
inside apt-get autoremove -y -qq --purge >>"$work/apt.log" 2>&1
files >"$work/files.after"
left=$(comm -13 "$work/files.before" "$work/files.after" | grep -v -e '^var/lib/systemd/deb-systemd-helper' -e '\.cache$' || true)
[ -z "$left" ] || die "the package leaves these: $left"
[ "$(inside dpkg-query -W -f '${Package}\n' | sort)" = "$before" ] || die "other packages are there than before"
mount -o loop "$work/disk" "$root/var/lib/reflinkd"
[ -e "$root/var/lib/reflinkd/store.json" ] || die "the store is gone with the package"
note "nothing is left of it but the store"
