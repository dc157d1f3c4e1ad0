#!/bin/bash
# Behind `make soak`: a random mix at all front doors for minutes or hours, with all invariants checked meanwhile.
#
#   run.sh [--fs simple full none xfs] [--minutes 30] [--workers 2] [--seed 1] [--leak connection subvolume]

. "$(dirname "$0")/../tools/lib.sh"

work=$target/soak
need_root "the soak" soak
# Debian's Python has Debian's grpc.
need_packages btrfs-progs xfsprogs util-linux python3 python3-grpcio python3-protobuf protobuf-compiler libprotobuf-dev
find_cargo
need_compiler
for module in loop btrfs xfs; do modprobe "$module" 2>/dev/null || true; done
cd "$top"
if [ -n "${RELEASE:-}" ]; then
    step "Build"
    run "$cargo" build --locked --release
    give_back
    binary=(--binary "$target/release/reflinkd" --release)
else
    build_debug
    binary=(--binary "$target/debug/reflinkd")
fi
mkdir -p "$work"
find_btrfs_check
protoc --proto_path driver-tests/proto --include_imports --descriptor_set_out "$work/api" driver-tests/proto/services/*/v1/*.proto
step "Soak"
# A namespace of its own: whoever else makes one meanwhile would keep a copy of each mount, and so the filesystem in use.
exec unshare --mount --propagation private /usr/bin/python3 -B driver-tests/soak/soak.py --work "$work" --api "$work/api" \
    "${binary[@]}" "${programs[@]}" "$@"
