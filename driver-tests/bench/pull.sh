#!/bin/bash
# Behind `make bench-pull`: pulls of the same images from a registry on loopback, by this project, podman and Docker, beside this
# project's load of them. Never part of a test: a shared machine's numbers are only good for ratios.
#
#   BENCH_ONLY      some of: limits reflinkd docker podman; without it all
#   BENCH_FLAGS     more flags for pull_rows.py, such as: --scale 0.1 --on btrfs
#
# The registry is Debian's, unpacked below target/registry as the registry test has it; nginx is the demo's image.

. "$(dirname "$0")/../tools/lib.sh"

here=$(cd "$(dirname "$0")" && pwd)
need_root "the benchmark" bench-pull
need_packages btrfs-progs xfsprogs util-linux python3 skopeo curl time
only=${BENCH_ONLY:-limits reflinkd docker podman}
wanted=()
for peer in docker.io podman; do
    case " ${only//,/ } " in *" ${peer%.io} "*) wanted+=("$peer") ;; esac
done
[ ${#wanted[@]} = 0 ] || need_daemons "${wanted[@]}" runc
for module in loop btrfs xfs overlay; do modprobe "$module" 2>/dev/null || true; done

cd "$top"
mkdir -p "$target/demo" "$target/registry"
step "The demo's image"
"$top/driver-tests/demo/build-image.sh" "$target/demo/nginx.tar"
flags=(--work "$target/bench" --cache "$target/registry" --nginx "$target/demo/nginx.tar" --only "$only")
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
exec python3 -B "$here/pull_rows.py" "${flags[@]}" ${BENCH_FLAGS:-}
