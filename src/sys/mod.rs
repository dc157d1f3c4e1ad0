//! System calls that no crate wraps safely. The only place with `unsafe`.

pub mod bind;
pub mod btrfs;
pub mod loopdev;
pub mod mount;
pub mod process;
pub mod rooted;
pub mod users;
