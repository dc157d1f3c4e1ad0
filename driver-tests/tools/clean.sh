#!/bin/bash
# Behind `make clean`: end the demo's and the benchmarks' leftovers, then remove target/.
# A tree below target/ is removed only when nothing is mounted in it any more.

. "$(dirname "$0")/lib.sh"

demo_marker=$target/demo/made-pool

if [ -f "$demo_marker" ]; then
    need_root "destroying the demo's pool" clean
    root=$(cat "$demo_marker")
    if [ -x "$target/release/reflinkd" ] && [ -e "$root" ]; then
        if command -v runc >/dev/null; then runc delete --force reflinkd-demo >/dev/null 2>&1 || true; fi
        left=$("$target/release/reflinkd" --root "$root" ps -q | wc -l)
        [ "$left" = 0 ] || die "the pool at $root holds $left containers of yours" \
            "remove them, or all of it: $target/release/reflinkd --root $root destroy --yes"
        run "$target/release/reflinkd" --root "$root" destroy --yes
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
