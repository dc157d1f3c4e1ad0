//! What the reflink backend promises beyond the contract, on real filesystems: what a crash, a full disk, a damaged
//! manifest and other processes leave right. Needs root, loop devices, mkfs.xfs, xfs_io and mkfs.btrfs.

#![allow(clippy::print_stderr, reason = "measured times, shown with --nocapture")]

#[path = "reflink/crashes.rs"]
mod crashes;
#[path = "reflink/fixture.rs"]
mod fixture;
#[path = "reflink/manifests.rs"]
mod manifests;
#[path = "reflink/measure.rs"]
mod measure;
#[path = "reflink/scale.rs"]
mod scale;
mod support;
#[path = "reflink/trash.rs"]
mod trash;
