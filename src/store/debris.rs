//! What dead processes left: finding it, and telling it from what the living work on.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::files::Lock;
use super::places::{self, PlaceLock};
use super::record::Record;
use super::{Held, State, Store, exists, open_place, remove_place, scan};
use crate::{Error, Kind, Result};

/// A place that no row names, nobody works on, and that holds no tree with a record. Nobody can take it while this lives.
#[derive(Debug)]
#[must_use]
pub struct Stray {
    place: PathBuf,
    _lock: PlaceLock,
}

impl Stray {
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }
}

impl Store {
    /// Wait until nobody works on a place (its maker has published or abandoned it, or died).
    pub fn wait_for(&self, uuid: Uuid) -> Result<()> {
        places::lock(self.root(), uuid, Lock::Shared).map(|_| ())
    }

    /// What dead makers, changers and removers left: ours to finish or undo while we hold it.
    pub fn debris(&self) -> Result<Vec<Held>> {
        let mut debris = Vec::new();
        let unsettled = self.index().unsettled()?;
        for uuid in places::unlocked(self.root(), unsettled)? {
            let Some(lock) = places::lock(self.root(), uuid, Lock::TryExclusive)? else { continue };
            // Who couldn't write its row said so before he let go of the lock.
            if self.is_outdated() {
                break;
            }
            // It may have become ready, or gone, before we got the lock.
            let Some((record, state)) = self.index().get(uuid)? else { continue };
            let place = self.place(uuid);
            match state {
                // What of it was to be changed is taken back.
                State::Ready if self.index().is_changing(uuid)? && exists(&place)? => {
                    debris.push(Held { record, state, place, _lock: lock });
                }
                State::Ready => {}
                // It was acknowledged: what is missing of it is for a repair to make again.
                State::Making if self.is_needed(&record)? => {}
                _ if exists(&place)? => debris.push(Held { record, state, place, _lock: lock }),
                _ => self.forget_row_if_unsettled(uuid)?,
            }
        }
        Ok(debris)
    }

    /// Places that no row names and nobody works on: made by someone who died before reserving a name. With them, why others
    /// are left alone.
    ///
    /// One with a record and a tree isn't among either: both are whole, whatever became of the row. A record is there before
    /// its tree and goes after it, so that a tree without one, or with one that can't be read, isn't what the dead leave: that
    /// is damage, and perhaps somebody's data.
    pub fn strays(&self) -> Result<(Vec<Stray>, Vec<Error>)> {
        let (mut strays, mut damaged) = (Vec::new(), Vec::new());
        for (uuid, place) in scan::places(self.root())? {
            if self.index().get(uuid)?.is_some() {
                continue;
            }
            let Some(lock) = places::lock(self.root(), uuid, Lock::TryExclusive)? else { continue };
            if !exists(&place)? {
                continue;
            }
            if self.index().get(uuid)?.is_some() {
                continue;
            }
            let tree = place.join("fs").exists();
            match open_place(&place).and_then(|directory| Record::read(&directory, &place)) {
                Ok(Some(_)) if tree => {}
                Ok(None) if tree => {
                    damaged.push(Error::new(Kind::Damaged, format!("{} has a tree and no record", place.display())));
                }
                Ok(_) => strays.push(Stray { place, _lock: lock }),
                Err(e) => damaged.push(e),
            }
        }
        let left =
            |e: Error| e.with_hint("it may hold somebody's data, and is left alone; see: reflinkd check --repair");
        Ok((strays, damaged.into_iter().map(left).collect()))
    }

    /// All places, whatever the index says of them: to destroy the store.
    pub fn all_places(&self) -> Result<Vec<PathBuf>> {
        Ok(scan::places(self.root())?.into_iter().map(|(_, place)| place).collect())
    }

    /// Remove a stray place whose tree has been destroyed.
    pub fn remove_stray(&self, stray: Stray) -> Result<()> {
        remove_place(&stray.place)
    }

    /// Remove any place whose tree has been destroyed: only by who has the store for itself.
    pub fn remove_any(&self, place: &Path) -> Result<()> {
        remove_place(place)
    }

    /// Whether other trees, or an image, are based on it.
    fn is_needed(&self, record: &Record) -> Result<bool> {
        if record.layer().is_none() {
            return Ok(false);
        }
        if self.index().has_children(record.uuid)? {
            return Ok(true);
        }
        // Where an image can't be read nothing is unneeded.
        Ok(self.images().map_or(true, |images| images.iter().any(|image| image.top == Some(record.uuid))))
    }

    fn forget_row_if_unsettled(&self, uuid: Uuid) -> Result<()> {
        self.removing(|change| match change.get(uuid)? {
            Some((_, state)) if state != State::Ready => change.delete(uuid),
            _ => Ok(()),
        })
    }
}
