//! What a container has changed of its image: `diff`.

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
    let line = |path: &Path, change, kind, size: Option<u64>| DiffLine {
        path: path.to_path_buf(),
        change,
        kind,
        size: sizes.then(|| size.unwrap_or(0)),
    };
    let mut lines = vec![line(Path::new(""), DiffChange::Changed, EntryKind::Directory, None)];
    // The lines on the way to the one that came last.
    let mut open = vec![0];
    for change in changes.list.iter().filter(|change| !matches!(change.what, What::Touched | What::Linked)) {
        let path = change.path.as_path();
        // They are sorted, parents before their children: what isn't above this is done.
        while let Some(last) = open.pop_if(|last| *last > 0 && !path.starts_with(&lines[*last].path)) {
            add_up(&mut lines, last, open.last().copied());
        }
        let above = open.last().map_or(0, |last| lines[*last].path.iter().count());
        let missing: Vec<_> = path.ancestors().skip(1).take(path.iter().count().saturating_sub(above + 1)).collect();
        for absent in missing.into_iter().rev() {
            open.push(lines.len());
            lines.push(line(absent, DiffChange::Changed, EntryKind::Directory, None));
        }
        if path.as_os_str().is_empty() {
            continue;
        }
        open.push(lines.len());
        lines.push(line(path, letter(change), change.kind, change.size));
    }
    while let Some(last) = open.pop() {
        add_up(&mut lines, last, open.last().copied());
    }
    let root = lines.remove(0);
    Diff { lines, size: root.size, method: changes.method }
}

/// Add what a line has to the one above it.
fn add_up(lines: &mut [DiffLine], last: usize, above: Option<usize>) {
    if let (Some(above), Some(size)) = (above, lines[last].size)
        && let Some(sum) = &mut lines[above].size
    {
        *sum += size;
    }
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
