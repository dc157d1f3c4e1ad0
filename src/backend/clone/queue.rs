//! The directories of the clone: where each is, which are still to be made, and who makes them.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};

use super::Ctime;

/// More than two gain nothing: the filesystem's own locks are what is waited for.
pub(super) const WORKERS: usize = 2;

/// A directory of the clone.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) parent: u32,
    pub(super) name: Box<[u8]>,
    /// `None` until it is done, and if it vanished from the source.
    pub(super) made: Option<Made>,
}

/// What is known of an inode of the clone when it is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Made {
    pub(super) inode: u64,
    pub(super) ctime: Ctime,
    pub(super) blocks: u64,
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
        let root = Directory { parent: 0, name: Box::default(), made: None };
        let mut waiting: [VecDeque<u32>; WORKERS] = Default::default();
        waiting[0].push_back(0);
        let state = State { directories: vec![root], waiting, idle: 0, stopped: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The next directory for this worker, and the one it is in; `None` when all are done or somebody stopped.
    pub(super) fn next(&self, worker: usize) -> Option<(u32, u32)> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            let own = state.waiting[worker].pop_back();
            if let Some(number) = own.or_else(|| state.waiting[(worker + 1) % WORKERS].pop_front()) {
                return Some((number, state.directories[number as usize].parent));
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
    pub(super) fn done(&self, worker: usize, number: u32, made: Option<Made>, below: &mut Vec<Box<[u8]>>) {
        let mut state = self.lock();
        state.directories[number as usize].made = made;
        for name in below.drain(..) {
            let child = u32::try_from(state.directories.len()).expect("fewer than 2^32 directories");
            state.directories.push(Directory { parent: number, name, made: None });
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
        path(&self.lock().directories, number)
    }

    pub(super) fn name(&self, number: u32) -> Box<[u8]> {
        self.lock().directories[number as usize].name.clone()
    }

    pub(super) fn into_directories(self) -> Vec<Directory> {
        self.state.into_inner().expect("no worker panics while it holds the queue").directories
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no worker panics while it holds the queue")
    }
}

/// See [`Queue::path`].
pub(super) fn path(directories: &[Directory], number: u32) -> Vec<u8> {
    let mut names = Vec::new();
    let mut at = number;
    while at != 0 {
        let Directory { parent, name, .. } = &directories[at as usize];
        names.push(&**name);
        at = *parent;
    }
    names.reverse();
    names.join(&b'/')
}
