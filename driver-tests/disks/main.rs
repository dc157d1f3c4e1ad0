//! Disks, limits and hosts of pools that run full: every verb is done or refused and nothing is torn, what is removed makes
//! room, and then all goes on.
//!
//! `REFLINKD_ALL_DISKS=1` (`make test-full-disks`) also takes the combinations that `cargo test` leaves out.

#[path = "../support/mod.rs"]
mod support;

// A server, and what asks it.
#[allow(dead_code)]
#[path = "../docker/http.rs"]
mod http;
#[allow(dead_code)]
#[path = "../docker/serve.rs"]
mod serve;
#[path = "../e2e/world.rs"]
mod world;

mod full;
mod give;
mod inventory;
mod limited;
mod pools;
