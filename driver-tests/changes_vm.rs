//! Change feeds on XFS with project quotas, which most machines' own kernels don't have. `make vmtest` runs it in guests.
//!
//! `cargo test` builds nothing of it (`test = false` in Cargo.toml), so that a machine without project quotas neither
//! fails nor passes by skipping.

// What only the fixed cases of changes.rs ask for.
#![allow(dead_code)]

#[path = "changes/edits.rs"]
mod edits;
#[path = "changes/fixture.rs"]
mod fixture;
#[path = "changes/model.rs"]
mod model;
#[path = "changes/packed.rs"]
mod packed;
mod support;

#[test]
fn on_xfs_with_project_quotas() {
    packed::edits_as_layers(
        &fixture::Fixture::reflink(support::LoopFs::xfs_mounted(8 * support::GIB, "prjquota")),
        12,
    );
}
