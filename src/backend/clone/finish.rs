//! What can only be done when all names are there, and the list of them all.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, futimens, openat, unlinkat};

use super::links::Linked;
use super::queue::{Directory, Made, path};
use super::{Cloned, Counts, Entry, OPEN_DIRECTORY, Shared};
use crate::copy::attributes::set_flags;
use crate::copy::facts::{facts, times};
use crate::sys::rooted;
use crate::{Context, Result};

/// Finish what the threads made: `parts` is what each of them returned.
pub(super) fn finish(shared: Shared, parts: Vec<(Counts, Vec<Entry>)>) -> Result<Cloned> {
    let Shared { clone, queue, links, .. } = shared;
    let mut directories = queue.into_directories();
    let (mut counts, mut entries) = (Counts::default(), Vec::new());
    for (part, made) in parts {
        counts += part;
        entries.extend(made);
    }
    for linked in links.into_all() {
        let made = lock(&clone, &directories, &linked)?;
        entries.extend(linked.names.into_iter().map(|name| Entry::new(name, linked.kind, made, None)));
    }
    for number in 1..directories.len() {
        if directories[number].made.is_none() {
            let parent = directories[number].parent as usize;
            let now = take_back(&clone, &directories, number)?;
            if let Some((_, made)) = &mut directories[parent].made {
                *made = Made { origin: made.origin, ..now };
            }
        }
    }
    let mut all = (0..).zip(directories).filter_map(|(number, Directory { parent, name, made, .. })| {
        made.map(|(_, made)| Entry::new((parent, name), FileType::Directory, made, Some(number)))
    });
    let root = all.next().expect("the root is open, so it can't vanish");
    entries.extend(all);
    Ok(Cloned { counts, root, entries })
}

/// Give an inode with several names the flags that forbid further ones.
fn lock(clone: &OwnedFd, directories: &[Directory], linked: &Linked) -> Result<Made> {
    if linked.flags.is_empty() {
        return Ok(linked.made);
    }
    let (directory, name) = &linked.names[0];
    let path = path(directories, 0, *directory);
    (|| {
        let directory = rooted::beneath(clone, &path, OFlags::PATH).context(|| "open its directory")?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&directory, &**name, flags, Mode::empty()).context(|| "open")?;
        set_flags(&file, linked.flags, true)?;
        Made::of(&file, c"", AtFlags::EMPTY_PATH, linked.made.origin).context(|| "stat")
    })()
    .context(|| format!("/{}/{}", path.escape_ascii(), name.escape_ascii()))
}

/// Remove a directory that vanished from the source before anything was made in it: what the one it was in is now.
fn take_back(clone: impl AsFd, directories: &[Directory], number: usize) -> Result<Made> {
    let Directory { parent, name, .. } = &directories[number];
    let path = path(directories, 0, *parent);
    (|| {
        let directory = rooted::beneath(clone, &path, OPEN_DIRECTORY).context(|| "open its directory")?;
        let before = facts(&directory, c"", AtFlags::EMPTY_PATH).context(|| "stat its directory")?;
        unlinkat(&directory, &**name, AtFlags::REMOVEDIR).context(|| "rmdir")?;
        futimens(&directory, &times(&before)).context(|| "set the times of its directory")?;
        Made::of(&directory, c"", AtFlags::EMPTY_PATH, None).context(|| "stat its directory")
    })()
    .context(|| format!("/{}/{}, which vanished from the source", path.escape_ascii(), name.escape_ascii()))
}
