#!/bin/bash
# Behind `make test-docker-faults`: Docker 20.10 on reflinkd while both daemons are killed, disks run full and layers break off.
#
#   faults.sh [--fs btrfs|xfs] [--kills 50] [--workers 4] [--seed N] [--step truncated|full|reflinkd|dockerd]...

. "$(dirname "$0")/../tools/lib.sh"

need_root "the test of faults" test-docker-faults
need_daemons docker.io
need_packages btrfs-progs xfsprogs util-linux runc busybox-static python3
find_cargo
need_compiler
cd "$top"
build_debug
for module in loop btrfs xfs; do modprobe "$module" 2>/dev/null || true; done
exec python3 -B "$(dirname "$0")/faults.py" --work "$target/docker-faults" --binary "$target/debug/reflinkd" "$@"
