#!/bin/bash
# Behind `make bench-containerd`: the same containerd, image and filesystem with three snapshotters in turns: this project's, with its
# differ, and containerd's own btrfs and overlayfs. Never part of a test: a shared machine's numbers are only good for ratios.
#
#   BENCH_ONLY      some of: reflinkd btrfs overlayfs; without it all
#   BENCH_FLAGS     more flags for containerd_rows.py, such as: --scale 0.1
#
# containerd and Go are Debian's, unpacked below target/containerd as the containerd test has them.

. "$(dirname "$0")/../tools/lib.sh"

here=$(cd "$(dirname "$0")" && pwd)
need_root "the benchmark" bench-containerd
need_packages btrfs-progs util-linux runc python3
for module in loop btrfs overlay; do modprobe "$module" 2>/dev/null || true; done

cd "$top"
only=${BENCH_ONLY:-reflinkd btrfs overlayfs}
flags=(--work "$target/bench" --cache "$target/containerd" --only "$only")
step "What is written in Go"
"$top/driver-tests/containerd/build.sh" "$target/containerd" bench
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
exec python3 -B "$here/containerd_rows.py" "${flags[@]}" ${BENCH_FLAGS:-}
