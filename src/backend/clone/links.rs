//! Inodes with several names.
//!
//! The first name met makes the inode, further ones are linked to it; which is first, two threads must agree on, so
//! the map is locked while an inode is made. A name outside of the tree never gets into the map.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use rustix::fs::{FileType, IFlags};

use super::queue::Made;
use crate::copy::facts::Key;

/// What it became in the clone.
#[derive(Debug)]
pub(super) struct Linked {
    pub(super) kind: FileType,
    /// After its last name was made.
    pub(super) made: Made,
    /// Number of the directory, and name; the first made it.
    pub(super) names: Vec<(u32, Box<[u8]>)>,
    /// Set when it has all its names: +i and +a forbid further ones.
    pub(super) flags: IFlags,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<HashMap<Key, Linked>>);

impl Links {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Key, Linked>> {
        self.0.lock().expect("no worker panics while it makes an inode")
    }

    pub(super) fn into_all(self) -> impl Iterator<Item = Linked> {
        self.0.into_inner().expect("no worker panics while it makes an inode").into_values()
    }
}
