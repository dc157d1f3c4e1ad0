#!/bin/bash
# Behind `make test-containerd` and its parts: containerd 1.6 and 2, what stands on them, and containerd's own conformance suite
# of snapshotters, on the socket of `reflinkd serve --containerd`.
#
#   run.sh [--quick] [--lane suite ...] [--ground simple ...] [--containerd 1.6 2] [--snapshotter btrfs|overlayfs]
#
# The lane `image` builds and starts the DaemonSet's image: a static release, some minutes the first time.
#
# containerd's own snapshotters show that what is expected of ours is what containerd does. Everything is Debian's, unpacked
# below target/containerd and kept; every ground is a loop device there, and is gone afterwards.

. "$(dirname "$0")/../tools/lib.sh"

work=$target/containerd
need_root "the containerd test" test-containerd
need_packages btrfs-progs xfsprogs e2fsprogs util-linux runc busybox-static python3 python3-yaml
need_compiler
binary=()
case " $* " in
*" --snapshotter "*) ;;
*)
    find_cargo
    cd "$top"
    build_debug
    binary=(--binary "$target/debug/reflinkd")
    ;;
esac
for module in loop btrfs xfs overlay; do modprobe "$module" 2>/dev/null || true; done
step "What is written in Go"
case " $* " in *" --quick "*) part=suite ;; *) part=all ;; esac
"$top/driver-tests/containerd/build.sh" "$work" "$part"
exec python3 -B "$top/driver-tests/containerd/suite.py" --work "$work" "${binary[@]}" "$@"
