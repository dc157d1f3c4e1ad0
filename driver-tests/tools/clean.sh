#!/bin/bash
# Behind `make clean`: end the demo's and the benchmarks' leftovers, then remove target/.
# A tree below target/ is removed only when nothing is mounted in it any more.

. "$(dirname "$0")/lib.sh"

demo_marker=$target/demo/made-pool

# Only the pool that the demo made itself, and only while it holds no container.
if [ -f "$demo_marker" ]; then
    { read -r root && read -r id; } <"$demo_marker"
    binary=${DEMO_BINARY:-$target/release/reflinkd}
    if [ -e "$root" ] || [ -e "$root.pool" ]; then
        need_root "destroying the demo's pool at $root" clean
        [ -x "$binary" ] || die "the demo's pool at $root is still there, and no binary to destroy it with" \
            "make build, then make clean again"
        export REFLINKD_ROOT=$root
        if command -v runc >/dev/null; then runc delete --force reflinkd-demo >/dev/null 2>&1 || true; fi
        # The first command attaches the pool again after a reboot.
        containers=$("$binary" ps -q)
        if [ "$(filesystem_id "$root")" != "$id" ]; then
            note "the store at $root isn't the demo's any more: left alone"
        elif [ -n "$containers" ]; then
            die "the demo's pool at $root holds containers of yours: $(echo $containers)" \
                "remove them, or all of it: REFLINKD_ROOT=$root $binary destroy --yes"
        else
            run "$binary" destroy --yes
        fi
    fi
    rm -f "$demo_marker"
fi

mounts() { awk -v below="$target/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | sort -r; }
if [ -n "$(mounts)" ]; then
    need_root "unmounting what is left below $target" clean
    while IFS= read -r mount; do run umount "$mount"; done < <(mounts)
fi
# Loop devices whose file is below target/, held by a run that was killed.
if [ "$(id -u)" = 0 ] && command -v losetup >/dev/null; then
    losetup --list --noheadings --output NAME,BACK-FILE | while read -r device file; do
        case $file in "$target"/*) run losetup --detach "$device" ;; esac
    done
fi
[ -z "$(mounts)" ] || die "still mounted below $target: $(mounts | tr '\n' ' ')"
rm -rf "$target"
