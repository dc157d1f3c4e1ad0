//! What a tree holds at this moment, without a commit: held to what a snapshot of it says.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use reflinkd::backend::{Access, OwnNow, Tree};

use crate::fixture::Fixture;
use crate::support::{QuotaSetup, arg, random_bytes, run};

const KIB: u64 = 1 << 10;

fn files(root: &Path) {
    for directory in 0..20 {
        let at = root.join(format!("d{directory}"));
        fs::create_dir(&at).expect("mkdir");
        for file in 0..20 {
            fs::write(at.join(format!("f{file}")), random_bytes(20 * KIB)).expect("write");
        }
    }
}

fn now(f: &Fixture, tree: &Tree, parent: Option<&Tree>) -> OwnNow {
    f.backend.own_now(tree, parent).expect("look").expect("Btrfs can tell")
}

/// The same by a snapshot.
fn then(f: &Fixture, tree: &Tree, parent: Option<&Tree>) -> u64 {
    let fork = f.tree();
    f.backend.fork(tree, &fork, Access::ReadOnly, None).expect("fork");
    let own = f.backend.own(&fork, parent).expect("own");
    f.backend.destroy(&fork).expect("destroy");
    own.bytes()
}

#[test]
fn each_change_is_seen_at_once() {
    each_change(&Fixture::btrfs(QuotaSetup::Simple));
}

#[test]
fn each_change_is_seen_at_once_compressed() {
    each_change(&Fixture::btrfs_zstd());
}

fn each_change(f: &Fixture) {
    let (layer, tree) = f.pair(files);
    let root = tree.root();
    let at = |path: &str| root.join(path);
    let look = || now(f, &tree, Some(&layer));
    assert_eq!((look().bytes, look().inodes), (0, 0), "untouched");

    let first = f.backend.state(&tree).expect("state");
    let mut open = File::create(at("new")).expect("create");
    open.write_all(&random_bytes(300 * KIB)).expect("write");
    // The directory that it is in has changed, too.
    let written = look();
    assert!((300 * KIB..320 * KIB).contains(&written.bytes), "what is in memory: {written:?}");
    assert_eq!((written.inodes, written.state), (2, None), "a later change may be of the same transaction");
    fs::hard_link(at("new"), at("d0/again")).expect("link");
    let linked = look();
    assert_eq!((linked.bytes, linked.inodes), (written.bytes, 3), "one inode, and another directory");

    fs::write(at("d1/f1"), random_bytes(40 * KIB)).expect("write");
    OpenOptions::new().write(true).open(at("d2/f2")).expect("open").write_all_at(&[1; 100], 9000).expect("write");
    fs::write(at("tiny"), "among the metadata").expect("write");
    run("setfattr", &["-n", "user.x", "-v", "y", arg(&at("d3/f3"))]);
    assert_eq!(look().inodes, linked.inodes + 4, "two files of the layer, a new one, one with an attribute");

    let before = look();
    let gone = File::create(at("gone")).expect("create");
    gone.write_all_at(&random_bytes(500 * KIB), 0).expect("write");
    assert!(look().bytes > before.bytes + 400 * KIB);
    fs::remove_file(at("gone")).expect("unlink");
    assert_eq!((look().bytes, look().inodes), (before.bytes, before.inodes), "deleted, and still open");
    drop(gone);
    run("cp", &["--reflink=always", arg(&at("d4/f4")), arg(&at("shared"))]);
    run("cp", &["--reflink=always", arg(&at("new")), arg(&at("shared too"))]);
    assert_eq!((look().bytes, look().inodes), (before.bytes, before.inodes + 2), "what others hold, too");
    fs::remove_file(at("d5/f5")).expect("unlink");
    assert_eq!(look().bytes, before.bytes, "the layer's");
    assert_eq!(look().bytes, then(f, &tree, Some(&layer)));

    // Of what was there before, attributes alone are seen from the next commit on, as the directory is that lost a name.
    let before = look();
    fs::set_permissions(at("d6/f6"), fs::Permissions::from_mode(0o600)).expect("chmod");
    f.backend.sync().expect("sync");
    // What is on its way elsewhere on the filesystem keeps nobody from telling.
    fs::write(f.fs().path().join("elsewhere"), random_bytes(1000 * KIB)).expect("write");
    let settled = look();
    assert_eq!((settled.bytes, settled.inodes), (before.bytes, before.inodes + 1));
    assert!(settled.state.is_some() && settled.state == f.backend.state(&tree).expect("state"), "and kept then");
    assert_ne!(settled.state, first);
    drop(open);
    fs::write(at("new"), "").expect("truncate");
    fs::remove_file(at("shared too")).expect("unlink");
    fs::remove_file(at("d0/again")).expect("unlink");
    assert!(look().bytes + 300 * KIB <= settled.bytes, "truncated");
    assert_ne!(look().state, settled.state);
    assert_eq!(look().bytes, then(f, &tree, Some(&layer)));
}

#[test]
fn all_of_a_tree_on_nothing_is_its_own() {
    let f = Fixture::btrfs(QuotaSetup::None);
    let tree = f.tree();
    f.backend.create(&tree, None).expect("create");
    assert_eq!(now(&f, &tree, None).inodes, 1, "its root");
    files(&tree.root());
    let own = now(&f, &tree, None);
    assert_eq!((own.bytes, own.inodes), (400 * 20 * KIB, 1 + 20 + 400));
    run("btrfs", &["-q", "subvolume", "create", arg(&tree.root().join("inside"))]);
    assert_eq!(f.backend.own_now(&tree, None).expect("look"), None, "with one inside");
}
