#!/bin/bash
# Behind `make bench`: installs the peers, builds the release binary, measures all of them.
# Never part of a test: a shared machine's numbers are only good for ratios.
#
#   BENCH_ONLY      some of: limits ours docker podman containerd; without it all
#   BENCH_TABLES    some of: btrfs xfs memory changes pull; without it all. pull is what `make bench-pull` measures
#   BENCH_CURVE     where the curve of diff is drawn, such as docs/diff-curve.svg; without it below target/
#   BENCH_FLAGS     more flags for bench.py, such as: --scale 0.1

. "$(dirname "$0")/../tools/lib.sh"

here=$(cd "$(dirname "$0")" && pwd)
# pulled: what BENCH_TABLES has of pulls, in the words of pull.sh. Its flags are others.
pulled() {
    local parts=${BENCH_ONLY:-}
    parts=${parts/ours/reflinkd}
    parts=${parts/containerd/}
    # Of containerd there is none.
    [ -n "${parts//[ ,]/}" ] || [ -z "${BENCH_ONLY:-}" ] || return 0
    BENCH_ONLY=$parts BENCH_FLAGS='' "$here/pull.sh"
}

need_root "the benchmark" bench
tables=${BENCH_TABLES:-btrfs xfs memory changes pull}
tables=" ${tables//,/ } "
others=${tables/ pull / }
if [ -z "${others// /}" ]; then
    pulled
    exit
fi
find_cargo
need_compiler
need_packages btrfs-progs xfsprogs python3 strace time

only=${BENCH_ONLY:-limits ours docker podman containerd}
wanted=()
for peer in docker.io podman containerd; do
    case " ${only//,/ } " in *" ${peer%.io} "*) wanted+=("$peer") ;; esac
done
[ ${#wanted[@]} = 0 ] || need_daemons "${wanted[@]}" runc
for module in loop btrfs xfs overlay; do modprobe "$module" 2>/dev/null || true; done

cd "$top"
step "Build the release binary"
run "$cargo" build --release --locked --bins --examples
give_back
flags=(--work "$target/bench" --binary "$target/release/reflinkd" --rows "$target/release/examples/reflinkd-bench" --only "$only" --tables "$others")
[ -z "${BENCH_CURVE:-}" ] || flags+=(--curve "$BENCH_CURVE")

step "Measure"
status=0
# shellcheck disable=SC2086 # flags are words
python3 -B "$here/bench.py" "${flags[@]}" ${BENCH_FLAGS:-} || status=$?
[ "$others" = "$tables" ] || pulled || status=$?
exit "$status"
