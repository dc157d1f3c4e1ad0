//! Making one damaged layer again from an archive or a registry, at its place and under its UUID, so that all that is based
//! on it finds it.
//!
//! ```text
//! unpack onto its parent, in a work tree     verified by its diff ID; until then nothing was touched
//! destroy what is left of the old tree       containers on it are trees of their own, and keep theirs
//! clone the work tree into the place         read-only; who dies before has the same finding again
//! recipe and record                          the layer is whole
//! ```

use crate::backend::{Access, Tree};
use crate::engine::load::{Incoming, Progress};
use crate::engine::{Engine, tree_at};
use crate::layer::recipe;
use crate::oci::{Digesting, Expected, Source, SourceLayer};
use crate::store::{self, Content, New, NewGroup, Record};
use crate::{Error, Kind, Result};

/// What of a layer is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// There is nothing of it.
    All,
    Tree,
    /// The tree stays if it is what the recipe is of.
    Recipe,
}

/// That a source lacks what was to be made from it.
pub(super) fn not_there() -> Error {
    Error::new(Kind::NotFound, "what --from names doesn't have it").with_hint("name another archive or image")
}

/// The layer with this diff ID in a source.
pub(super) fn find<'a>(source: &'a Source, diff_id: &str) -> Option<&'a SourceLayer> {
    let mut layers = source.images().iter().flat_map(|image| &image.layers);
    layers.find(|layer| layer.diff_id.to_string() == diff_id)
}

impl Engine {
    /// Make a layer again. Its record says what it is, and in which group.
    pub(super) fn remake(&self, record: &Record, part: Part, source: &Source, progress: &dyn Progress) -> Result<()> {
        let diff_id = record.layer().map(|layer| layer.diff_id.clone()).unwrap_or_default();
        let layer = find(source, &diff_id).ok_or_else(not_there)?;
        self.guard_host()?;
        let mut record = record.clone();
        if record.group.is_none() {
            record.group = Some(self.store.new_group()?);
        }
        let held = match part {
            Part::All => self.store.begin_again(&record)?,
            Part::Tree | Part::Recipe => self.store.hold_damaged(&record)?,
        };
        let work = self.store.begin(New {
            owner: record.owner.clone(),
            parent: record.parent,
            group: NewGroup::Same(record.group),
            content: Content::Work,
        })?;
        let work_tree = tree_at(work.place().to_path_buf(), work.record());
        let incoming = Incoming {
            raw: source.layer_reader(layer)?,
            expected: Expected::of(layer, self.settings.layer_limits.max_bytes),
            total: Some(layer.size()),
            label: layer.diff_id.0.short(),
            progress,
        };
        let made = (|| {
            let (summary, _) = self.unpack_into(&work, &store::recipe(work.place()), incoming)?;
            let tree = Tree::new(held.place(), work_tree.group());
            let new = store::recipe(work.place());
            if part != Part::Recipe || !self.is_of(&new, &tree, &diff_id) {
                if part == Part::All
                    && let Content::Layer(layer) = &mut record.content
                {
                    let (method, size) = self.backend.measure_for_good(&work_tree)?;
                    (layer.size, layer.size_method, layer.apparent_size) = (size, method.to_string(), summary.bytes);
                }
                self.backend.destroy(&tree)?;
                self.backend.clone_tree(&work_tree, &tree, Access::ReadOnly, None)?;
            }
            self.store.take_recipe(&work, &held)
        })();
        let done = made.and_then(|()| self.store.mended(held, record.clone()).map(drop));
        self.discard(work);
        done.and_then(|()| self.show_again(record.uuid))
    }

    /// Whether a recipe and a tree make the tar of this digest.
    fn is_of(&self, path: &std::path::Path, tree: &Tree, diff_id: &str) -> bool {
        let mut out = Digesting::new(std::io::sink());
        let restored = recipe::restore(path, &tree.root(), &mut out, &|| self.is_cancelled());
        restored.is_ok() && out.into_inner().1.finish().to_string() == diff_id
    }
}
