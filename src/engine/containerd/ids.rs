//! Whose ids a mount shows, in the place of those on disk.

use super::Labels;
use crate::{Error, Kind, Result};

const UIDS: &str = "containerd.io/snapshot/uidmapping";
const GIDS: &str = "containerd.io/snapshot/gidmapping";

/// The maps of users and of groups, if there are any.
pub(super) fn of(labels: Option<&Labels>) -> (Option<String>, Option<String>) {
    let find = |key| labels.and_then(|labels: &Labels| labels.get(key).cloned());
    (find(UIDS), find(GIDS))
}

/// Whether labels are maps, if they say that they are.
///
/// # Errors
/// `Invalid`: they go into a mount's options as they are.
pub(super) fn check(labels: &Labels) -> Result<()> {
    let (users, groups) = of(Some(labels));
    if users.is_some() != groups.is_some() {
        return Err(Error::new(Kind::Invalid, format!("{UIDS} and {GIDS} are only to be had together")));
    }
    for (key, map) in [(UIDS, users), (GIDS, groups)] {
        let is_range = |range: &str| {
            let numbers: Vec<_> = range.split(':').map(str::parse::<u32>).collect();
            numbers.len() == 3 && numbers.iter().all(std::result::Result::is_ok)
        };
        if let Some(map) = map.filter(|map| !map.split(',').all(is_range)) {
            return Err(Error::new(Kind::Invalid, format!("{key}={map} is not CONTAINER:HOST:COUNT,...")));
        }
    }
    Ok(())
}
