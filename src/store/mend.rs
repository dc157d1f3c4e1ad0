//! Steps of a repair that no verb takes: each makes one damaged thing what it was, and touches nothing else.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use uuid::Uuid;

use super::files::{self, Lock};
use super::index::Change;
use super::record::Record;
use super::{Content, Draft, Held, Image, ImagesGuard, State, Store, open_place, scan};
use super::{identity, places};
use crate::sys::durable;
use crate::{Context, Error, Kind, Result};

/// Make the directories and lock files that are missing from the store at `root`.
pub fn make_missing(root: &Path) -> Result<()> {
    identity::make_parts(root)
}

/// Keep others out of a directory of the store; a group that was let through stays.
pub fn close(directory: &Path) -> Result<()> {
    let what = || format!("chmod {}", directory.display());
    let mode = std::fs::metadata(directory).context(what)?.permissions().mode();
    std::os::unix::fs::chown(directory, Some(0), None).context(what)?;
    durable::chmod(directory, mode & 0o0770).context(what)
}

/// Let the next who opens the store at `root` make its index anew: in a new file unless the one there is `sound`.
pub fn make_index_anew(root: &Path, sound: bool) -> Result<()> {
    scan::make_anew(root, sound)
}

/// Write the record of a place again whose own can't be read. Durable on return. Not while somebody works on the place.
pub fn write_record(root: &Path, record: &Record) -> Result<()> {
    let place = root.join("snapshots").join(record.uuid.to_string());
    let busy = || Error::new(Kind::InUse, "another reflinkd is working on it");
    let _lock = places::lock(root, record.uuid, Lock::TryExclusive)?.ok_or_else(busy)?;
    let directory = open_place(&place)?;
    record.write(&directory, &place)?;
    durable::fsync(&directory, &place).context(|| format!("fsync {}", place.display()))
}

impl Store {
    /// Lock the place of a layer whose tree is missing or damaged, whatever the index says of it.
    pub fn hold_damaged(&self, record: &Record) -> Result<Held> {
        let busy = || Error::new(Kind::InUse, "another reflinkd is working on it");
        let lock = places::lock(&self.root, record.uuid, Lock::TryExclusive)?.ok_or_else(busy)?;
        Ok(Held { record: record.clone(), state: State::Making, place: self.place(record.uuid), _lock: lock })
    }

    /// The place of a record that is gone with all it had, under the UUID that others know it by. Durable with the tree that
    /// is to be made in it.
    pub fn begin_again(&self, record: &Record) -> Result<Held> {
        let held = self.hold_damaged(record)?;
        durable::mkdir(&held.place, 0o777).context(|| format!("mkdir {}", held.place.display()))?;
        let directory = open_place(&held.place)?;
        self.reserving(|change| {
            change.put(record, State::Making)?;
            record.write(&directory, &held.place)
        })?;
        Ok(held)
    }

    /// A group number that no tree has had.
    pub fn new_group(&self) -> Result<u32> {
        self.reserving(super::take_group)
    }

    /// The tree of a place is whole again: write its record, and show it to everyone. Durable on return.
    pub fn mended(&self, held: Held, record: Record) -> Result<Record> {
        self.write(&held, record)
    }

    /// Move what a draft's maker wrote beside its tree to another place. Durable with that place's record.
    pub fn take_recipe(&self, from: &Draft, to: &Held) -> Result<()> {
        let (from, to) = (super::recipe(&from.place), super::recipe(&to.place));
        durable::rename(&from, &to).context(|| format!("rename {} to {}", from.display(), to.display()))
    }

    /// Take a place away of which nothing is left but its record, and that nothing is based on.
    pub fn forget_lost(&self, record: &Record) -> Result<()> {
        let held = self.hold_damaged(record)?;
        let begun = self.removing(|change: &Change<'_>| {
            if change.has_children(record.uuid)? {
                return Err(Error::new(Kind::InUse, "other trees are based on it"));
            }
            Ok(())
        });
        begun?;
        self.finish_removal(held)
    }

    /// Give a container the name that it is listed by since another one took its own.
    pub fn keep_given_name(&self, uuid: Uuid) -> Result<Record> {
        self.update(uuid, |record| {
            let listed = format!("-{}", record.uuid.simple());
            if let Content::Container(container) = &mut record.content
                && !container.name.ends_with(&listed)
            {
                container.name.push_str(&listed);
            }
            Ok(())
        })
    }
}

impl ImagesGuard<'_> {
    /// Write a manifest or configuration again whose file is damaged.
    pub fn mend_blob(&self, digest_hex: &str, bytes: &[u8]) -> Result<()> {
        files::remove(&self.store.blob_path(digest_hex)?)?;
        self.put_blob(digest_hex, bytes)
    }

    /// Write an image that was lost. A file that means nothing any more goes first: nobody can list images as long as it is
    /// there.
    pub fn mend(&self, image: &Image, instead_of: Option<&Path>) -> Result<()> {
        instead_of.map_or(Ok(()), files::remove)?;
        self.put(image)
    }
}
