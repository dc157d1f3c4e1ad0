#!/bin/bash
# Behind `make test-registry`: `reflinkd pull` from Debian's docker-registry and `push` to it, which skopeo, podman, buildah and Docker fill.
#
#   run.sh [--quick] [--lane plain|tls|htpasswd|token|clients|pushed]
#
# --quick is the part that .ci/run has.

. "$(dirname "$0")/../tools/lib.sh"

work=$target/registry
need_root "the registry test" test-registry
need_daemons docker.io podman
need_packages btrfs-progs xfsprogs util-linux python3 skopeo openssl apache2-utils buildah runc busybox-static
need_compiler
find_cargo
cd "$top"
build_debug
for module in loop btrfs overlay; do modprobe "$module" 2>/dev/null || true; done
mkdir -p "$work"
programs=$(python3 -B "$top/driver-tests/containerd/debs.py" "$work" registry)
exec python3 -B "$top/driver-tests/registry/registry.py" --work "$work" --binary "$target/debug/reflinkd" --programs "$programs" "$@"
