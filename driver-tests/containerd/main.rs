//! `reflinkd serve` as containerd's snapshotter and differ: the built binary on real filesystems, asked over its socket as
//! containerd asks it, with a content store that stands for containerd's.

#[path = "../support/mod.rs"]
mod support;

#[macro_use]
#[path = "../e2e/grounds.rs"]
mod grounds;

#[path = "../../src/daemon/containerd/api/mod.rs"]
mod api;
mod diffs;
mod doors;
mod metrics;
mod reuse;
mod serve;
mod snapshots;
mod store;
mod systemd;
#[path = "../e2e/world.rs"]
mod world;
