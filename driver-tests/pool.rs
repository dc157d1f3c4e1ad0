//! The embedded pool on real loop devices: that a pool is one filesystem whoever attaches it, that it outlives
//! what happens to it, and that nothing of it stays.
//!
//! Each case runs for each filesystem that a pool can hold, as a test of its own: `xfs::grows_while_in_use`. What
//! differs between them is stated in one place, [`fixture::Promises`]. Needs root, loop devices, btrfs-progs,
//! xfsprogs and e2fsprogs.

#[path = "pool/fixture.rs"]
mod fixture;
#[path = "pool/host.rs"]
mod host;
#[path = "pool/lifecycle.rs"]
mod lifecycle;
#[path = "pool/race.rs"]
mod race;
#[path = "pool/refusals.rs"]
mod refusals;
mod support;

use reflinkd::engine::pool::PoolFs;

/// One module for each filesystem, with one test for each case.
macro_rules! suite {
    ($($module:ident: $kind:expr;)+ => $cases:ident) => {
        $(mod $module {
            use crate::*;
            $cases! { $kind }
        })+
    };
}

macro_rules! cases {
    ($kind:expr) => {
        cases! { $kind;
            lifecycle::data_outlives_detach_and_attach
            lifecycle::a_new_pool_is_clean_at_any_size
            lifecycle::two_pools_are_mounted_at_the_same_time
            lifecycle::attached_already_takes_no_lock
            lifecycle::a_lost_lock_file_changes_nothing
            lifecycle::grows_while_in_use
            lifecycle::a_half_made_pool_is_made_again
            lifecycle::what_uses_the_pool_is_named
            lifecycle::mounted_elsewhere_is_not_destroyed
            lifecycle::destroy_leaves_nothing
            lifecycle::direct_io_is_used_where_the_host_has_it
            lifecycle::it_is_the_filesystem_that_was_asked_for
            race::eight_processes_get_one_loop_device
            refusals::unrelated_files_are_refused_and_left_alone
            refusals::a_root_with_something_in_it_is_refused
            refusals::sizes_below_the_smallest_are_refused
            refusals::several_or_partial_loop_devices_are_refused
            refusals::a_copy_of_a_mounted_pool_is_refused
            refusals::no_room_for_a_pool_is_said
            host::the_guard_counts_the_hosts_room
            host::a_host_that_copies_on_write_is_told_not_to
        }
    };
    ($kind:expr; $($part:ident::$case:ident)+) => {
        $(#[test]
        fn $case() {
            $part::$case($kind);
        })+
    };
}

suite! {
    btrfs: PoolFs::Btrfs;
    xfs: PoolFs::Xfs;
    => cases
}
