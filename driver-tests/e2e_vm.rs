//! The program on XFS with project quotas, which most machines' own kernels don't have: the end-to-end cases that are asked
//! on every ground, and limits. `make vmtest` runs it in guests.
//!
//! `cargo test` builds nothing of it (`test = false` in Cargo.toml), so that a machine without project quotas neither
//! fails nor passes by skipping.

mod support;

macro_rules! on_project_quotas {
    ($($case:ident)+) => {
        $(mod $case {
            #[test]
            fn xfs_prjquota() {
                super::$case(crate::world::Ground::XfsPrjquota);
            }
        })+
    };
}

// The grounds of e2e/main.rs have their tests there.
macro_rules! on_every_ground {
    ($($case:ident)+) => {
        on_project_quotas! { $($case)+ }
    };
}
macro_rules! on_btrfs_and_xfs {
    ($($case:ident)+) => {
        on_project_quotas! { $($case)+ }
    };
}
macro_rules! on_every_btrfs {
    ($($case:ident)+) => {};
}

#[allow(dead_code)]
#[path = "e2e/accounting.rs"]
mod accounting;
#[path = "e2e_vm/limits.rs"]
mod limits;
#[path = "e2e/world.rs"]
mod world;
