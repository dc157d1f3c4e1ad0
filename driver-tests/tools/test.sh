#!/bin/bash
# Behind `make test`: every suite, on real loop devices, and at the end what ran. Nothing is
# skipped: a machine that can't run the suites (not root, no loop devices, no Btrfs) fails.

. "$(dirname "$0")/lib.sh"

need_root "the test suite" test
find_cargo
need_compiler
# The oracles: btrfs-progs and xfsprogs (also for filesystems of a tested shape; the product itself runs
# mkfs.xfs for a pool of XFS), strace (no other product path runs another program), e2fsprogs (a root on ext4
# is refused), tar, bsdtar and python3 (archives by others, and a second opinion of them).
# openssl makes certificates for registries.
# Users of what we make: runc runs a bundle (with busybox in it), skopeo writes the images that we load.
need_packages attr btrfs-progs xfsprogs e2fsprogs util-linux strace tar python3 libarchive-tools runc skopeo busybox-static openssl
[ -e /dev/loop-control ] || modprobe loop || die "no loop devices here" "modprobe loop"
grep -qw btrfs /proc/filesystems || modprobe btrfs || die "this kernel has no Btrfs" "modprobe btrfs"
grep -qw xfs /proc/filesystems || modprobe xfs || die "this kernel has no XFS" "modprobe xfs"

log=$target/test.log
cd "$top"
started=$SECONDS
status=0

step "The tools' own tests"
for dir in driver-tests/*/; do
    ls "$dir"test_*.py >/dev/null 2>&1 || continue
    run python3 -B -m unittest discover -s "$dir" -p 'test_*.py' || status=1
done
tools=$status

step "The suites (cargo test)"
# One binary's failure must not hide the others'.
run "$cargo" test --locked --no-fail-fast 2>&1 | tee "$log" || status=1
give_back

step "Docker 20.10 on the plugin"
docker=0
"$top/driver-tests/docker/run.sh" --quick || docker=1
[ "$docker" = 0 ] || status=1

step "What ran, in $((SECONDS - started)) s"
awk '
    / Running / { sub(/.* Running /, ""); sub(/ \(.*/, ""); suite = $0 }
    / Doc-tests / { suite = "documentation examples" }
    /^test result: / { printf "   %-40s %5d passed %3d failed %3d ignored\n", suite, $4, $6, $8
                       passed += $4; failed += $6; ignored += $8 }
    END { printf "   %-40s %5d passed %3d failed %3d ignored\n", "all", passed, failed, ignored
          if (!passed) exit 1 }' "$log" || status=1
[ "$tools" = 0 ] || note "the tools' own tests FAILED"
[ "$docker" = 0 ] || note "Docker on the plugin FAILED"
[ "$status" = 0 ] || die "some tests failed (above, and in $log)"
