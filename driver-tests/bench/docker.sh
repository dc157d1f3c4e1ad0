#!/bin/bash
# Behind `make bench-docker`: the same dockerd, image and filesystem with three storage drivers in turns: this project's
# plugin, and Docker's own btrfs and overlay2. Never part of a test: a shared machine's numbers are only good for ratios.
#
#   BENCH_ONLY      some of: reflinkd btrfs overlay2; without it all
#   BENCH_FLAGS     more flags for docker_rows.py, such as: --scale 0.1 --no-quotas

. "$(dirname "$0")/../tools/lib.sh"

here=$(cd "$(dirname "$0")" && pwd)
need_root "the benchmark" bench-docker
need_packages btrfs-progs util-linux python3 busybox-static
need_daemons docker.io runc
for module in loop btrfs overlay; do modprobe "$module" 2>/dev/null || true; done

cd "$top"
only=${BENCH_ONLY:-reflinkd btrfs overlay2}
flags=(--work "$target/bench" --only "$only")
case " ${only//,/ } " in *" reflinkd "*)
    find_cargo
    need_compiler
    step "Build the release binary"
    run "$cargo" build --release --locked --bins
    give_back
    flags+=(--binary "$target/release/reflinkd")
    ;;
esac

step "Measure"
# shellcheck disable=SC2086 # flags are words
exec python3 -B "$here/docker_rows.py" "${flags[@]}" ${BENCH_FLAGS:-}
