//! The feed, and layers made of it, on each filesystem.

use crate::fixture::Fixture;
use crate::packed::edits_as_layers;
use crate::support::QuotaSetup;

#[test]
fn on_btrfs_without_quotas() {
    edits_as_layers(&Fixture::btrfs(QuotaSetup::None), 12);
}

#[test]
fn on_btrfs_with_simple_quotas() {
    edits_as_layers(&Fixture::btrfs(QuotaSetup::Simple), 6);
}

#[test]
fn on_btrfs_with_qgroups() {
    edits_as_layers(&Fixture::btrfs(QuotaSetup::Full), 3);
}

#[test]
fn on_btrfs_that_compresses() {
    edits_as_layers(&Fixture::btrfs_zstd(), 6);
}

#[test]
fn on_xfs() {
    edits_as_layers(&Fixture::xfs(), 12);
}
