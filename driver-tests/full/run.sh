#!/bin/bash
# Behind `make test-full`: each durable step of each verb fails in each way, on Btrfs and XFS (docs/testing.md).

. "$(dirname "$0")/../tools/lib.sh"

need_root "letting steps fail" test-full
find_cargo
need_compiler
need_packages btrfs-progs xfsprogs util-linux
cd "$top"
run "$cargo" build --locked --example reflinkd-verbs
# In a mount namespace of its own: whoever makes one meanwhile would hold what is unmounted here.
run env REFLINKD_FULL=all unshare --mount --propagation private "$cargo" test --locked --test full
