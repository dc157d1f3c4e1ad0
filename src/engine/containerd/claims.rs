//! Keys and names that somebody is about to give to a snapshot. A containerd has one daemon, which they are kept in.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::store::Owner;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::engine) struct Claims(Mutex<HashSet<(String, String)>>);

/// One of them, for as long as it lives.
#[derive(Debug)]
#[must_use]
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    /// Whose, and which.
    name: (String, String),
}

impl Claims {
    /// `None` if it is somebody else's.
    pub(super) fn take(&self, owner: &Owner, key: &str) -> Option<Claim<'_>> {
        let name = (owner.as_str().to_string(), key.to_string());
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        taken.then(|| Claim { claims: self, name })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}
