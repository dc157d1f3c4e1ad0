#!/bin/bash
# Behind `make test-docker`: real Docker, bookworm's 20.10 and trixie's 26.1, on reflinkd's storage driver.
#
#   run.sh [--quick] [--docker 20.10|26.1] [--fs btrfs|xfs] [--driver reflinkd|btrfs|overlay2]
#
# --quick is the part that `make test` has. The two built-in drivers show that what is expected of ours is what Docker does.

. "$(dirname "$0")/../tools/lib.sh"

need_root "the Docker test" test-docker
need_daemons docker.io
need_packages btrfs-progs xfsprogs util-linux runc busybox-static python3
binary=()
case " $* " in
*" --driver btrfs "* | *" --driver overlay2 "*) ;;
*)
    find_cargo
    need_compiler
    cd "$top"
    build_debug
    binary=(--binary "$target/debug/reflinkd")
    ;;
esac
for module in loop btrfs xfs overlay; do modprobe "$module" 2>/dev/null || true; done
exec python3 -B "$(dirname "$0")/lane.py" --work "$target/docker" "${binary[@]}" "$@"
