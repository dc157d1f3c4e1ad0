//! Sealing: a tree that was written to becomes one that nobody changes, where it is.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};

use reflinkd::Kind;
use reflinkd::backend::{Access, CloneCost, Tree};

use crate::fixture::{Fixture, entries};
use crate::forks::{changes, fill, write};
use crate::support::digest::{assert_same, tree_digest};
use crate::support::{MIB, kernel_since, random_bytes, write_random};

fn sealed(f: &Fixture) -> (Tree, Tree) {
    let image = f.image("image", fill);
    let tree = f.container(&image, "tree");
    write(&tree.root());
    f.backend.seal(&tree).expect("seal");
    (image, tree)
}

pub(crate) fn a_sealed_tree_is_what_it_was(f: &Fixture) {
    let image = f.image("image", fill);
    let tree = f.container(&image, "tree");
    write(&tree.root());
    assert!(!f.backend.is_read_only(&tree).expect("is it read-only"));
    let (before, changed) = (tree_digest(&tree.root()), changes(f, &image, &tree));
    let (method, charged) = f.backend.measure_for_good(&tree).expect("measure");
    let (by, sealed) = f.backend.seal(&tree).expect("seal");
    assert_eq!(by, method);
    assert!(sealed.abs_diff(charged) <= f.setup.overhead(), "{sealed}, and before {charged}");
    assert!(f.backend.is_read_only(&tree).expect("is it read-only"));
    assert_same("it", &before, &tree_digest(&tree.root()));
    assert_eq!(changes(f, &image, &tree), changed);
    if f.setup.by_group() {
        f.reclaim(&[&image, &tree]);
        assert_eq!(f.charged(&tree).abs_diff(charged) / (64 << 10), 0, "it is charged as before");
    }
    if f.setup.is_btrfs() {
        let refused = fs::write(tree.root().join("new"), "x").expect_err("it refuses writes");
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    }
    let beside = entries(tree.place());
    f.backend.seal(&tree).expect("seal it again");
    assert_same("it, twice", &before, &tree_digest(&tree.root()));
    // Of reflink trees the manifest is beside it, by the number of the root, which stays.
    assert_eq!(entries(tree.place()).len(), beside.len(), "nothing is left beside it");
}

pub(crate) fn a_sealed_tree_can_be_cloned(f: &Fixture) {
    let (_, tree) = sealed(f);
    let child = f.container(&tree, "child");
    assert_same("a clone", &tree_digest(&tree.root()), &tree_digest(&child.root()));
    assert_eq!(changes(f, &tree, &child), []);
    let untouched = f.charged(&child);
    write_random(&child.root().join("etc/more"), MIB);
    let charged = f.charged(&child) - untouched;
    assert!(charged.abs_diff(MIB) <= f.setup.overhead(), "{charged}");
    assert!(!tree.root().join("etc/more").exists(), "what is written to a clone is only there");
    let reopened = f.reopened();
    assert!(reopened.is_read_only(&tree).expect("is it read-only"), "others know it, too");
    f.backend.destroy(&tree).expect("destroy");
    assert!(!f.backend.exists(&tree).expect("exists"));
}

/// Where it is by exchange: who has it open goes on in what it was.
pub(crate) fn open_files_lead_elsewhere(f: &Fixture) {
    let image = f.image("image", fill);
    let tree = f.container(&image, "tree");
    let path = tree.root().join("etc/log");
    let mut open = OpenOptions::new().create(true).append(true).open(&path).expect("open");
    open.write_all(b"before").expect("write");
    f.backend.seal(&tree).expect("seal");
    // The file that was open is gone on some filesystems; writing to it may fail, but must not show.
    let _ = open.write_all(b"after");
    if f.backend.clone_cost() == CloneCost::Constant {
        assert_eq!(fs::read(&path).expect("read"), b"before");
    }
}

pub(crate) fn what_a_crash_left_beside_it_goes(f: &Fixture) {
    let image = f.image("image", fill);
    let tree = f.container(&image, "tree");
    let other = f.container(&image, "other");
    write(&tree.root());
    let before = tree_digest(&tree.root());
    f.put_spare(&other, &tree);
    f.backend.seal(&tree).expect("seal");
    assert_same("it", &before, &tree_digest(&tree.root()));
    assert!(!tree.spare().exists());
    f.backend.settle(tree.place()).expect("settle");
    assert_same("it", &before, &tree_digest(&tree.root()));
    assert!(f.backend.is_read_only(&tree).expect("is it read-only"));
}

pub(crate) fn a_sealed_tree_can_be_written_to_again(f: &Fixture) {
    let (_, tree) = sealed(f);
    f.backend.set_read_only(&tree, false).expect("unseal");
    assert!(!f.backend.is_read_only(&tree).expect("look"));
    // Sealed it may be counted otherwise: project quotas don't see what was overwritten.
    let before = f.charged(&tree);
    write_random(&tree.root().join("more"), MIB);
    let after = f.charged(&tree);
    assert!(after >= before + MIB, "{before} and then {after}");
    // One that isn't sealed stays as it is, and it can be sealed again.
    f.backend.set_read_only(&tree, false).expect("unseal it again");
    f.backend.seal(&tree).expect("seal it again");
    assert!(f.backend.is_read_only(&tree).expect("look"));
    assert_eq!(fs::metadata(tree.root().join("more")).expect("stat").len(), MIB);
}

pub(crate) fn only_a_tree_is_sealed(f: &Fixture) {
    let tree = f.tree("none");
    f.refused(Kind::NotFound, tree.place(), || f.backend.seal(&tree).map(drop));
}

pub(crate) fn a_tree_is_sealed_at_its_limit(f: &Fixture) {
    if !f.setup.limits() {
        return;
    }
    let image = f.image("image", fill);
    let tree = f.tree("tree");
    f.backend.clone_tree(&image, &tree, Access::Writable, Some(4 * MIB)).expect("clone");
    let mut file = fs::File::create(tree.root().join("big")).expect("create");
    while file.write_all(&[7; 64 << 10]).and_then(|()| file.sync_data()).is_ok() {}
    let before = tree_digest(&tree.root());
    f.backend.seal(&tree).expect("seal");
    assert_same("it", &before, &tree_digest(&tree.root()));
}

/// Whatever is done to a tree, its state is another one, at once and later.
pub(crate) fn a_state_is_of_one_moment(f: &Fixture) {
    let image = f.image("image", fill);
    let tree = f.container(&image, "tree");
    let quiet = || {
        f.backend.sync().expect("sync");
        (0..200).find_map(|_| {
            let state = f.backend.state(&tree).expect("state");
            if state.is_none() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            state
        })
    };
    if !f.setup.is_btrfs() {
        assert_eq!(f.backend.state(&tree).expect("state"), None);
        return;
    }
    let path = |name: &str| tree.root().join(name);
    let large = || OpenOptions::new().read(true).write(true).open(path("etc/large")).expect("open");
    let kept = large();
    let changes: [(&str, &dyn Fn()); 12] = [
        ("overwrite", &|| large().write_all_at(b"new", 5000).expect("write")),
        ("overwrite it at once again", &|| kept.write_all_at(b"again", 9000).expect("write")),
        ("overwrite by an old descriptor", &|| kept.write_all_at(b"newer", 100 << 10).expect("write")),
        ("append", &|| large().write_all_at(b"more", 200 << 10).expect("write")),
        ("a small file", &|| fs::write(path("etc/little"), "x").expect("write")),
        ("chmod", &|| fs::set_permissions(path("etc/little"), PermissionsExt::from_mode(0o600)).expect("chmod")),
        ("rename", &|| fs::rename(path("etc/little"), path("etc/small")).expect("rename")),
        ("link", &|| fs::hard_link(path("etc/small"), path("etc/link")).expect("link")),
        ("remove", &|| fs::remove_file(path("etc/link")).expect("remove")),
        ("truncate", &|| large().set_len(10).expect("truncate")),
        ("mkdir", &|| fs::create_dir(path("etc/dir")).expect("mkdir")),
        ("touch", &|| large().set_modified(std::time::UNIX_EPOCH).expect("touch")),
    ];
    for (what, change) in changes {
        let before = quiet().unwrap_or_else(|| panic!("{what}: it never is quiet"));
        assert_eq!(quiet(), Some(before), "{what}: reading, and syncing, change nothing");
        let fork = f.tree(&format!("fork-{:?}", f.group()));
        f.backend.fork(&tree, &fork, Access::ReadOnly, None).expect("fork");
        assert_eq!(f.backend.state_of_fork(&tree, &fork).expect("state"), Some(before), "{what}: a fork, neither");
        change();
        assert_ne!(f.backend.state(&tree).expect("state"), Some(before), "{what}, at once");
        f.backend.destroy(&fork).expect("destroy");
        let after = quiet();
        assert_ne!(after, Some(before), "{what}, later");
        assert!(after.is_some(), "{what}: it never is quiet");
    }
}

/// Of a tree that is written to, without a commit. Each kernel has its own way of making snapshots, which that stands on.
pub(crate) fn what_was_written_is_counted_at_once(f: &Fixture) {
    let image = f.image("image", fill);
    let tree = f.container(&image, "tree");
    let look = || f.backend.own_now(&tree, Some(&image)).expect("look");
    let Some(before) = look() else {
        assert!(!f.setup.is_btrfs() || !kernel_since(5, 12), "this kernel can tell");
        return;
    };
    assert_eq!((before.bytes, before.inodes), (0, 0));
    let large = OpenOptions::new().write(true).open(tree.root().join("etc/large")).expect("open");
    large.write_all_at(&random_bytes(100 << 10), 0).expect("write");
    let now = look().expect("as before");
    assert!((100 << 10..1 << 20).contains(&now.bytes) && now.inodes == 1, "{now:?}");
    large.set_len(0).expect("truncate");
    assert!(look().expect("as before").bytes < 100 << 10);
}

/// What is told of a tree without waiting for a commit.
pub(crate) fn what_was_made_is_named_at_once(f: &Fixture) {
    let image = f.image("image", fill);
    let tree = f.container(&image, "tree");
    let named = || {
        let mut made = f.backend.made(&tree).expect("made")?;
        made.sort();
        Some(made.iter().map(|path| path.display().to_string()).collect::<Vec<_>>())
    };
    if !f.setup.is_btrfs() {
        assert_eq!(named(), None);
        return;
    }
    let path = |name: &str| tree.root().join(name);
    assert_eq!(named(), Some(vec![]));
    fs::create_dir_all(path("dev/pts")).expect("mkdir");
    fs::write(path("etc/hosts"), "").expect("write");
    fs::write(path("etc/large"), "as it was not").expect("write over");
    std::os::unix::fs::symlink("/proc/mounts", path("etc/mtab")).expect("symlink");
    fs::hard_link(path("etc/hosts"), path("usr/hosts")).expect("link");
    fs::remove_file(path("etc/kept")).expect("remove");
    fs::write(path("etc/short-lived"), "").expect("write");
    fs::remove_file(path("etc/short-lived")).expect("remove");
    let expected = ["dev", "dev/pts", "etc/hosts", "etc/mtab", "usr/hosts"].map(String::from);
    assert_eq!(named().as_deref(), Some(&expected[..]));
    f.backend.sync().expect("sync");
    assert_eq!(named().as_deref(), Some(&expected[..]));
}
