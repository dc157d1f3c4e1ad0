//! All cases, and how they become tests of each setup.

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
            touched::a_copy_inside_counts_once
            touched::a_rename_charges_nothing
            touched::a_change_with_its_times_put_back_is_seen
            touched::a_change_right_after_the_clone_is_seen
            touched::preallocated_room_counts
            touched::a_hard_linked_file_counts_once
            touched::a_file_in_the_inode_of_a_removed_one_counts
            replace::the_path_never_vanishes
            replace::the_new_tree_is_the_origins
            replace::a_failed_replace_changes_nothing
            replace::settle_undoes_an_unfinished_replace
            replace::settle_finishes_a_replace
            forks::a_fork_is_equal_and_independent
            forks::a_read_only_fork_refuses_writes
            forks::a_fork_holds_what_its_source_holds
            forks::a_fork_is_measured_by_itself
            forks::a_fork_differs_from_the_image_as_its_source_does
            forks::a_fork_needs_what_a_clone_needs
            forks::a_fork_has_its_own_limit
            forks::own_is_told_of_any_ancestor
            forks::groups_are_charged_for_what_their_forks_keep
            sealed::a_sealed_tree_is_what_it_was
            sealed::a_sealed_tree_can_be_cloned
            sealed::open_files_lead_elsewhere
            sealed::a_state_is_of_one_moment
            sealed::what_was_made_is_named_at_once
            sealed::what_was_written_is_counted_at_once
            sealed::what_a_crash_left_beside_it_goes
            sealed::a_sealed_tree_can_be_written_to_again
            sealed::only_a_tree_is_sealed
            sealed::a_tree_is_sealed_at_its_limit
            rollback::a_tree_is_rolled_back
            rollback::the_path_stays_while_rolling_back
            rollback::a_failed_roll_back_leaves_everything
            rollback::subvolumes_inside_stay_with_what_is_kept
            rollback::a_limit_outlives_a_roll_back
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
