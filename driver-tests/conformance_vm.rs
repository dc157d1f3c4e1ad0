//! What most machines' own kernels can't show: the conformance suite on XFS with project quotas, what the kernel does
//! with these, and the program on them. `make vmtest` runs it in guests.
//!
//! `cargo test` builds nothing of it (`test = false` in Cargo.toml), so that a machine without project quotas neither
//! fails nor passes by skipping. Needs root, loop devices, mkfs.xfs, and a kernel with CONFIG_XFS_QUOTA.

#[macro_use]
#[path = "conformance/cases.rs"]
mod cases;
#[path = "conformance/charges.rs"]
mod charges;
#[path = "conformance/content.rs"]
mod content;
#[path = "conformance_vm/facts.rs"]
mod facts;
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
#[path = "conformance_vm/projects.rs"]
mod projects;
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
    xfs_prjquota: Setup::XfsPrjquota;
    => cases
}
