//! Who works on which place.
//!
//! A place belongs to whoever holds the byte of `ROOT/places.lock` that its UUID stands for, by an open file description
//! lock (fcntl(2), Linux 3.15): it goes with the descriptor, so with a process that dies. It is not a flock(2) on the
//! place, because opening a directory of Btrfs waits for a snapshot being made in it, and so for a commit: of 32
//! processes that create at once, each would wait for all others, only to see that they are alive.
//!
//! Two places whose UUIDs share their last 62 bits would wait for each other, and do no worse.

use std::fs::File;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use uuid::Uuid;

use super::files::{self, Lock};
use crate::{Context, Result};

/// Name below ROOT. Its content is empty, and stays so.
pub(super) const FILE: &str = "places.lock";

/// The right to work on one place, until dropped.
#[derive(Debug)]
pub(super) struct PlaceLock {
    _file: File,
}

/// Lock the place of `uuid` in the store at `root`. `None` only for a try.
pub(super) fn lock(root: &Path, uuid: Uuid, how: Lock) -> Result<Option<PlaceLock>> {
    let path = root.join(FILE);
    // A description of its own for each lock: by one, a lock would not keep out another of the same process.
    let file = files::make_lock_file(&path).context(|| format!("open {}", path.display()))?;
    let shared = matches!(how, Lock::Shared | Lock::TryShared);
    let range = range(uuid, if shared { libc::F_RDLCK } else { libc::F_WRLCK });
    loop {
        let call = match how {
            Lock::TryExclusive | Lock::TryShared => FcntlArg::F_OFD_SETLK(&range),
            Lock::Exclusive | Lock::Shared => FcntlArg::F_OFD_SETLKW(&range),
        };
        match fcntl(&file, call) {
            Ok(_) => return Ok(Some(PlaceLock { _file: file })),
            // Only of a try.
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context(|| format!("lock {uuid} in {}", path.display())),
        }
    }
}

/// Those of `uuids` whose places nobody works on at the moment.
pub(super) fn unlocked(root: &Path, uuids: Vec<Uuid>) -> Result<Vec<Uuid>> {
    if uuids.is_empty() {
        return Ok(uuids);
    }
    let path = root.join(FILE);
    // Enough to ask, and works where nothing can be written.
    let file = match File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(uuids),
        file => file.context(|| format!("open {}", path.display()))?,
    };
    let mut unlocked = Vec::new();
    for uuid in uuids {
        // Answers with a lock that would be in the way, or with the type F_UNLCK.
        let mut range = range(uuid, libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut range)).context(|| format!("look at {}", path.display()))?;
        if i32::from(range.l_type) == libc::F_UNLCK {
            unlocked.push(uuid);
        }
    }
    Ok(unlocked)
}

/// The byte of `uuid`, as fcntl(2) wants it.
fn range(uuid: Uuid, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte(uuid),
        l_len: 1,
        l_pid: 0,
    }
}

/// The last 62 bits of a UUID: a version 4 UUID is random there, and the end of the byte still is a file offset.
fn byte(uuid: Uuid) -> i64 {
    const MASK: u128 = (1 << 62) - 1;
    (uuid.as_u128() & MASK) as i64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_one_callers_and_the_others_are_free() {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tmp");
        std::fs::create_dir_all(&target).unwrap();
        let root = tempfile::tempdir_in(target).unwrap();
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let held = lock(root.path(), one, Lock::Exclusive).unwrap();
        assert!(lock(root.path(), one, Lock::TryExclusive).unwrap().is_none());
        assert!(lock(root.path(), other, Lock::TryExclusive).unwrap().is_some());
        assert_eq!(unlocked(root.path(), vec![one, other]).unwrap(), [other]);
        drop(held);
        assert_eq!(unlocked(root.path(), vec![one, other]).unwrap(), [one, other]);
        let reading = lock(root.path(), one, Lock::Shared).unwrap();
        assert!(lock(root.path(), one, Lock::Shared).unwrap().is_some());
        assert!(lock(root.path(), one, Lock::TryExclusive).unwrap().is_none());
        drop(reading);
        assert!(lock(root.path(), one, Lock::TryExclusive).unwrap().is_some());
    }

    #[test]
    fn every_uuid_has_a_byte() {
        assert_eq!(byte(Uuid::from_u128(u128::MAX)), (1 << 62) - 1);
        assert_eq!(byte(Uuid::nil()), 0);
    }
}
