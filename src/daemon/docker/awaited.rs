//! Layers whose tar may come.
//!
//! After a broken connection dockerd goes on in another request with what it hasn't sent yet of a tar, which may look whole,
//! or be empty. What it had sent to a process that died before it read it, nobody can tell. So a process takes tars only for
//! the keys that it has made itself, and only one for each, as long as that isn't known to have come to its end.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The keys that were made and have had no tar yet.
#[derive(Debug, Default)]
pub(super) struct Awaited(Mutex<HashSet<String>>);

impl Awaited {
    pub(super) fn add(&self, key: &str) {
        self.keys().insert(key.to_string());
    }

    /// Whether a tar that comes now is whole.
    pub(super) fn take(&self, key: &str) -> bool {
        self.keys().remove(key)
    }

    fn keys(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stands for a tar that isn't.
#[derive(Debug)]
pub(super) struct Rest;

impl Read for Rest {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("an earlier stream into it broke off, and what comes now may be the rest of that"))
    }
}
