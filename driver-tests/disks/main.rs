//! Limits and hosts of pools that are reached: every verb is done or refused and nothing is torn, what is removed makes room, and
//! then all goes on.
//!
//! `REFLINKD_ALL_DISKS=1` (`make test-full-disks`) also takes the combinations that `cargo test` leaves out.

#[path = "../support/mod.rs"]
mod support;

#[path = "../e2e/world.rs"]
mod world;

mod give;
mod inventory;
mod limited;
mod pools;
