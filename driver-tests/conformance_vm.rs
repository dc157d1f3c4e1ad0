//! What most machines' own kernels can't show: XFS project quotas. `make vmtest` runs it in guests.
//!
//! `cargo test` builds nothing of it (`test = false` in Cargo.toml), so that a machine without project quotas neither
//! fails nor passes by skipping. Needs root, loop devices, mkfs.xfs, and a kernel with CONFIG_XFS_QUOTA.

#[path = "conformance_vm/facts.rs"]
mod facts;
mod support;
