//! Inodes with several names.
//!
//! The first name met makes the inode, further ones are linked to it; which is first, two threads must agree on, so
//! the map is locked while an inode is made. A name outside of the tree never gets into the map.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use rustix::fs::{FileType, IFlags, Statx};

use super::attributes::device_of;
use super::queue::Made;

/// An inode of the source. The birth time tells it from a later one with the same number, in a source that is being
/// changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    device: (u32, u32),
    inode: u64,
    born: (i64, u32),
}

impl Key {
    pub(super) fn of(facts: &Statx) -> Self {
        Self {
            device: device_of(facts),
            inode: facts.stx_ino,
            born: (facts.stx_btime.tv_sec, facts.stx_btime.tv_nsec),
        }
    }
}

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
