#!/bin/bash
# Behind `make test-full-disks`: the test `disks` with all combinations of filesystems, of which `make test` takes some.

. "$(dirname "$0")/../tools/lib.sh"

need_root "the test of full disks" test-full-disks
find_cargo
need_compiler
need_packages btrfs-progs xfsprogs e2fsprogs util-linux python3
cd "$top"
run "$cargo" build --locked --example reflinkd-verbs
export REFLINKD_ALL_DISKS=1
status=0
# In a mount namespace of its own: whoever makes one meanwhile would hold what is unmounted here.
run unshare --mount --propagation private "$cargo" test --locked --test disks || status=1
give_back
exit "$status"
