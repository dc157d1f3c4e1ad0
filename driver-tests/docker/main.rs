//! `reflinkd serve` as Docker's graph driver: the built binary on real filesystems, asked over its socket, by a client
//! that can also say what no Docker ever would.

#[path = "../support/mod.rs"]
mod support;

macro_rules! on_btrfs_and_xfs {
    ($($case:ident)+) => {
        $(mod $case {
            use crate::world::Ground;
            #[test]
            fn btrfs() {
                super::$case(Ground::SIMPLE);
            }
            #[test]
            fn xfs() {
                super::$case(Ground::Xfs);
            }
        })+
    };
}

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
