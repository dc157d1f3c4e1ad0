//! What differs between two trees, from pictures of both: another program than either feed, and as plain as can be.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use reflinkd::backend::changes::{Changes, EntryKind, What};

use crate::support::{EntryFacts, tree_digest};

/// Path, what became of it, and its type.
pub(crate) type Line = (String, What, EntryKind);
type Picture = BTreeMap<Vec<u8>, EntryFacts>;

/// What a feed said, to be compared and printed.
pub(crate) fn lines(changes: &Changes) -> Vec<Line> {
    use std::os::unix::ffi::OsStrExt;
    let text = |path: &Path| path.as_os_str().as_bytes().escape_ascii().to_string();
    changes.list.iter().map(|change| (text(&change.path), change.what, change.kind)).collect()
}

/// What it should have said.
pub(crate) fn expected(parent: &Path, tree: &Path) -> Vec<Line> {
    let (old, new) = (picture(parent), picture(tree));
    let moved = moved(&old, &new);
    let mut paths: Vec<&Vec<u8>> = old.keys().chain(new.keys()).collect::<BTreeSet<_>>().into_iter().collect();
    paths.sort_by_key(|path| path.split(|&b| b == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>());
    let line = |path: &Vec<u8>| {
        let (what, facts) = match (old.get(path), new.get(path)) {
            (None, Some(is)) => (What::Added, is),
            (Some(was), None) => {
                let at = path.iter().rposition(|&b| b == b'/').unwrap_or(0);
                let around = new.get(&path[..at]).filter(|around| around.kind == "dir")?;
                (old[&path[..at]].kind == "dir" && around.kind == "dir").then_some((What::Deleted, was))?
            }
            (Some(was), Some(is)) if was.kind != is.kind => (What::Replaced { was: kind(was) }, is),
            (Some(was), Some(is)) => {
                let settled = |facts: &EntryFacts| EntryFacts { first_name: Vec::new(), ..facts.clone() };
                let (was, now) = (settled(was), settled(is));
                let retimed = EntryFacts { mtime: now.mtime, ..was.clone() };
                let what = match () {
                    () if was == now && !moved.contains(path) => return None,
                    () if is.kind == "dir" && retimed == now => What::Touched,
                    () => What::Modified,
                };
                (what, is)
            }
            (None, None) => return None,
        };
        Some((path.escape_ascii().to_string(), what, kind(facts)))
    };
    let mut lines: BTreeMap<&Vec<u8>, Line> = paths.iter().filter_map(|path| Some((*path, line(path)?))).collect();
    // What is to be made takes all names of its inode along.
    let is_made = |what: What| !matches!(what, What::Deleted | What::Touched);
    let made: BTreeSet<&Vec<u8>> = lines
        .iter()
        .filter(|(path, (_, what, kind))| is_made(*what) && *kind != EntryKind::Directory && new.contains_key(**path))
        .map(|(path, _)| &new[*path].first_name)
        .collect();
    for (path, facts) in new.iter().filter(|(_, facts)| facts.kind != "dir" && made.contains(&facts.first_name)) {
        lines.entry(path).or_insert_with(|| (path.escape_ascii().to_string(), What::Linked, kind(facts)));
    }
    paths.iter().filter_map(|path| lines.remove(*path)).collect()
}

/// All of a tree but the labels, which are the host's.
fn picture(root: &Path) -> Picture {
    let mut picture = tree_digest(root);
    for facts in picture.values_mut() {
        facts.xattrs.remove(&b"security.selinux"[..]);
    }
    picture
}

/// Names in both trees whose inode has another first one among those now.
fn moved(old: &Picture, new: &Picture) -> BTreeSet<Vec<u8>> {
    let common = |path: &&Vec<u8>| old.get(*path).zip(new.get(*path)).is_some_and(|(a, b)| a.kind == b.kind);
    let common: Vec<&Vec<u8>> = old.keys().filter(common).collect();
    let first_names = |picture: &Picture| {
        let mut first = HashMap::new();
        let of = |path: &&Vec<u8>| first.entry(picture[*path].first_name.clone()).or_insert((*path).clone()).clone();
        common.iter().map(of).collect::<Vec<_>>()
    };
    let (before, after) = (first_names(old), first_names(new));
    common
        .iter()
        .zip(before.iter().zip(&after))
        .filter(|(_, (a, b))| a != b)
        .map(|(path, _)| (*path).clone())
        .collect()
}

fn kind(facts: &EntryFacts) -> EntryKind {
    match facts.kind {
        "dir" => EntryKind::Directory,
        "file" => EntryKind::File,
        "link" => EntryKind::Symlink,
        "fifo" => EntryKind::Fifo,
        "socket" => EntryKind::Socket,
        "char" => EntryKind::CharacterDevice,
        "block" => EntryKind::BlockDevice,
        other => panic!("no such type: {other}"),
    }
}

/// Panics with the first lines that only one of the two has.
#[track_caller]
pub(crate) fn assert_same_lines(what: &str, found: &[Line], expected: &[Line]) {
    let shown = |sign: char, lines: &[Line], others: &[Line]| {
        let only = lines.iter().filter(|line| !others.contains(line)).take(8);
        only.map(|(path, what, kind)| format!("  {sign} /{path}: {what:?} {kind:?}\n")).collect::<String>()
    };
    let differences = shown('+', found, expected) + &shown('-', expected, found);
    assert!(differences.is_empty(), "{what}: too much (+), too little (-)\n{differences}");
    assert_eq!(found, expected, "{what}: the order");
}
