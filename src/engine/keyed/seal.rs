//! Committing a tree because something is to be based on it.

use super::Keyspace;
use crate::Result;
use crate::backend::Tree;
use crate::layer::pack::Count;
use crate::store::{Content, Keyed, Record, Stage};

impl Keyspace<'_> {
    /// The record of a key's tree, committed by now.
    pub(super) fn sealed(&self, key: &str) -> Result<Record> {
        let record = self.real_tree_of(key)?;
        match record.keyed().map(|keyed| &keyed.stage) {
            Some(Stage::Committed { .. }) => Ok(record),
            _ => self.seal(&record),
        }
    }

    /// Make a tree one that stays as it is, with so much beyond its parent.
    pub(in crate::engine) fn committed(&self, tree: &Tree, count: Option<Count>) -> Result<Stage> {
        let (method, size) = self.engine.backend.seal(tree)?;
        let (apparent_size, inodes) = (count.map(|count| count.file_bytes), count.map(|count| count.inodes));
        Ok(Stage::Committed { size, size_method: method.to_string(), apparent_size, inodes })
    }

    fn seal(&self, record: &Record) -> Result<Record> {
        let mut held = self.engine.store.hold(record.uuid)?;
        let Some(keyed) = held.record().keyed().cloned() else { return Ok(held.record().clone()) };
        if matches!(keyed.stage, Stage::Committed { .. }) {
            return Ok(held.record().clone());
        }
        let tree = self.engine.tree(held.record());
        let count = self.count(held.record())?;
        let stage = self.committed(&tree, Some(count))?;
        let amended = Record { content: Content::Keyed(Keyed { stage, ..keyed }), ..held.record().clone() };
        self.engine.store.amend(&mut held, amended)?;
        Ok(held.record().clone())
    }
}
