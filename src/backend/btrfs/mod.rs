//! Btrfs.
pub mod format;
