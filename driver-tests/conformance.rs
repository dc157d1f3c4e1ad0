//! The contract of [`reflinkd::backend::Backend`], one suite for all backends and quota modes.
//!
//! Each case runs against each [`Setup`], as a test of its own: `btrfs_full::a_limit_holds`. What differs
//! between setups is stated in one place, [`Setup`]'s methods; cases ask those, never the backend. Needs
//! root, loop devices, mkfs.btrfs and btrfs.

#[path = "conformance/charges.rs"]
mod charges;
#[path = "conformance/content.rs"]
mod content;
#[path = "conformance/fixture.rs"]
mod fixture;
#[path = "conformance/lifecycle.rs"]
mod lifecycle;
#[path = "conformance/limits.rs"]
mod limits;
#[path = "conformance/nested.rs"]
mod nested;
#[path = "conformance/replace.rs"]
mod replace;
mod support;

use fixture::Setup;

/// One module for each setup, with one test for each case.
macro_rules! suite {
    ($($module:ident: $setup:expr;)+ => $cases:ident) => {
        $(mod $module {
            use crate::*;
            $cases! { $setup }
        })+
    };
}

macro_rules! cases {
    ($setup:expr) => {
        cases! { $setup;
            lifecycle::create_makes_an_empty_writable_tree
            lifecycle::create_refuses_a_taken_place
            lifecycle::create_needs_its_place
            lifecycle::destroy_is_idempotent_and_leaves_the_place_empty
            lifecycle::clone_needs_a_source
            lifecycle::clone_refuses_a_taken_place
            lifecycle::read_only_is_remembered
            lifecycle::reopening_finds_everything
            lifecycle::a_chain_of_130_clones_holds
            lifecycle::thirty_two_threads_clone_at_once
            content::a_clone_keeps_everything
            content::clones_are_independent
            content::a_clone_has_what_was_not_written_back
            content::an_old_descriptor_never_changes_a_clone
            charges::the_method_is_the_modes
            charges::an_untouched_clone_charges_nothing
            charges::reading_charges_nothing
            charges::charges_are_exact
            charges::one_block_of_a_large_file_charges_one_block
            charges::deleting_keeps_the_image
            charges::apparent_counts_files_made_or_changed
            charges::what_the_origin_wrote_is_not_charged_to_its_clones
            charges::a_group_is_charged_together
            charges::what_a_clone_keeps_does_not_come_back
            charges::measuring_needs_trees
            charges::space_moves_and_comes_back
            charges::reclaim_leaves_nothing
            replace::the_path_never_vanishes
            replace::the_new_tree_is_the_origins
            replace::a_failed_replace_changes_nothing
            replace::settle_undoes_an_unfinished_replace
            replace::settle_finishes_a_replace
            limits::no_limits_where_nothing_counts
            limits::a_limit_holds
            limits::a_limit_does_not_count_the_origin
            limits::a_full_tree_can_be_emptied_and_raised
            limits::every_way_to_a_tree_takes_a_limit
            limits::a_clone_has_its_own_limit
            limits::subvolumes_inside_count_as_guaranteed
            limits::quota_mode_can_be_switched
            nested::a_plain_tree_has_none
            nested::nested_subvolumes_are_listed_and_charged
            nested::nested_subvolumes_go_with_their_tree
            nested::a_tree_with_nested_subvolumes_is_cloned_whole_or_not
        }
    };
    ($setup:expr; $($part:ident::$case:ident)+) => {
        $(#[test]
        fn $case() {
            $part::$case(&$setup.make());
        })+
    };
}

suite! {
    memory: Setup::Memory;
    btrfs_simple: Setup::Simple;
    btrfs_full: Setup::Full;
    btrfs_none: Setup::None;
    btrfs_inconsistent: Setup::Inconsistent;
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
        let loops = run("losetup", &["--list", "--noheadings", "--output", "BACK-FILE"]);
        assert!(!loops.contains(support::arg(&image)), "{loops}");
    }
}
