//! What a container has changed of its image: `diff`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use super::Engine;
use crate::backend::changes::{Change, Changes, Comparison, EntryKind, FeedMethod, What};
use crate::store::Record;
use crate::{Context, Result};

/// What a container has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diff {
    /// Sorted by path; the root directory is left out.
    pub lines: Vec<DiffLine>,
    /// Bytes of all of them; `None` unless asked for.
    pub size: Option<u64>,
    pub method: FeedMethod,
}

/// One path, as Docker tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiffLine {
    /// Below the container's root.
    pub path: PathBuf,
    pub change: DiffChange,
    /// What it is now; what it was if it is deleted.
    pub kind: EntryKind,
    /// Bytes that it takes on disk and its image doesn't, a directory's with all below it. `None` unless asked for.
    pub size: Option<u64>,
}

/// A, C and D.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiffChange {
    Added,
    /// Also a directory in which something was added, changed or deleted.
    Changed,
    /// With all that was below it.
    Deleted,
}

impl Engine {
    /// What a container, or a snapshot of one (`NAME@LABEL`), has changed of its image, as of one moment; it may be written to meanwhile. With `sizes` what each
    /// path takes, too.
    pub fn diff(&self, name: &str, sizes: bool) -> Result<Diff> {
        (|| -> Result<_> {
            let record = self.find_tree(name)?;
            // A view is its image's own tree.
            let changes = match record.container() {
                Some(container) if container.read_only => Changes { list: Vec::new(), method: FeedMethod::Unchanged },
                _ => self.changes(&record, sizes)?,
            };
            tracing::debug!(method = %changes.method, changes = changes.list.len(), "compared");
            Ok(folded(&changes, sizes))
        })()
        .context(|| format!("cannot compare container {name} with its image"))
    }

    /// The changes of a tree against its parent's, as of one moment if a temporary tree can be made.
    pub(super) fn changes(&self, record: &Record, sizes: bool) -> Result<Changes> {
        let (tree, parent) = (self.tree(record), self.parent_tree(record)?);
        self.with_scratch(record, |scratch| {
            self.backend.changes(&Comparison { parent: parent.as_ref(), tree: &tree, scratch, sizes })
        })
    }
}

/// The facts as Docker tells them: a directory in which something changed has changed, one of which only the time of
/// modification did has not, nor has what a layer only carries along, and the root is not spoken of.
pub(super) fn folded(changes: &Changes, sizes: bool) -> Diff {
    let mut lines: BTreeMap<&Path, DiffLine> = BTreeMap::new();
    let told = changes.list.iter().filter(|change| !matches!(change.what, What::Touched | What::Linked));
    for change in told {
        let line =
            |path: &Path, change, kind| DiffLine { path: path.to_path_buf(), change, kind, size: sizes.then_some(0) };
        // Parents come before their children, so that what is there already is there with all its parents.
        for above in change.path.ancestors().skip(1) {
            match lines.entry(above) {
                Entry::Occupied(_) => break,
                Entry::Vacant(absent) => {
                    absent.insert(line(above, DiffChange::Changed, EntryKind::Directory));
                }
            }
        }
        lines.insert(&change.path, line(&change.path, letter(change), change.kind));
        for above in change.path.ancestors() {
            let size = lines.get_mut(above).and_then(|line| line.size.as_mut());
            if let (Some(size), Some(own)) = (size, change.size) {
                *size += own;
            }
        }
    }
    let size = sizes.then(|| lines.get(Path::new("")).and_then(|root| root.size).unwrap_or(0));
    lines.remove(Path::new(""));
    Diff { lines: lines.into_values().collect(), size, method: changes.method }
}

fn letter(change: &Change) -> DiffChange {
    match change.what {
        What::Added => DiffChange::Added,
        What::Modified | What::Touched | What::Linked | What::Replaced { .. } => DiffChange::Changed,
        What::Deleted => DiffChange::Deleted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &str, what: What, kind: EntryKind, size: u64) -> Change {
        Change { path: path.into(), what, kind, size: Some(size) }
    }

    fn fold(list: Vec<Change>) -> Vec<(String, DiffChange, u64)> {
        let diff = folded(&Changes { list, method: FeedMethod::Send }, true);
        let text = |line: &DiffLine| (line.path.display().to_string(), line.change, line.size.expect("asked for"));
        diff.lines.iter().map(text).collect()
    }

    #[test]
    fn directories_around_a_change_have_changed_and_hold_its_bytes() {
        use DiffChange::{Added, Changed, Deleted};
        let list = vec![
            change("", What::Touched, EntryKind::Directory, 0),
            change("a", What::Touched, EntryKind::Directory, 0),
            change("a/b/new", What::Added, EntryKind::Directory, 0),
            change("a/b/new/f", What::Added, EntryKind::File, 10),
            change("a/c", What::Modified, EntryKind::File, 5),
            change("d", What::Modified, EntryKind::Directory, 0),
            change("d/gone", What::Deleted, EntryKind::Directory, 0),
            change("e", What::Replaced { was: EntryKind::File }, EntryKind::Directory, 0),
            change("e/f", What::Added, EntryKind::File, 1),
        ];
        let expected = [
            ("a", Changed, 15),
            ("a/b", Changed, 10),
            ("a/b/new", Added, 10),
            ("a/b/new/f", Added, 10),
            ("a/c", Changed, 5),
            ("d", Changed, 0),
            ("d/gone", Deleted, 0),
            ("e", Changed, 1),
            ("e/f", Added, 1),
        ];
        assert_eq!(fold(list), expected.map(|(path, change, size)| (path.to_string(), change, size)));
    }

    #[test]
    fn a_time_of_modification_alone_is_not_told() {
        assert!(
            fold(vec![
                change("", What::Modified, EntryKind::Directory, 0),
                change("a", What::Touched, EntryKind::Directory, 0)
            ])
            .is_empty()
        );
    }

    #[test]
    fn what_is_linked_to_is_not_told() {
        let list = vec![
            change("a", What::Touched, EntryKind::Directory, 0),
            change("a/new", What::Added, EntryKind::File, 0),
            change("b/c", What::Linked, EntryKind::File, 0),
        ];
        let told: Vec<String> = fold(list).into_iter().map(|(path, ..)| path).collect();
        assert_eq!(told, ["a", "a/new"]);
    }
}
