//! Unpacking a layer into a reserved key's tree.
//!
//! The tree is made beside, in a place of its own, and takes the key over when it is whole: so a layer is there or not, and
//! one that couldn't be unpacked is reserved as before. One whose stream broke off takes no other: see [`store::Streaming`].

use std::io::Read;

use super::Keyspace;
use crate::backend::{Access, Tree};
use crate::engine::tree_at;
use crate::layer::{self, Summary};
use crate::store::{self, Content, Draft, Held, Keyed, New, NewGroup, Record, Stage};
use crate::sys::durable;
use crate::{Context, Error, Kind, Result};

impl Keyspace<'_> {
    /// Unpack a layer's plain tar into the tree of a key on `parent` that is not committed, and commit it. Durable on return.
    /// The sum of the lengths of the regular files in the tar, in bytes.
    ///
    /// # Errors
    /// As [`layer::record`]; `Invalid` if it has another parent; `Exists` if it is committed; `BadInput` once a stream into it
    /// broke off: reading it failed, or the process that read it died. After other errors the whole tar may be sent again.
    pub fn apply(&self, key: &str, parent: Option<&str>, tar: &mut dyn Read) -> Result<u64> {
        (|| -> Result<_> {
            self.engine.tidy()?;
            let record = self.tree_of(key)?;
            let held = self.engine.store.hold(record.uuid)?;
            let committed = |keyed: &Keyed| matches!(keyed.stage, Stage::Committed { .. });
            if held.record().keyed().is_none_or(committed) {
                return Err(Error::new(Kind::Exists, "it is committed, and nothing can be added to it"));
            }
            // Before anything can fail: our successor has to know that some of it is read.
            let stream = held.begin_stream()?;
            let ready = || {
                if let Some(other) = self.other_parent(held.record(), parent)? {
                    return Err(Error::new(Kind::Invalid, format!("it is {other}")));
                }
                self.engine.make_room(None)?;
                self.engine.guard_host()
            };
            ready().and_then(|()| self.apply_to(held, tar)).or_else(|e| {
                if std::io::copy(tar, &mut std::io::sink()).is_ok() {
                    stream.ended()?;
                }
                Err(e)
            })
        })()
        .context(|| format!("cannot unpack a layer into {key}"))
    }

    fn apply_to(&self, held: Held, tar: &mut dyn Read) -> Result<u64> {
        let engine = self.engine;
        let mut work = engine.store.begin(New {
            owner: self.owner.clone(),
            parent: held.record().parent,
            group: NewGroup::Same(held.record().group),
            content: Content::Work,
        })?;
        match self.make_applied(&mut work, &held, tar) {
            Ok(summary) => {
                let (_, replaced) = engine.store.publish_over(work, held)?;
                let uuid = replaced.record().uuid;
                let cleared =
                    engine.destroy_tree(replaced.record()).and_then(|()| engine.store.finish_removal(replaced));
                if let Err(e) = cleared {
                    // It is on its way out by its row.
                    tracing::warn!("what a layer was unpacked over stays at {uuid} for now: {e}");
                }
                Ok(summary.bytes)
            }
            Err(e) => {
                engine.discard(work);
                Err(e)
            }
        }
    }

    /// Give the draft its tree, and make it what the key's is to be. Durable on return.
    fn make_applied(&self, work: &mut Draft, held: &Held, tar: &mut dyn Read) -> Result<Summary> {
        let engine = self.engine;
        let Some(keyed) = held.record().keyed().cloned() else {
            return Err(Error::new(Kind::Damaged, "its record is of another kind"));
        };
        let tree = tree_at(work.place().to_path_buf(), work.record());
        let begun = keyed.stage == Stage::Active;
        if begun {
            engine.backend.fork(&engine.tree(held.record()), &tree, Access::Writable, keyed.size_limit)?;
        } else {
            self.make_tree_for(work.record(), &tree, keyed.size_limit)?;
        }
        let recipe = store::recipe(work.place());
        let limits = &engine.settings.layer_limits;
        let summary = engine.while_room(|stop| layer::record(tar, &tree.root(), &recipe, limits, &self.ids, stop))?;
        if begun {
            // The tar needn't be all that it has beyond its parent.
            durable::unlink(&recipe).context(|| format!("unlink {}", recipe.display()))?;
        }
        let label = self.label_layer(work.record(), keyed.label.as_deref())?;
        let (method, size) = engine.backend.seal(&tree)?;
        let (size_method, apparent_size) = (method.to_string(), Some(summary.bytes));
        let stage = Stage::Committed { size, size_method, apparent_size, inodes: None };
        work.set_content(Content::Keyed(Keyed { stage, label, ..keyed }));
        work.set_instead_of(held);
        engine.store.confirm(work)?;
        Ok(summary)
    }
}

impl Keyspace<'_> {
    /// A writable tree for a record: a clone of its parent's, or an empty one. Durable on return.
    pub(super) fn make_tree_for(&self, record: &Record, tree: &Tree, limit: Option<u64>) -> Result<()> {
        let engine = self.engine;
        if let Some(parent) = engine.parent_tree(record)? {
            return engine.backend.clone_tree(&parent, tree, Access::Writable, limit);
        }
        engine.backend.create(tree, limit)?;
        let (root, (uid, gid)) = (tree.root(), self.ids.root()?);
        std::os::unix::fs::lchown(&root, Some(uid), Some(gid)).context(|| format!("chown {}", root.display()))?;
        // A tar without an entry for its root would leave the time of now there: no two layers alike.
        crate::engine::load::set_epoch(&root)?;
        engine.backend.sync()
    }
}
