//! System calls that no crate wraps safely. The only place with `unsafe`.

pub mod bind;
pub mod btrfs;
pub mod durable;
pub mod fiemap;
pub mod holes;
pub mod loopdev;
pub mod memory;
pub mod mount;
pub mod process;
pub mod reflink;
pub mod rooted;
pub mod selinux;
pub mod sqlite;
pub mod trim;
pub mod users;
pub mod way;
pub mod xattrs;
pub mod xfs;
