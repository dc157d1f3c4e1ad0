//! Names of one inode, and whether they still go together.
//!
//! Inode numbers say nothing across filesystems and copies, so this goes by names: among those that are in both trees,
//! each inode is known by its first name. A name whose inode is known by another one than before goes with other names
//! than before, or with none any more. Names that came or went say that themselves.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::entry::Id;

/// All names met whose inode has several, here or there.
#[derive(Debug, Default)]
pub(super) struct Links {
    names: BTreeMap<Vec<u8>, Link>,
    asked: HashSet<Inode>,
}

/// A name in the new tree.
#[derive(Debug)]
struct Link {
    /// What it was, if that was of the same type.
    old: Option<Id>,
    new: Id,
}

/// An inode that may have names which weren't met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::backend) enum Inode {
    Old(Id),
    New(Id),
}

impl Links {
    /// A name in the new tree; `old` is what it was, if that was of the same type.
    pub(super) fn add(&mut self, path: &[u8], old: Option<Id>, new: Id) {
        self.names.insert(path.to_vec(), Link { old, new });
    }

    pub(super) fn knows(&self, path: &[u8]) -> bool {
        self.names.contains_key(path)
    }

    /// The inodes behind the names, without those that an earlier call returned.
    pub(super) fn unasked(&mut self) -> Vec<Inode> {
        let inodes = self.names.values().flat_map(|link| {
            let old = link.old.map(Inode::Old);
            old.into_iter().chain([Inode::New(link.new)])
        });
        inodes.filter(|inode| self.asked.insert(*inode)).collect()
    }

    /// All names of each inode that has one which is `made`.
    pub(super) fn along(&self, made: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let of_made = self.names.iter().filter(|(path, _)| made(path));
        let inodes: HashSet<Id> = of_made.map(|(_, link)| link.new).collect();
        self.names.iter().filter(|(_, link)| inodes.contains(&link.new)).map(|(path, _)| path.clone()).collect()
    }

    /// The names that go with another first name than before.
    pub(super) fn moved(&self) -> impl Iterator<Item = &[u8]> {
        let (mut before, mut after) = (HashMap::new(), HashMap::new());
        self.names.iter().filter_map(move |(path, link)| {
            let (was, is) = (*before.entry(link.old?).or_insert(path), *after.entry(link.new).or_insert(path));
            (was != is).then_some(path.as_slice())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names with the numbers of their inodes before and after.
    fn links(names: &[(&str, Option<u64>, u64)]) -> Links {
        let id = |inode| Id { device: 1, inode };
        let mut links = Links::default();
        for (path, old, new) in names {
            links.add(path.as_bytes(), old.map(id), id(*new));
        }
        links
    }

    fn moved(names: &[(&str, Option<u64>, u64)]) -> Vec<String> {
        links(names).moved().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    }

    #[test]
    fn other_inode_numbers_with_the_same_names_are_no_change() {
        assert!(moved(&[("a", Some(1), 11), ("b", Some(1), 11), ("c", Some(2), 12), ("d", Some(2), 12)]).is_empty());
    }

    #[test]
    fn a_further_name_changes_none_of_the_others() {
        assert!(moved(&[("a", None, 1), ("b", Some(1), 1), ("c", Some(1), 1)]).is_empty());
    }

    #[test]
    fn names_that_part_or_meet_have_changed() {
        assert_eq!(moved(&[("a", Some(1), 1), ("b", Some(1), 2)]), ["b"]);
        assert_eq!(moved(&[("a", Some(1), 1), ("b", Some(2), 1)]), ["b"]);
        assert_eq!(moved(&[("a", Some(1), 1), ("b", Some(1), 2), ("c", Some(1), 2)]), ["b", "c"]);
        assert_eq!(
            moved(&[("a", Some(1), 1), ("b", Some(1), 2), ("c", Some(2), 1), ("d", Some(2), 2)]),
            ["b", "c", "d"]
        );
    }

    #[test]
    fn a_name_that_is_made_takes_all_of_its_inode_along() {
        let links =
            links(&[("a", Some(1), 1), ("b", None, 1), ("c", Some(1), 1), ("d", Some(2), 2), ("e", Some(2), 2)]);
        assert_eq!(links.along(|path| path == b"b"), [b"a", b"b", b"c"]);
        assert!(links.along(|_| false).is_empty());
    }

    #[test]
    fn each_inode_is_asked_for_once() {
        let mut links = links(&[("a", Some(1), 1), ("b", None, 1)]);
        let id = Id { device: 1, inode: 1 };
        assert_eq!(links.unasked(), [Inode::Old(id), Inode::New(id)]);
        links.add(b"c", Some(Id { device: 1, inode: 2 }), id);
        assert_eq!(links.unasked(), [Inode::Old(Id { device: 1, inode: 2 })]);
    }
}
