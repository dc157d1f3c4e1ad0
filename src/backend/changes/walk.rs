//! The feed of a filesystem that can't name changes: both trees are walked and compared, byte by byte.
//!
//! Costs what reading both trees costs. It is right by being obvious, and so what the other feeds are held to.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::compare::{Comparer, Found};
use super::side::Side;
use super::{Change, Changes, Comparison, EntryKind, FeedMethod, What};
use crate::Result;

/// Compare the trees as they are. A file's size is that of its blocks, also of those that it shares.
pub fn walk(wanted: &Comparison<'_>) -> Result<Changes> {
    let old = wanted.parent.map(|parent| Side::open(&parent.root())).transpose()?;
    let new = Side::open(&wanted.tree.root())?;
    let found = Comparer::new(old.as_ref(), &new).everything()?;
    listed(found, FeedMethod::Walk, wanted.sizes, &mut |found| Ok(found.facts.allocated))
}

/// What was found, as the answer. `size` says what an inode takes, once for each that has content and isn't gone.
pub(in crate::backend) fn listed(
    found: Vec<Found>,
    method: FeedMethod,
    sizes: bool,
    size: &mut dyn FnMut(&Found) -> Result<u64>,
) -> Result<Changes> {
    let mut counted = HashSet::new();
    let mut list = Vec::with_capacity(found.len());
    for found in found {
        let facts = found.facts;
        let counts = facts.kind == EntryKind::File
            && !matches!(found.what, What::Deleted | What::Linked)
            && counted.insert(facts.id);
        let size = match (sizes, counts) {
            (false, _) => None,
            (true, false) => Some(0),
            (true, true) => Some(size(&found)?),
        };
        let path = PathBuf::from(OsString::from_vec(found.path));
        list.push(Change { path, what: found.what, kind: facts.kind, size });
    }
    Ok(Changes { list, method })
}
