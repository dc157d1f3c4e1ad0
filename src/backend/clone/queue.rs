//! The directories of the clone: where each is, which are still to be made, and who makes them.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard};

use rustix::fs::{AtFlags, Statx, StatxFlags, statx};
use rustix::io::Errno;

use super::{Ctime, Origin};
use crate::copy::facts::{Key, device_of};

/// More than two gain nothing: the filesystem's own locks are what is waited for.
pub(super) const WORKERS: usize = 2;

/// How much longer a path from the root may be than one that goes up first, which takes a few calls more.
const DETOUR: u32 = 32;

/// A directory of the clone.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) parent: u32,
    depth: u32,
    pub(super) name: Box<[u8]>,
    /// What it is a clone of, and what it is, when it is done; `None` before, and if it vanished from the source.
    pub(super) made: Option<(Key, Made)>,
}

/// What is known of an inode of the clone when it is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Made {
    pub(super) inode: u64,
    pub(super) ctime: Ctime,
    pub(super) blocks: u64,
    pub(super) origin: Option<Origin>,
}

impl Made {
    /// What the manifest has of an inode of the clone, which was made of `origin`.
    pub(super) fn of(at: impl AsFd, name: &CStr, flags: AtFlags, origin: Option<Origin>) -> rustix::io::Result<Self> {
        let facts = statx(at, name, flags, StatxFlags::INO | StatxFlags::CTIME | StatxFlags::BLOCKS)?;
        let ctime = (facts.stx_ctime.tv_sec, facts.stx_ctime.tv_nsec);
        Ok(Self { inode: facts.stx_ino, ctime, blocks: facts.stx_blocks, origin })
    }
}

impl Origin {
    pub(super) fn of(facts: &Statx) -> Self {
        Self { inode: facts.stx_ino, ctime: (facts.stx_ctime.tv_sec, facts.stx_ctime.tv_nsec) }
    }

    /// What is known of an inode of the source by now, if that is still what `before` tells of.
    pub(super) fn now(
        at: impl AsFd,
        name: &CStr,
        flags: AtFlags,
        before: &Statx,
    ) -> rustix::io::Result<Option<Self>> {
        match statx(at, name, flags, StatxFlags::INO | StatxFlags::CTIME) {
            Ok(now) if (device_of(&now), now.stx_ino) == (device_of(before), before.stx_ino) => {
                Ok(Some(Self::of(&now)))
            }
            Ok(_) | Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// The way from one directory to another.
#[derive(Debug)]
pub(super) struct Route {
    /// Upwards, to one that must be this on both sides.
    pub(super) steps: u32,
    pub(super) reached: (Key, Made),
    /// The path from there.
    pub(super) down: Vec<u8>,
}

/// See the module's head. Directory 0 is the root.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    directories: Vec<Directory>,
    /// Each worker takes its own newest, whose parent it has just left open, and else the other's oldest, which has
    /// the shortest path and probably most below it.
    waiting: [VecDeque<u32>; WORKERS],
    idle: usize,
    stopped: bool,
}

impl Queue {
    pub(super) fn new() -> Self {
        let root = Directory { parent: 0, depth: 0, name: Box::default(), made: None };
        let mut waiting: [VecDeque<u32>; WORKERS] = Default::default();
        waiting[0].push_back(0);
        let state = State { directories: vec![root], waiting, idle: 0, stopped: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The next directory for this worker; `None` when all are done or somebody stopped.
    pub(super) fn next(&self, worker: usize) -> Option<u32> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            let own = state.waiting[worker].pop_back();
            if let Some(number) = own.or_else(|| state.waiting[(worker + 1) % WORKERS].pop_front()) {
                return Some(number);
            }
            state.idle += 1;
            if state.idle == WORKERS {
                state.stopped = true;
                self.changed.notify_all();
                return None;
            }
            state = self.changed.wait(state).expect("no worker panics while it holds the queue");
            state.idle -= 1;
        }
    }

    /// A directory is done; the ones in it wait from now on.
    pub(super) fn done(&self, worker: usize, number: u32, made: Option<(Key, Made)>, below: &mut Vec<Box<[u8]>>) {
        let mut state = self.lock();
        let directory = &mut state.directories[number as usize];
        directory.made = made;
        let depth = directory.depth + 1;
        for name in below.drain(..) {
            let child = u32::try_from(state.directories.len()).expect("fewer than 2^32 directories");
            state.directories.push(Directory { parent: number, depth, name, made: None });
            state.waiting[worker].push_back(child);
        }
        if state.idle > 0 {
            self.changed.notify_all();
        }
    }

    /// Nobody takes another directory.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    pub(super) fn stopped(&self) -> bool {
        self.lock().stopped
    }

    /// The path of a directory below the root, without slashes around it.
    pub(super) fn path(&self, number: u32) -> Vec<u8> {
        path(&self.lock().directories, 0, number)
    }

    /// The way from the directory `from`, which is done, to `to`; `None` if the one from the root is no longer. As a worker
    /// takes directories that are near to each other, all its ways together are about as long as the tree is large,
    /// however deep it is.
    pub(super) fn route(&self, from: u32, to: u32) -> Option<Route> {
        let directories = &self.lock().directories;
        let depth = |number: u32| directories[number as usize].depth;
        let parent = |number: u32| directories[number as usize].parent;
        let (mut above, mut common) = (from, to);
        while above != common {
            if depth(above) >= depth(common) {
                above = parent(above);
            } else {
                common = parent(common);
            }
        }
        let steps = depth(from) - depth(common);
        let shorter = steps == 0 || steps + DETOUR < depth(common);
        let reached = directories[common as usize].made.filter(|_| shorter)?;
        Some(Route { steps, reached, down: path(directories, common, to) })
    }

    pub(super) fn into_directories(self) -> Vec<Directory> {
        self.state.into_inner().expect("no worker panics while it holds the queue").directories
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no worker panics while it holds the queue")
    }
}

/// The path from a directory down to another.
pub(super) fn path(directories: &[Directory], from: u32, to: u32) -> Vec<u8> {
    let mut names = Vec::new();
    let mut at = to;
    while at != from {
        let Directory { parent, name, .. } = &directories[at as usize];
        names.push(&**name);
        at = *parent;
    }
    names.reverse();
    names.join(&b'/')
}
