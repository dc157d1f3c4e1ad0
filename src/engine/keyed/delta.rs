//! What a keyed tree has that another doesn't: as paths, as a number, as a layer's tar.

use std::io::Write;

use super::Keyspace;
use crate::backend::changes::{Changes, Comparison, walk};
use crate::backend::{Access, CloneCost, Tree};
use crate::engine::delta;
use crate::engine::diff::{DiffLine, folded};
use crate::layer::pack::{self, Count};
use crate::layer::recipe;
use crate::layer::sink::Plain;
use crate::store::{self, Init, Record, Stage};
use crate::{Kind, Result};

/// How often to look again because something was removed while it was counted.
const ATTEMPTS: u32 = 8;

/// What a tree is compared with.
enum Against {
    /// What it was cloned from.
    Parent,
    /// What it was when it became this key's.
    Init(Init),
    /// Some other tree.
    Tree(Box<Record>),
    Nothing,
}

impl Keyspace<'_> {
    /// What a tree has that the one of `parent` doesn't, or that none has; as of one moment where clones are constant.
    pub fn changes(&self, key: &str, parent: Option<&str>) -> Result<Vec<DiffLine>> {
        let compared = || -> Result<_> {
            let (record, against) = self.compared(key, parent)?;
            Ok(folded(&self.feed(&record, &against)?, false).lines)
        };
        compared().map_err(|e| e.context(cannot_compare(key, parent)))
    }

    /// The bytes in regular files of a layer of what the tree has that the one of `parent` doesn't: what
    /// [`Keyspace::apply`] of that layer would answer.
    pub fn diff_size(&self, key: &str, parent: Option<&str>) -> Result<u64> {
        let sized = || -> Result<u64> {
            let (record, against) = self.compared(key, parent)?;
            match (record.keyed().map(|keyed| &keyed.stage), &against) {
                (Some(Stage::Committed { apparent_size: Some(size), .. }), Against::Parent) => Ok(*size),
                // What it is compared with first and last: with others it isn't worth keeping.
                (Some(Stage::Active), Against::Init(_)) => self.counted_once(&record, &against),
                _ => Ok(self.counted(&record, &against)?.file_bytes),
            }
        };
        sized().map_err(|e| e.context(cannot_compare(key, parent)))
    }

    /// [`Keyspace::counted`], unless it is known from before and nothing has changed since.
    fn counted_once(&self, record: &Record, against: &Against) -> Result<u64> {
        let (engine, tree) = (self.engine, self.engine.tree(record));
        let known = engine.backend.state(&tree)?.and_then(|state| engine.diff_sizes.get(record.uuid, state));
        if let Some(size) = known {
            return Ok(size);
        }
        if engine.backend.clone_cost() != CloneCost::Constant || !engine.backend.nested(&tree)?.is_empty() {
            return Ok(self.counted(record, against)?.file_bytes);
        }
        self.with_still(record, |still| {
            let items = delta::items(&self.compare(record, still, against)?);
            let size = pack::count(&still.root(), &items, &|| engine.is_cancelled())?.file_bytes;
            // On a full disk it may be the tree itself.
            if still.place() != tree.place()
                && let Some(state) = engine.backend.state_of_fork(&tree, still)?
            {
                engine.diff_sizes.put(record.uuid, state, size);
            }
            Ok(size)
        })
    }

    /// What the tree has beyond its parent.
    pub(in crate::engine) fn count(&self, record: &Record) -> Result<Count> {
        self.counted(record, &Against::Parent)
    }

    fn counted(&self, record: &Record, against: &Against) -> Result<Count> {
        let tree = self.engine.tree(record);
        let count = || -> Result<Count> {
            let items = delta::items(&self.feed(record, against)?);
            pack::count(&tree.root(), &items, &|| self.engine.is_cancelled())
        };
        for _ in 1..ATTEMPTS {
            match count() {
                // It was removed since it was found.
                Err(e) if e.kind() == Kind::NotFound => {}
                counted => return counted,
            }
        }
        count()
    }

    /// Write the plain tar of a layer of what the tree has that the one of `parent` doesn't. For a layer that was applied, and
    /// its own parent, that is the tar that was applied.
    pub fn diff(&self, key: &str, parent: Option<&str>, out: &mut dyn Write) -> Result<()> {
        let mut written = || -> Result<()> {
            let (record, against) = self.compared(key, parent)?;
            let place = self.engine.store.place(record.uuid);
            let recipe = store::recipe(&place);
            if matches!(against, Against::Parent) && recipe.exists() {
                let root = self.engine.tree(&record).root();
                return recipe::restore(&recipe, &root, out, &|| self.engine.is_cancelled());
            }
            self.with_still(&record, |tree| self.pack(&record, tree, &against, out))
        };
        written().map_err(|e| e.context(cannot_compare(key, parent)))
    }

    fn pack(&self, record: &Record, tree: &Tree, against: &Against, out: &mut dyn Write) -> Result<()> {
        let changes = self.compare(record, tree, against)?;
        let limit = self.engine.settings.layer_limits.max_bytes;
        let mut sink = Plain(out);
        let items = delta::items(&changes);
        let packed = pack::pack(&tree.root(), &items, &self.ids, limit, &mut sink, &|| self.engine.is_cancelled())?;
        if packed.left_out > 0 {
            tracing::warn!("left out {} sockets, which a layer can't hold", packed.left_out);
        }
        Ok(())
    }

    /// What a tree has that the other doesn't, as of one moment where clones are constant; subvolumes made inside are part of it.
    fn feed(&self, record: &Record, against: &Against) -> Result<Changes> {
        let tree = self.engine.tree(record);
        match against {
            Against::Parent => self.engine.changes(record, false),
            Against::Init(init) => self.since(init, record, &tree.root(), self.engine.changes(record, false)?),
            Against::Tree(_) | Against::Nothing => self.compare(record, &tree, against),
        }
    }

    /// What a tree that is the record's, or a fork of that, has beyond the record's parent.
    pub(in crate::engine) fn counted_in(&self, record: &Record, tree: &Tree) -> Result<Count> {
        let items = delta::items(&self.compare(record, tree, &Against::Parent)?);
        pack::count(&tree.root(), &items, &|| self.engine.is_cancelled())
    }

    /// Compare a tree that is the record's, or a fork of that, as it is.
    fn compare(&self, record: &Record, tree: &Tree, against: &Against) -> Result<Changes> {
        let engine = self.engine;
        let parent = match against {
            Against::Parent | Against::Init(_) => engine.parent_tree(record)?,
            Against::Tree(other) => Some(engine.tree(other)),
            Against::Nothing => None,
        };
        let comparison = Comparison { parent: parent.as_ref(), tree, scratch: None, sizes: false };
        match against {
            Against::Parent => engine.backend.changes(&comparison),
            Against::Init(init) => self.since(init, record, &tree.root(), engine.backend.changes(&comparison)?),
            Against::Tree(_) | Against::Nothing => walk(&comparison),
        }
    }

    /// Do something with a tree that nobody changes meanwhile: a fork where that is constant. Elsewhere it is the tree itself,
    /// whose user is stopped by our client if he wants one moment.
    pub(in crate::engine) fn with_still<T>(
        &self,
        record: &Record,
        work: impl FnOnce(&Tree) -> Result<T>,
    ) -> Result<T> {
        let (engine, tree) = (self.engine, self.engine.tree(record));
        let committed = record.keyed().is_some_and(|keyed| matches!(keyed.stage, Stage::Committed { .. }));
        if committed || engine.backend.clone_cost() != CloneCost::Constant {
            return work(&tree);
        }
        engine.with_scratch(record, |scratch| match scratch {
            Some(fork) => {
                engine.backend.fork(&tree, fork, Access::ReadOnly, None)?;
                work(fork)
            }
            None => work(&tree),
        })
    }

    /// The tree of a key, and what it is compared with.
    fn compared(&self, key: &str, parent: Option<&str>) -> Result<(Record, Against)> {
        let record = self.real_tree_of(key)?;
        let init = record.keyed().and_then(|keyed| keyed.init.as_ref());
        let against = match parent {
            None if record.parent.is_none() => Against::Parent,
            None => Against::Nothing,
            Some(parent) if init.is_some_and(|init| init.key == parent) => {
                init.cloned().map_or(Against::Nothing, Against::Init)
            }
            Some(parent) => match self.tree_of(parent)? {
                other if record.parent == Some(other.uuid) => Against::Parent,
                other => Against::Tree(Box::new(other)),
            },
        };
        Ok((record, against))
    }
}

fn cannot_compare(key: &str, parent: Option<&str>) -> String {
    match parent {
        Some(parent) => format!("cannot compare {key} with {parent}"),
        None => format!("cannot read all of {key}"),
    }
}
