#!/bin/bash
# Behind `make crashtest`: the power is cut at hundreds of points under load, on each filesystem.
#
#   run.sh [--fs simple full none xfs] [--cuts 500] [--seed 1] [--keep]
#   run.sh --fs xfs --again --cut 17

. "$(dirname "$0")/../tools/lib.sh"

work=$target/crash
need_root "the test of power cuts" crashtest
need_packages btrfs-progs xfsprogs util-linux python3
find_cargo
need_compiler
[ -e /dev/fuse ] || modprobe fuse || die "no FUSE here" "modprobe fuse"
for module in loop btrfs xfs; do modprobe "$module" 2>/dev/null || true; done
cd "$top"
build_debug
find_btrfs_check
step "Cut the power"
# A namespace of its own: whoever else makes one meanwhile would keep a copy of each mount, and so the filesystem in use.
exec unshare --mount --propagation private python3 -B driver-tests/crash/crash.py --work "$work" --binary "$target/debug/reflinkd" "${programs[@]}" "$@"
