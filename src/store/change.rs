//! Writing the record of a tree that is there.
//!
//! It is written within the change of its row, and before that the index is told that it is being changed: should we die when
//! only the record is written, whoever comes next finds that, and writes it as the row has it.

use std::fs::File;
use std::path::Path;

use uuid::Uuid;

use super::index::Change;
use super::record::Record;
use super::{Held, State, Store, files, identity, open_place};
use crate::sys::durable;
use crate::{Context, Error, Kind, Result};

impl Store {
    /// Change the record of a tree. Durable on return.
    ///
    /// # Errors
    /// `Exists` if the new name is taken.
    pub fn update(&self, uuid: Uuid, change: impl FnOnce(&mut Record) -> Result<()>) -> Result<Record> {
        let held = self.hold_ready(uuid)?;
        let mut record = held.record.clone();
        change(&mut record)?;
        self.write(&held, record)
    }

    /// [`Store::update`] together with what else the record stands for, such as a limit: `also` is given the new record, or once
    /// it was and the record can't be written, the old one. Until both are what they are to be, the record says that its tree is
    /// being replaced: which of the two holds, nobody has to remember.
    pub fn update_with(
        &self,
        uuid: Uuid,
        change: impl FnOnce(&mut Record) -> Result<()>,
        also: impl Fn(&Record) -> Result<()>,
    ) -> Result<Record> {
        let held = self.hold_ready(uuid)?;
        let mut record = held.record.clone();
        change(&mut record)?;
        let steps = |change: &Change<'_>, directory: &File| {
            change.put(&record, State::Ready)?;
            mark_unsettled(&held, directory)?;
            also(&record)?;
            record.write(directory, &held.place)?;
            self.sync_place(directory, &held.place)
        };
        self.changing_or(&held, steps, || self.take_back_with(&held, &also))?;
        Ok(record)
    }

    fn hold_ready(&self, uuid: Uuid) -> Result<Held> {
        let held = self.hold(uuid)?;
        if held.state == State::Ready {
            return Ok(held);
        }
        Err(Error::new(Kind::InUse, "a process died while replacing it, and what it left can't be cleared"))
    }

    pub(super) fn write(&self, held: &Held, record: Record) -> Result<Record> {
        self.changing(held, |change, directory| {
            change.put(&record, State::Ready)?;
            record.write(directory, &held.place)?;
            self.sync_place(directory, &held.place)
        })?;
        Ok(record)
    }

    /// Change a row and the record beside its tree, in whose directory it lies that `steps` are given.
    pub(super) fn changing<T>(&self, held: &Held, steps: impl FnOnce(&Change<'_>, &File) -> Result<T>) -> Result<T> {
        self.changing_or(held, steps, || self.take_back(held))
    }

    /// [`Store::changing`], undone by `undo` if it fails.
    fn changing_or<T>(
        &self,
        held: &Held,
        steps: impl FnOnce(&Change<'_>, &File) -> Result<T>,
        undo: impl FnOnce() -> Result<()>,
    ) -> Result<T> {
        let directory = open_place(&held.place)?;
        self.announce_change(held)?;
        let changed = self.reserving(|change| {
            let answer = steps(change, &directory)?;
            change.set_changing(held.record.uuid, false)?;
            Ok(answer)
        });
        if changed.is_err()
            && held.state == State::Ready
            && let Err(e) = undo()
        {
            tracing::warn!("cannot take back what was to be changed of {}: {e}", held.record.uuid);
        }
        changed
    }

    /// Say that the record beside a tree is about to be another than its row's. One that isn't ready is looked at anyway.
    pub(super) fn announce_change(&self, held: &Held) -> Result<()> {
        match held.state {
            State::Ready => self.reserving(|change| change.set_changing(held.record.uuid, true)),
            _ => Ok(()),
        }
    }

    /// Let the record beside a tree be what its row says: who was changing it died, or failed.
    pub fn take_back(&self, held: &Held) -> Result<()> {
        let directory = open_place(&held.place)?;
        self.reserving(|change| {
            held.record.write(&directory, &held.place)?;
            self.sync_place(&directory, &held.place)?;
            change.set_changing(held.record.uuid, false)
        })
    }

    /// [`Store::take_back`], and what else the record stands for, as in [`Store::update_with`].
    pub fn take_back_with(&self, held: &Held, also: impl FnOnce(&Record) -> Result<()>) -> Result<()> {
        mark_unsettled(held, &open_place(&held.place)?)?;
        also(&held.record)?;
        self.take_back(held)
    }

    /// Make a place's record durable, and the names in it. After an I/O error XFS says yes to that although nothing was
    /// written; it says no when it is asked about a file.
    pub(super) fn sync_place(&self, directory: &File, place: &Path) -> Result<()> {
        durable::fsync(directory, place).context(|| format!("fsync {}", place.display()))?;
        files::sync(&identity::path(&self.root))
    }
}

/// Say in the record of a tree that only the filesystem knows what it is charged to, and its limit. Durable before whatever is
/// changed there next.
fn mark_unsettled(held: &Held, directory: &File) -> Result<()> {
    Record { replacing: true, ..held.record.clone() }.write(directory, &held.place)
}
