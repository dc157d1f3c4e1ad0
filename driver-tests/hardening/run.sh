#!/bin/bash
# Behind `make test-hardening`: the unit as it is packaged, in a machine with a systemd of its own (machine.sh). Each setting
# must be in force, as the kernel has it and as a program finds that tries (probe.py); nothing else may be forbidden that serve
# needs: the suites of both doors ask a server that is confined as that service is (confine.py).

. "$(dirname "$0")/../tools/lib.sh"

need_root "the unit's test" test-hardening
find_cargo
need_compiler
need_packages systemd attr btrfs-progs xfsprogs util-linux python3 strace
[ -d /sys/fs/cgroup/unified ] && cgroups=/sys/fs/cgroup/unified || cgroups=/sys/fs/cgroup
[ -e "$cgroups/cgroup.procs" ] || die "no control groups of version 2 here" "mount -t cgroup2 none /sys/fs/cgroup"
here=$top/driver-tests/hardening
unit=$top/packaging/systemd/reflinkd.service
work=$target/hardening
group=$cgroups/reflinkd-hardening-$$
read -ra suites <<<"${SUITES-containerd docker}"
# How exposed systemd finds the service, in tenths.
MOST_EXPOSED=49

machine=
finish() {
    local status=$?
    trap - EXIT
    # With the first process of a machine all of it ends, mounts and loop devices too.
    [ -z "$machine" ] || kill -KILL "$machine" 2>/dev/null || true
    [ -z "${outer:-}" ] || wait "$outer" 2>/dev/null || true
    for _ in $(seq 100); do
        find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
        [ -d "$group" ] || break
        sleep 0.1
    done
    rm -f "$work/disk"
    rmdir "$work/root" 2>/dev/null || true
    [ "$status" = 0 ] || printf '\nthe test failed (status %s)\n' "$status" >&2
    exit "$status"
}
trap finish EXIT
mkdir -p "$work/root" "$group"

cd "$top"
build_debug
declare -A binary
for suite in "${suites[@]}"; do
    "$cargo" test --locked --no-run --test "$suite" 2>&1 | tee "$work/build.log" | tail -n 1
    binary[$suite]=$(sed -n 's/.*Executable.*(\(.*\))$/\1/p' "$work/build.log")
    [ -n "${binary[$suite]}" ] || die "no binary of the suite $suite"
    case ${binary[$suite]} in /*) ;; *) binary[$suite]=$top/${binary[$suite]} ;; esac
done
give_back
program=$target/debug/reflinkd

step "A machine of its own"
truncate -s 2G "$work/disk"
mkfs.btrfs -q -f "$work/disk" >"$work/mkfs.log" 2>&1
(
    echo "$BASHPID" >"$group/cgroup.procs"
    exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child "$here/machine.sh" \
        "$work/root" "$work/disk" "$program" "$unit" "$top" "$target" >"$work/machine.log" 2>&1
) &
outer=$!
inside() { nsenter --target "$machine" --mount --pid --uts --ipc --cgroup --root --wd -- /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"; }
for _ in $(seq 300); do
    kill -0 "$outer" 2>/dev/null || die "the machine ended: $(tail -n 5 "$work/machine.log")"
    machine=$(pgrep -P "$outer" || true)
    if [ -n "$machine" ] && [ "$(cat "/proc/$machine/comm")" = systemd ] && inside systemctl is-system-running --quiet 2>/dev/null; then break; fi
    sleep 0.1
done
inside systemctl is-system-running >/dev/null || die "systemd didn't come up: $(tail -n 5 "$work/machine.log")"
note "$(inside systemctl --version | head -n 1)"

step "The unit"
inside systemd-analyze verify --man=no /etc/systemd/system/reflinkd.service
inside systemctl start reflinkd.service || die "it doesn't start: $(inside journalctl --no-pager -u reflinkd -n 20)"
served=$(inside systemctl show -p MainPID --value reflinkd.service)
# Its number outside.
main=$(pgrep -x reflinkd --ns "$machine" --nslist pid | head -n 1)
[ -n "$served" ] && [ -n "$main" ] || die "it has no process"
answer=$(inside python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.connect("/run/docker/plugins/reflinkd.sock")
s.sendall(b"POST /Plugin.Activate HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"); print(s.recv(9999).decode())' | tail -n 1)
[ "$answer" = '{"Implements":["GraphDriver"]}' ] || die "it answered: $answer"
note "it says that it is ready, and answers Docker"

step "Each setting is in force"
failed=0
holds() { # WHAT, IS, WANTED
    if [ "$2" = "$3" ]; then note "$1: $2"; else note "$1: $2, and it should be $3"; failed=1; fi
}
of_kernel() { awk -v name="$1:" '$1 == name { print $2 }' "/proc/$main/status"; }
holds NoNewPrivs "$(of_kernel NoNewPrivs)" 1
holds Seccomp "$(of_kernel Seccomp)" 2
# What the unit leaves, without what this machine hasn't.
wanted=$(python3 - "$unit" "$(awk '$1 == "CapBnd:" { print $2 }' "/proc/$machine/status")" <<'PY'
import re, subprocess, sys
lines = re.findall(r"^CapabilityBoundingSet=(.*)", open(sys.argv[1]).read(), re.MULTILINE)
names = " ".join(lines).lower().split()
numbers = {name: number for number, name in enumerate(
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service net_broadcast "
    "net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice "
    "sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin".split())}
print(f"{sum(1 << numbers[name.removeprefix('cap_')] for name in names) & int(sys.argv[2], 16):016x}")
PY
)
holds CapBnd "$(of_kernel CapBnd)" "$wanted"
holds CapEff "$(of_kernel CapEff)" "$wanted"
# Without CAP_SYS_RESOURCE a machine gives no more than it has.
most=$(awk '/^Max open files/ { print $5 }' "/proc/$machine/limits")
holds "open files" "$(awk '/^Max open files/ { print $4 }' "/proc/$main/limits")" "$((most < 65536 ? most : 65536))"
holds "mount namespace" "$(readlink "/proc/$main/ns/mnt")" "$(readlink "/proc/$machine/ns/mnt")"
[ "$(readlink "/proc/$main/ns/uts")" != "$(readlink "/proc/$machine/ns/uts")" ] || { note "the host's name isn't protected"; failed=1; }
# Nobody but root reaches a door or the store.
sockets=$(inside find /run/docker /run/reflinkd -type s -printf '%m %u %p\n')
[ "$(grep -c . <<<"$sockets")" -ge 2 ] || { note "too few sockets: $sockets"; failed=1; }
while read -r mode owner path; do holds "$path" "$mode $owner" "600 root"; done <<<"$sockets"
holds /var/lib/reflinkd "$(inside stat -c '%a %U' /var/lib/reflinkd)" "700 root"
# What nothing below can try.
denied=$(inside systemctl show -p IPAddressDeny --value reflinkd.service)
# In either order: it differs from one start to the next.
holds IPAddressDeny "$(tr ' ' '\n' <<<"$denied" | sort | paste -sd ' ')" "0.0.0.0/0 ::/0"
holds KeyringMode "$(inside systemctl show -p KeyringMode --value reflinkd.service)" private

inside python3 "$here/confine.py" record "$served" /run/confined
inside python3 "$here/probe.py" >"$work/free"
inside python3 "$here/confine.py" run /run/confined /usr/bin/python3 "$here/probe.py" >"$work/confined"
probed() { # NAME, WANTED CONFINED, WHY
    local free confined
    free=$(awk -v name="$1" '$1 == name { print $2 }' "$work/free")
    confined=$(awk -v name="$1" '$1 == name { print $2 }' "$work/confined")
    # What can't be done without the unit either shows nothing.
    if [ "$free" = yes ] && [ "$confined" = "$2" ]; then note "$1: $confined ($3)"; else note "$1: $confined, $free without the unit ($3)"; failed=1; fi
}
probed internet-socket no RestrictAddressFamilies=
probed netlink-socket no RestrictAddressFamilies=
probed new-namespace no RestrictNamespaces=
probed personality no LockPersonality=
probed writable-code no MemoryDenyWriteExecute=
probed realtime no RestrictRealtime=
probed hostname no ProtectHostname=
probed other-user no CapabilityBoundingSet=
for call in load-module load-bpf affinity chroot reboot perf; do probed "$call" no SystemCallFilter=; done
for need in unix-socket bind-mount device-node others-file quota nice; do probed "$need" yes "what serve does"; done
[ "$failed" = 0 ] || die "not all of the unit is in force"

step "How exposed it is"
inside systemd-analyze security --no-pager --threshold="$MOST_EXPOSED" reflinkd.service | tail -n 1 | sed 's/^→ //' ||
    die "more exposed than ${MOST_EXPOSED:0:1}.${MOST_EXPOSED:1}" "systemd-analyze security reflinkd.service"

[ ${#suites[@]} = 0 ] || step "The suites, asking a confined server"
cat >"$work/reflinkd" <<SH
#!/bin/sh
for argument; do
    [ "\$argument" = serve ] || continue
    echo >>$work/confined-servers
    exec python3 $here/confine.py run /run/confined /opt/reflinkd/bin/reflinkd "\$@"
done
exec /opt/reflinkd/bin/reflinkd "\$@"
SH
chmod 755 "$work/reflinkd"
inside mount --bind "$work/reflinkd" "$program"
for suite in "${suites[@]}"; do
    status=0
    : >"$work/confined-servers"
    inside "${binary[$suite]}" ${FILTER:+"$FILTER"} >"$work/$suite.log" 2>&1 || status=1
    servers=$(wc -l <"$work/confined-servers")
    note "$suite, $servers confined servers: $(sed -n 's/^test result: //p' "$work/$suite.log")"
    [ "$servers" -gt 0 ] || failed=1
    [ "$status" = 0 ] || { sed -n '/^failures:/,$p' "$work/$suite.log" | tail -n 60; failed=1; }
done

step "Its end"
inside systemctl stop reflinkd.service
[ "$(inside systemctl show -p Result --value reflinkd.service)" = success ] || die "it didn't end well"
! inside test -e /run/docker/plugins/reflinkd.sock || die "its socket is still there"
note "it ends when it is told to"
[ "$failed" = 0 ] || die "the suites fail, confined (above, and in $work)"
