//! What can be asked on any filesystem, as a test of its own on each.

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
