//! Clones of trees, file by file, on filesystems that share blocks between files and on some that don't; and the removal
//! of trees.
//!
//! Needs root, loop devices, mkfs.xfs, mkfs.btrfs, mkfs.ext4, mkswap and prlimit; fails without them.

#![allow(clippy::unwrap_used)]

#[path = "clone/faithful.rs"]
mod faithful;
#[path = "clone/fixture.rs"]
mod fixture;
#[path = "clone/live.rs"]
mod live;
#[path = "clone/refusals.rs"]
mod refusals;
#[path = "clone/removal.rs"]
mod removal;
#[path = "clone/shapes.rs"]
mod shapes;
mod support;
