//! Committing a tree because something is to be based on it.

use super::Keyspace;
use crate::Result;
use crate::backend::SizeMethod;
use crate::layer::pack::Count;
use crate::store::{Content, Held, Keyed, Record, Stage};

impl Keyspace<'_> {
    /// The record of a key's tree, committed by now.
    pub(super) fn sealed(&self, key: &str) -> Result<Record> {
        let record = self.real_tree_of(key)?;
        match record.keyed().map(|keyed| &keyed.stage) {
            Some(Stage::Committed { .. }) => Ok(record),
            _ => self.seal(&record),
        }
    }

    /// Make the tree of a record one that stays as it is, with so much beyond its parent.
    pub(super) fn committed(&self, record: &Record, count: Option<Count>) -> Result<Stage> {
        let (engine, tree) = (self.engine, self.engine.tree(record));
        let (mut method, mut size) = engine.backend.seal(&tree)?;
        if method == SizeMethod::Qgroup {
            // What somebody made to look at it may not be cleaned up yet, and what both share is exclusive to neither.
            let own = engine.backend.own(&tree, engine.parent_tree(record)?.as_ref())?;
            (method, size) = (SizeMethod::Extents, own.bytes());
        }
        let (apparent_size, inodes) = (count.map(|count| count.file_bytes), count.map(|count| count.inodes));
        Ok(Stage::Committed { size, size_method: method.to_string(), apparent_size, inodes })
    }

    fn seal(&self, record: &Record) -> Result<Record> {
        let held = self.engine.store.hold(record.uuid)?;
        let Some(keyed) = held.record().keyed().cloned() else { return Ok(held.record().clone()) };
        if matches!(keyed.stage, Stage::Committed { .. }) {
            return Ok(held.record().clone());
        }
        let count = self.count(held.record())?;
        self.seal_as(held, |_, stage| Keyed { stage, ..keyed }, Some(count), record.created)
    }

    /// Seal a tree that only we may touch, and write down what it is then. Cut short, or after a failure, it is as before.
    pub(in crate::engine) fn seal_as(
        &self,
        mut held: Held,
        becomes: impl FnOnce(&Record, Stage) -> Keyed,
        count: Option<Count>,
        created: jiff::Timestamp,
    ) -> Result<Record> {
        let store = &self.engine.store;
        store.begin_sealing(&mut held)?;
        let sealed = self.committed(held.record(), count).and_then(|stage| {
            let record =
                Record { created, content: Content::Keyed(becomes(held.record(), stage)), ..held.record().clone() };
            store.amend(&mut held, record)
        });
        match sealed {
            Ok(()) => Ok(held.record().clone()),
            Err(e) => {
                let uuid = held.record().uuid;
                if let Err(left) = self.engine.settle(held, false) {
                    tracing::warn!("cannot undo the sealing of {uuid}: {left}");
                }
                Err(e)
            }
        }
    }
}
