//! Clones of trees, file by file, on the filesystems that share blocks between files; and the removal of trees.
//!
//! Needs root, loop devices, mkfs.xfs, mkfs.btrfs and mkfs.ext4; fails without them.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use reflinkd::backend::clone::{Content, Counts, clone_tree};
use reflinkd::backend::remove::remove_tree;
use support::digest::assert_same;
use support::{LoopFs, MIB, tree_digest};

#[test]
fn smoke() {
    let fs = LoopFs::xfs(400 * MIB);
    let (from, to) = (fs.path().join("from"), fs.path().join("to"));
    fs::create_dir_all(from.join("a/b")).unwrap();
    fs::write(from.join("a/b/file"), "text").unwrap();
    fs::set_permissions(from.join("a/b/file"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(from.join("empty"), "").unwrap();
    fs::hard_link(from.join("a/b/file"), from.join("link")).unwrap();
    symlink("a/b", from.join("sym")).unwrap();
    let cloned = clone_tree(&from, &to, Content::Reflink, None).unwrap();
    let counts = Counts { directories: 3, cloned: 1, copied: 0, empty: 1, links: 1, symlinks: 1, nodes: 0 };
    assert_eq!(cloned.counts, counts);
    assert_eq!(cloned.entries.len(), 6);
    assert_same("clone", &tree_digest(&from), &tree_digest(&to));
    assert_eq!(remove_tree(&to).unwrap(), 7);
    assert_eq!(remove_tree(&to).unwrap(), 0);
}
