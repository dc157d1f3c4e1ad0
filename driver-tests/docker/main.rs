//! `reflinkd serve` as Docker's graph driver: the built binary on real filesystems, asked over its socket, by a client
//! that can also say what no Docker ever would.

#[path = "../support/mod.rs"]
mod support;

#[macro_use]
#[path = "../e2e/grounds.rs"]
mod grounds;

mod broken;
mod fields;
mod http;
mod init;
mod memory;
mod metrics;
mod parallel;
mod serve;
mod shutdown;
mod state;
mod systemd;
mod tars;
mod tending;
mod wire;
#[path = "../e2e/world.rs"]
mod world;
