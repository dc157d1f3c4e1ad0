//! All entries of a tree, looked at by two threads.
//!
//! A directory that waits for its turn is a way to it, opened again when that comes: descriptors and memory are bounded
//! whatever the shape of the tree, and no symlink is followed and no mount entered on the way. What vanishes meanwhile is left out.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::fs::{FileType, OFlags, RawDir};
use rustix::io::Errno;

use crate::sys::rooted;
use crate::sys::way::Way;
use crate::{Context, Error, Result};

/// A second one nearly halves the time, more bring nothing (one directory is one thread's).
const THREADS: usize = 2;
/// Names of a directory are read in pieces of this many bytes.
const BUFFER: usize = 32 << 10;

pub(super) const OPEN_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::NOATIME).union(OFlags::CLOEXEC);

/// An entry, by a name in an open directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) directory: BorrowedFd<'a>,
    pub(super) name: &'a CStr,
    pub(super) kind: FileType,
    /// The directory's path below the root.
    pub(super) path: &'a [u8],
}

impl Found<'_> {
    /// Its path below the root, for messages.
    pub(super) fn shown(&self) -> String {
        shown(&join(self.path, self.name))
    }
}

/// The directories of which nobody has made an end yet.
#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Way>,
    /// How many are being read: they may hold more.
    busy: usize,
    failed: Option<Error>,
}

struct Walk<'a, V> {
    root: &'a OwnedFd,
    queue: Mutex<Queue>,
    changed: Condvar,
    visit: V,
}

/// Give each name of a regular file below `root` to `visit`, as [`entries`] does.
pub(super) fn regular_files<T, V>(root: &OwnedFd, visit: V) -> Result<Vec<T>>
where
    T: Send,
    V: Fn(Found<'_>) -> Result<Option<T>> + Sync,
{
    entries(root, |found| if found.kind == FileType::RegularFile { visit(found) } else { Ok(None) })
}

/// Give each name below `root` to `visit`, in no order and on several threads, and collect its answers. The first error
/// ends it.
pub(super) fn entries<T, V>(root: &OwnedFd, visit: V) -> Result<Vec<T>>
where
    T: Send,
    V: Fn(Found<'_>) -> Result<Option<T>> + Sync,
{
    let queue = Mutex::new(Queue { waiting: vec![Way::default()], ..Queue::default() });
    let walk = Walk { root, queue, changed: Condvar::new(), visit };
    let mut found = Vec::new();
    thread::scope(|scope| {
        let threads: Vec<_> = (1..THREADS).map(|_| scope.spawn(|| walk.work())).collect();
        found = walk.work();
        for thread in threads {
            found.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    match walk.queue.into_inner().unwrap_or_else(PoisonError::into_inner).failed {
        Some(error) => Err(error),
        None => Ok(found),
    }
}

impl<T, V> Walk<'_, V>
where
    V: Fn(Found<'_>) -> Result<Option<T>> + Sync,
{
    fn work(&self) -> Vec<T> {
        let mut found = Vec::new();
        let mut buffer = Vec::with_capacity(BUFFER);
        while let Some(way) = self.next() {
            let mut below = Vec::new();
            let read = self.directory(&way, &mut buffer, &mut found, &mut below);
            let mut queue = self.queue();
            queue.busy -= 1;
            queue.waiting.append(&mut below);
            if let Err(error) = read {
                queue.waiting.clear();
                queue.failed.get_or_insert(error);
            }
            self.changed.notify_all();
        }
        found
    }

    /// The next directory; `None` when all are done, or one has failed.
    fn next(&self) -> Option<Way> {
        let mut queue = self.queue();
        loop {
            if queue.failed.is_some() {
                return None;
            }
            if let Some(way) = queue.waiting.pop() {
                queue.busy += 1;
                return Some(way);
            }
            if queue.busy == 0 {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Visit what is in one directory; what directories are in it goes to `below`.
    fn directory(&self, way: &Way, buffer: &mut Vec<u8>, found: &mut Vec<T>, below: &mut Vec<Way>) -> Result<()> {
        let path = &way.path()[..];
        let directory = match rooted::beneath(self.root, path, OPEN_DIRECTORY) {
            Ok(directory) => directory,
            // Gone, or something else by now; or something is mounted there, which is no part of the tree.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(()),
            Err(e) => return Err(e).context(|| format!("open {}", shown(path))),
        };
        let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = match entry {
                // Somebody removed the directory.
                Err(Errno::NOENT) => break,
                entry => entry.context(|| format!("read {}", shown(path)))?,
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            // Filesystems that can clone files tell the type.
            let kind = entry.file_type();
            found.extend((self.visit)(Found { directory: directory.as_fd(), name, kind, path })?);
            if kind == FileType::Directory {
                below.push(way.join(name.to_bytes()));
            }
        }
        Ok(())
    }
}

fn join(path: &[u8], name: &CStr) -> Vec<u8> {
    let mut joined = path.to_vec();
    if !joined.is_empty() {
        joined.push(b'/');
    }
    joined.extend(name.to_bytes());
    joined
}

fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}
