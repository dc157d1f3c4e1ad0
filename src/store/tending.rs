//! Who works in the background: at most one tends a store, and one more waits to.
//!
//! ```text
//! ROOT/tend.next     held by the one who waits, until it begins
//! ROOT/tend.lock     held by the one who tends
//! ROOT/tend.stop     held by whoever waits to have the store for himself: then nobody tends
//! ```
//!
//! Whoever leaves work behind starts a tender afterwards. If that one finds `tend.next` taken it can go: who holds it has
//! not begun to look, and lets go of it before it does, so it will see what was left. No wake-up is lost.
//!
//! A tender works in the store as everybody does, and so keeps out who needs it alone. As it may be at one step for long
//! (a clone of many files), those ask it by `tend.stop`, which it looks at all the time.

use std::fs::File;
use std::path::Path;

use super::Store;
use super::files::{self, Lock};
use crate::{Kind, Result};

const NEXT: &str = "tend.next";
const WORKING: &str = "tend.lock";
const STOP: &str = "tend.stop";
/// Below ROOT. Their contents are empty, and stay so.
pub(super) const FILES: [&str; 3] = [NEXT, WORKING, STOP];

/// The right to tend, until dropped.
#[derive(Debug)]
#[must_use]
pub struct Tending {
    _lock: Option<File>,
}

impl Store {
    /// Wait until nobody else tends the store. `None` if somebody waits already, and will see all that we would.
    pub fn begin_tending(&self) -> Result<Option<Tending>> {
        let Some(next) = files::lock_file(&self.root.join(NEXT), Lock::TryExclusive)? else { return Ok(None) };
        let working = files::lock_file(&self.root.join(WORKING), Lock::Exclusive)?;
        drop(next);
        Ok(Some(Tending { _lock: working }))
    }

    /// Whether somebody waits to tend the store who has not begun to look at it.
    pub fn is_tender_waiting(&self) -> Result<bool> {
        Ok(files::lock_file(&self.root.join(NEXT), Lock::TryExclusive)?.is_none())
    }
}

/// Ask whoever tends the store at `root` to stop, and others not to begin, until the handle is dropped.
pub fn ask_to_stop(root: &Path) -> Result<Option<File>> {
    let path = root.join(STOP);
    // Where it is missing nobody has tended yet.
    if path.exists() { files::lock_file(&path, Lock::Exclusive) } else { Ok(None) }
}

/// Whether whoever tends the store at `root` is asked to stop; so too if it is gone.
pub fn is_asked_to_stop(root: &Path) -> Result<bool> {
    match files::lock_file(&root.join(STOP), Lock::TryShared) {
        Ok(free) => Ok(free.is_none()),
        Err(e) if e.kind() == Kind::NotFound => Ok(true),
        Err(e) => Err(e),
    }
}
