//! The program as its users run it: the built binary on real filesystems, asked through its command line and JSON.
//!
//! What can be asked on any of them is asked on each, as a test of its own: `containers::rename_is_kept::xfs`. What differs
//! is said in one place, [`world::Ground`]'s methods.

#[path = "../support/mod.rs"]
mod support;

#[macro_use]
mod grounds;

macro_rules! on_every_btrfs {
    ($($case:ident)+) => {
        $(mod $case {
            on_every_btrfs! { @ $case }
        })+
    };
    (@ $case:ident) => {
        use crate::support::QuotaSetup;
        use crate::world::Ground;
        #[test]
        fn simple() {
            super::$case(Ground::SIMPLE);
        }
        #[test]
        fn full() {
            super::$case(Ground::Btrfs(QuotaSetup::Full));
        }
        #[test]
        fn none() {
            super::$case(Ground::Btrfs(QuotaSetup::None));
        }
        #[test]
        fn inconsistent() {
            super::$case(Ground::Btrfs(QuotaSetup::Inconsistent));
        }
        #[test]
        fn zstd() {
            super::$case(Ground::Zstd);
        }
    };
}

macro_rules! on_every_ground {
    ($($case:ident)+) => {
        $(mod $case {
            on_every_btrfs! { @ $case }
            #[test]
            fn xfs() {
                super::$case(Ground::Xfs);
            }
        })+
    };
}

mod accounting;
mod bad_input;
mod commit;
mod containers;
mod cp;
mod cp_hostile;
mod deep;
mod diff;
mod export;
mod faults;
mod images;
mod layout;
mod many;
mod orphans;
mod program;
mod relatives;
mod save;
mod spares;
mod store;
mod views;
mod world;
