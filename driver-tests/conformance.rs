//! The contract of [`reflinkd::backend::Backend`], one suite for all backends and quota modes.
//!
//! Each case runs against each [`Setup`], as a test of its own: `btrfs_full::a_limit_holds`. What differs
//! between setups is stated in one place, [`Setup`]'s methods; cases ask those, never the backend. Needs
//! root, loop devices, mkfs.btrfs and btrfs.

#[macro_use]
#[path = "conformance/cases.rs"]
mod cases;
#[path = "conformance/charges.rs"]
mod charges;
#[path = "conformance/content.rs"]
mod content;
#[path = "conformance/fixture.rs"]
mod fixture;
#[path = "conformance/forks.rs"]
mod forks;
#[path = "conformance/lifecycle.rs"]
mod lifecycle;
#[path = "conformance/limits.rs"]
mod limits;
#[path = "conformance/nested.rs"]
mod nested;
#[path = "conformance/replace.rs"]
mod replace;
#[path = "conformance/rollback.rs"]
mod rollback;
#[path = "conformance/sealed.rs"]
mod sealed;
mod support;
#[path = "conformance/touched.rs"]
mod touched;

use fixture::Setup;

suite! {
    memory: Setup::Memory;
    btrfs_simple: Setup::Simple;
    btrfs_full: Setup::Full;
    btrfs_none: Setup::None;
    btrfs_inconsistent: Setup::Inconsistent;
    btrfs_zstd: Setup::Zstd;
    btrfs_zstd_simple: Setup::ZstdSimple;
    xfs: Setup::Xfs;
    reflink_on_btrfs: Setup::ReflinkOnBtrfs;
    => cases
}

/// What all the rest relies on to clean up.
#[test]
fn a_filesystem_goes_with_a_panicking_test() {
    use support::{LoopFs, MIB, QuotaSetup, run};
    let makers: [fn() -> LoopFs; 6] = [
        || LoopFs::btrfs(256 * MIB, QuotaSetup::None),
        || LoopFs::btrfs(256 * MIB, QuotaSetup::Simple),
        || LoopFs::btrfs(256 * MIB, QuotaSetup::Full),
        || LoopFs::btrfs(256 * MIB, QuotaSetup::Inconsistent),
        || LoopFs::ext4(64 * MIB),
        || LoopFs::tmpfs(64 * MIB),
    ];
    for make in makers {
        let mut paths = None;
        let test = std::panic::AssertUnwindSafe(|| {
            let fs = make();
            std::fs::write(fs.path().join("file"), "x").expect("write");
            paths = Some((fs.path().to_path_buf(), fs.image()));
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        let panicked = std::panic::catch_unwind(test).expect_err("it panics");
        assert_eq!(panicked.downcast_ref(), Some(&"on purpose"));
        let (mount, image) = paths.expect("it came so far");
        assert!(!mount.exists() && !image.exists());
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("read the mounts");
        assert!(!mounts.contains(support::arg(&mount)));
        // A child that another test starts has it open until it is another program.
        let loops = || run("losetup", &["--list", "--noheadings", "--output", "BACK-FILE"]);
        support::wait_until("its loop device is gone", || !loops().contains(support::arg(&image)));
    }
}
